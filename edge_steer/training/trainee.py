"""A model that is trained, in both runtimes.

llama.cpp answers, PyTorch has the gradient. Takes both running, and what can run in llama.cpp with other weights; gives
the engine that answers next. It loads nothing itself.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edge_steer.adapters.change import Change, LowRank, Weights
from edge_steer.core.errors import EdgeSteerError, ModelError, first_line
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.storage.provenance import RunningModel

if TYPE_CHECKING:
    from edge_steer.reference.model import Reference


class Exchange(Protocol):
    """Runs the model with other weights."""

    def run(self, change: LowRank | Weights) -> RunningModel:
        """The model with this change, until the next is asked for. Errors: ModelError if it does not fit."""

    def check(self, weights: Weights) -> None:
        """Errors: ModelError where these are not the model's own weights."""


@dataclass(frozen=True)
class Trainee:
    """engine: answers in llama.cpp. reference: has the gradient in PyTorch. exchange: None where only a vector is
    trained, which a request carries."""

    engine: RunningModel
    reference: "Reference"
    exchange: Exchange | None = None

    def answering(self, change: Change) -> tuple[RunningModel, tuple[Steering, ...]]:
        """What answers as the change says, and how its requests are steered. Errors: ModelError if it does not fit."""
        if isinstance(change, SteeringVector):
            return self.engine, (Steering.of(change),)
        if self.exchange is None:
            raise EdgeSteerError("only a vector can be trained on an engine whose weights cannot be exchanged")
        return self.exchange.run(change), ()


def to_device(reference: "Reference", device: str | None) -> None:
    """Move a network there; None is where it is. Errors: ModelError for a device that PyTorch has not."""
    if device is None:
        return
    try:
        reference.network.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"PyTorch cannot use the device {device!r}: {first_line(error)}") from None
