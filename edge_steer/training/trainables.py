"""What is trained: a vector a block, low-rank matrices, or all weights.

Each is parameters in PyTorch, a network that computes with them, and a value that llama.cpp takes and a file keeps.
Takes a Reference and an Adapter's choice. It knows no loss, no engine and no file.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from edge_steer.adapters.change import Change, LowRank, Weights
from edge_steer.core.errors import ModelError
from edge_steer.core.vector import Array, SteeringVector
from edge_steer.reference.hooks import Hook, hooked, states
from edge_steer.training.settings import Adapter, Kind

if TYPE_CHECKING:
    from edge_steer.reference.model import Reference

METHOD = "rloo"


class Trainable(Protocol):
    """Parameters that a training changes."""

    @property
    def parameters(self) -> Sequence[Parameter]: ...

    def in_force(self) -> AbstractContextManager[None]:
        """Inside, the network computes with the parameters as they are now, and gradients reach them."""

    def untrained(self) -> AbstractContextManager[None]:
        """Inside, the network is the model as it was."""

    def change(self) -> Change:
        """The parameters as they are now, as a value."""

    def norms(self) -> dict[str, float]:
        """By layer the norm of what is changed: of the vector, of B A times its factor, of the weights' difference."""


def trainable(adapter: Adapter, reference: "Reference", seed: int = 0) -> Trainable:
    """What `adapter` names, of this network; seed: of the matrices that do not begin as zeros.

    Errors: VectorError for a layer that the model has not, ModelError for modules it has not.
    """
    return MAKERS[adapter.kind](adapter, reference, seed)


class TrainedVector:
    """One direction a block, added to what it gives at every position: h <- h + s (Bias-Only Adaptation, section 1).

    Zeros to begin with. `values`: the parameter, float32 (layers, hidden), whatever the network computes in.
    """

    def __init__(self, reference: "Reference", layers: Sequence[int] | None = None) -> None:
        """layers: None is every block."""
        self._reference = reference
        self.model = reference.model
        self.layers = tuple(range(self.model.block_count)) if layers is None else tuple(sorted(set(layers)))
        self.model.check_layers(self.layers)
        reference.network.requires_grad_(False)
        device = reference.network.device
        self.values = Parameter(torch.zeros(len(self.layers), self.model.hidden_size, device=device))

    @property
    def parameters(self) -> Sequence[Parameter]:
        return [self.values]

    def in_force(self) -> AbstractContextManager[None]:
        return hooked(self._reference.blocks, {layer: _adding(self.values[i]) for i, layer in enumerate(self.layers)})

    def untrained(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def change(self) -> SteeringVector:
        """To be used at all layers with strength 1 in phase "all"."""
        rows = _array(self.values)
        directions = {layer: rows[i] for i, layer in enumerate(self.layers)}
        return SteeringVector(directions, self.model, METHOD).tuned()

    def norms(self) -> dict[str, float]:
        return {str(layer): norm for layer, norm in self.change().norms.items()}


@dataclass(frozen=True)
class _LowRankModule:
    """A linear module with its matrices A (rank, inputs) and B (outputs, rank); layer: of its block."""

    layer: int
    module: Module
    a: Parameter
    b: Parameter


class TrainedLowRank:
    """LoRA: h <- h + alpha/r B A x in some linear modules of every block (the paper: down_proj, alpha = r).

    A begins as PEFT's, B as zeros; both are float32.
    """

    def __init__(self, reference: "Reference", adapter: Adapter, seed: int) -> None:
        self._model, self._alpha, self._factor = reference.model, adapter.alpha, adapter.alpha / adapter.rank
        reference.network.requires_grad_(False)
        self._changed: dict[str, _LowRankModule] = {}
        generator = torch.Generator().manual_seed(seed)
        names = {module: name for name, module in reference.network.named_modules()}
        for layer, block in enumerate(reference.blocks):
            for name, module in block.named_modules():
                if name.rpartition(".")[2] in adapter.modules:
                    a, b = _new_matrices(names[module], module, adapter.rank, generator)
                    self._changed[names[module]] = _LowRankModule(layer, module, a, b)
        if not self._changed:
            raise ModelError(f"the blocks of {self._model.name} have no {' or '.join(adapter.modules)}")

    @property
    def parameters(self) -> Sequence[Parameter]:
        return [half for one in self._changed.values() for half in (one.a, one.b)]

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        with ExitStack() as stack:
            for one in self._changed.values():
                hook = one.module.register_forward_hook(_low_rank(one.a, one.b, self._factor))
                stack.callback(hook.remove)
            yield

    def untrained(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def change(self) -> LowRank:
        matrices = {name: (_array(one.a), _array(one.b)) for name, one in self._changed.items()}
        return LowRank(matrices, self._alpha, self._model)

    def norms(self) -> dict[str, float]:
        squares: dict[str, float] = {}
        for one in self._changed.values():
            a, b, layer = _array(one.a), _array(one.b), str(one.layer)
            square = self._factor**2 * float(((b.T @ b) * (a @ a.T)).sum())  # of the Frobenius norm of B A
            squares[layer] = squares.get(layer, 0.0) + square
        return {layer: math.sqrt(max(0.0, square)) for layer, square in squares.items()}


class TrainedWeights:
    """All weights of the network, which are changed in place."""

    def __init__(self, reference: "Reference") -> None:
        self._reference = reference
        reference.network.requires_grad_(True)
        self._named: dict[str, Parameter] = dict(reference.network.named_parameters())
        self._before = {name: parameter.detach().clone() for name, parameter in self._named.items()}

    @property
    def parameters(self) -> Sequence[Parameter]:
        return list(self._named.values())

    def in_force(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def untrained(self) -> Iterator[None]:
        trained = {name: parameter.data for name, parameter in self._named.items()}
        self._set(self._before)
        try:
            yield
        finally:
            self._set(trained)

    def change(self) -> Weights:
        return Weights({name: _array(one) for name, one in self._named.items()}, self._reference.model)

    def norms(self) -> dict[str, float]:
        moved = {parameter: parameter.detach() - self._before[name] for name, parameter in self._named.items()}
        return {
            str(layer): math.sqrt(sum(float(moved[parameter].square().sum()) for parameter in block.parameters()))
            for layer, block in enumerate(self._reference.blocks)
        }

    def _set(self, values: "dict[str, Tensor]") -> None:
        for name, parameter in self._named.items():
            parameter.data = values[name]


MAKERS: dict[Kind, Callable[[Adapter, "Reference", int], Trainable]] = {
    "vector": lambda adapter, reference, _seed: TrainedVector(reference, adapter.layers),
    "lora": lambda adapter, reference, seed: TrainedLowRank(reference, adapter, seed),
    "full": lambda _adapter, reference, _seed: TrainedWeights(reference),
}


def _new_matrices(name: str, module: Module, rank: int, generator: torch.Generator) -> tuple[Parameter, Parameter]:
    """A and B of a linear module. Errors: ModelError for another module."""
    weight = module.weight
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise ModelError(f"{name} is no linear module; it takes no low-rank adapter")
    outputs, inputs = weight.shape
    a = torch.empty(rank, inputs)
    torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
    return Parameter(a.to(weight.device)), Parameter(torch.zeros(outputs, rank, device=weight.device))


def _array(parameter: Parameter) -> Array:
    """A float32 copy."""
    values: Array = parameter.detach().float().cpu().numpy().copy()
    return values


def _adding(direction: Tensor) -> Hook:
    def add(_module: Module, _inputs: Any, output: Any) -> Any:
        stream = states(output)
        steered = stream + direction  # float32 from here on, whatever the weights are
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    return add


def _low_rank(a: Tensor, b: Tensor, factor: float) -> Hook:
    def add(_module: Module, inputs: Any, output: Tensor) -> Tensor:
        change = factor * (inputs[0].to(a.dtype) @ a.T) @ b.T
        changed: Tensor = output + change.to(a.dtype)
        return changed

    return add
