"""Forward hooks on the decoder blocks of a PyTorch network: where layers are found, read and added to.

Takes a Hugging Face network and offsets, gives its blocks and the hooks that steer a batch. It runs no model itself
and knows nothing of tokens or requests.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_steer.core.backend import Recording
from edge_steer.core.errors import ModelError
from edge_steer.core.steering import Offsets

Hook = Callable[[torch.nn.Module, Any, Any], Any]


class StopForward(Exception):
    """Ends a forward pass: the last block that is needed has run."""


class SteeringRows:
    """What is added to the residual stream of each row of a batch. `column` is where the next forward pass starts.

    recording: what is recorded of the first row, as steered.
    """

    def __init__(self, rows: Sequence[Offsets | None], prompt: int, hidden: int, device: torch.device) -> None:
        """prompt: columns of the prompts, the padding before them included."""
        self.column = 0
        self.recording: Recording | None = None
        self._rows, self._prompt = list(rows), prompt
        self._steered = torch.empty(0, device=device)
        self._by_layer: dict[int, Tensor] = {}
        for row, offsets in enumerate(rows):
            for layer, offset in offsets.by_layer.items() if offsets else ():
                if layer not in self._by_layer:
                    self._by_layer[layer] = torch.zeros(len(rows), 1, hidden, device=device)
                self._by_layer[layer][row, 0] = torch.tensor(offset)

    def hooks(self) -> dict[int, Hook]:
        recorded = self.recording.layers if self.recording else ()
        return {layer: self._hook(layer) for layer in {*self._by_layer, *recorded}}

    def before(self, ids: Tensor) -> None:
        """Settle which of these tokens (rows, columns), those of the next forward pass, are steered."""
        if self._by_layer:
            steered = [
                offsets.steered(tokens, self.column, self._prompt) if offsets else np.zeros(len(tokens), dtype=np.bool_)
                for offsets, tokens in zip(self._rows, ids.tolist(), strict=True)
            ]
            self._steered = torch.from_numpy(np.stack(steered)).to(ids.device)[:, :, None]

    def keep(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[row] for row in rows]
        self._by_layer = {layer: added[list(rows)] for layer, added in self._by_layer.items()}

    def _hook(self, layer: int) -> Hook:
        def pass_through(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
            stream = states(output)
            if layer in self._by_layer:
                stream = (stream + self._by_layer[layer] * self._steered).to(stream.dtype)
            if self.recording and layer in self.recording.layers:
                self._record(self.recording, layer, stream[0])
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return pass_through

    def _record(self, recording: Recording, layer: int, stream: Tensor) -> None:
        end = self.column + len(stream)
        columns = [position - self.column for position in recording.positions if self.column <= position < end]
        parts = [recording.states[layer]] if layer in recording.states else []
        recording.states[layer] = np.concatenate([*parts, stream[columns].float().cpu().numpy()])


@contextlib.contextmanager
def hooked(blocks: Sequence[torch.nn.Module], hooks: Mapping[int, Hook]) -> Iterator[None]:
    """Hooks (layer -> hook) on the blocks, gone at the end."""
    with contextlib.ExitStack() as stack:
        for layer, hook in hooks.items():
            stack.callback(blocks[layer].register_forward_hook(hook).remove)
        yield


def hooks_that_show(layers: Sequence[int], see: Callable[[int, Tensor], None]) -> dict[int, Hook]:
    """Hooks that call `see` with each layer and the residual stream after it; the last one ends the forward pass."""
    last = max(layers)

    def hook(layer: int) -> Hook:
        def look(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            see(layer, states(output))
            if layer == last:
                raise StopForward

        return look

    return {layer: hook(layer) for layer in layers}


def states(output: Any) -> Tensor:
    """The residual stream in what a block gives: (rows, columns, hidden). Errors: ModelError if it is not there."""
    stream = output[0] if isinstance(output, tuple) else output
    if not isinstance(stream, Tensor) or stream.ndim != 3:
        raise ModelError("the blocks of this architecture do not give (rows, columns, hidden); it cannot be steered")
    return stream


def find_blocks(network: Any, count: int) -> list[torch.nn.Module]:
    """The outermost list of `count` modules in the decoder. Errors: ModelError if there is not exactly one."""
    lists = [
        (name, module)
        for name, module in network.get_decoder().named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    outer = [(name, module) for name, module in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    if len(outer) != 1:
        raise ModelError(
            f"{type(network).__name__} has {len(outer)} lists of {count} modules; which holds its blocks is unclear"
        )
    return list(outer[0][1])
