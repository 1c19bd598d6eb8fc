"""How PyTorch computes: with how many threads, and in float64 for a while.

Takes a network and its blocks. It knows nothing of tokens or of steering.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from edge_steer.core.errors import ModelError


def use_threads(threads: int | None) -> None:
    """How many threads PyTorch computes with; None is as it is. Errors: ModelError below 1."""
    if threads is None:
        return
    if threads < 1:
        raise ModelError(f"{threads} threads asked; at least 1 is needed")
    torch.set_num_threads(threads)


@contextlib.contextmanager
def in_float64(network: Any, blocks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """The network computes in float64 while this lasts, then as before, bit for bit.

    A block's weights are float64 while it runs, the others all the time, so that memory holds no second copy of a
    model. What the network itself does in float32, as some norms, stays so.
    """
    dtype = network.dtype
    inside = {id(weight) for block in blocks for weight in block.parameters()}
    with contextlib.ExitStack() as stack:
        stack.callback(_cast, list(network.parameters()), dtype)
        _cast((weight for weight in network.parameters() if id(weight) not in inside), torch.float64)
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(_widen).remove)
            stack.callback(block.register_forward_hook(lambda block, *_: _cast(block.parameters(), dtype)).remove)
        yield


def _widen(block: torch.nn.Module, _inputs: Any) -> None:
    _cast(block.parameters(), torch.float64)


def _cast(weights: Iterable[torch.nn.Parameter], dtype: torch.dtype) -> None:
    with torch.inference_mode(False):  # of what is made in that mode no gradient could be taken later
        for weight in weights:
            weight.data = weight.data.to(dtype)
