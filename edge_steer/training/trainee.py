"""A model that is trained, in both runtimes.

llama.cpp answers, PyTorch has the gradient. Takes both running, and what can run in llama.cpp with other weights; gives
the engine that answers next. It loads nothing itself.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edge_steer.adapters.change import Change, LowRank, Weights
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.storage.provenance import RunningModel
from edge_steer.training.policy import GradientOptions
from edge_steer.training.settings import Adapter

if TYPE_CHECKING:
    from edge_steer.reference.model import Reference


class WeightSync(Protocol):
    """Gives llama.cpp the weights that a step has changed."""

    def run(self, change: LowRank | Weights) -> RunningModel:
        """The model with this change, until the next is asked for. Errors: ModelError if it does not fit."""

    def check(self, weights: Weights) -> None:
        """Errors: ModelError where these are not the model's own weights."""


@dataclass(frozen=True)
class Trainee:
    """engine: answers in llama.cpp. reference: has the gradient in PyTorch. sync: None where only a vector is trained,
    which a request carries."""

    engine: RunningModel
    reference: "Reference"
    sync: WeightSync | None = None

    def answering(self, change: Change) -> tuple[RunningModel, tuple[Steering, ...]]:
        """What answers as the change says, and how its requests are steered. Errors: ModelError if it does not fit."""
        if isinstance(change, SteeringVector):
            return self.engine, (Steering.of(change),)
        if self.sync is None:
            raise EdgeSteerError("only a vector can be trained on an engine whose weights cannot be exchanged")
        return self.sync.run(change), ()


def prepare(reference: "Reference", adapter: Adapter, options: GradientOptions) -> None:
    """Round a network's weights to the number type of the options, and move it to their device.

    What a network keeps beside its weights, as the angles of positions, stays float32. Errors: EdgeSteerError for
    weights that are to be trained themselves in fewer bits.
    """
    if adapter.kind == "full" and options.dtype != "float32":
        raise EdgeSteerError(f"all weights are trained in float32; {options.dtype} is for a vector or a LoRA")
    for parameter in reference.network.parameters():
        parameter.data = parameter.data.to(options.number_type)
    reference.network.to(options.device)
