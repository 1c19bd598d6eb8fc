"""The trained vector as parameters of a network in PyTorch: one direction a block, added to what the block gives.

Takes the identity of a model and its layers, gives parameters, the hooks that add them, and the SteeringVector they
are. Bias-Only Adaptation, section 1: h <- h + s at every position. It knows no loss and runs no network.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edge_steer.core.steering import Steering
from edge_steer.core.vector import ModelIdentity, SteeringVector
from edge_steer.reference.hooks import Hook, states

METHOD = "rloo"


class VectorAdapter:
    """Zeros to begin with. `values`: the parameter, float32 (layers, hidden), whatever the network computes in."""

    def __init__(
        self, model: ModelIdentity, layers: Sequence[int] | None = None, device: torch.device | None = None
    ) -> None:
        """layers: None is every block. Errors: VectorError for a layer that the model has not."""
        self.model = model
        self.layers = tuple(range(model.block_count)) if layers is None else tuple(sorted(set(layers)))
        model.check_layers(self.layers)
        self.values = torch.nn.Parameter(torch.zeros(len(self.layers), model.hidden_size, device=device))

    def hooks(self) -> dict[int, Hook]:
        """layer -> forward hook of that block, through which gradients reach the values."""
        return {layer: _adding(self.values[row]) for row, layer in enumerate(self.layers)}

    def vector(self, provenance: Sequence[str] = ()) -> SteeringVector:
        """The values as they are now, to be used at all layers with strength 1 in phase "all"."""
        rows = self.values.detach().cpu().numpy()
        directions = {layer: rows[row] for row, layer in enumerate(self.layers)}
        return SteeringVector(directions, self.model, METHOD, provenance=tuple(provenance)).tuned()

    def steering(self) -> tuple[Steering, ...]:
        """What steers the engine as the hooks steer the network."""
        return (Steering.of(self.vector()),)


def _adding(direction: Tensor) -> Hook:
    def add(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        stream = states(output)
        steered = stream + direction.to(stream.dtype)
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    return add
