"""A vector put to use: strength, layers, phase.

Takes steering vectors, gives what a request adds to the residual stream, layer by layer. It knows no runtime.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from edge_steer.core.errors import VectorError
from edge_steer.core.vector import (
    Array,
    ModelIdentity,
    Phase,
    SteeringVector,
    Tuning,
    check_phase,
    check_strength,
    spans,
)

LARGEST = 1e15  # of what is added: beyond any stream, and its square in every layer is far from an overflow


@dataclass(frozen=True)
class Steering:
    """A vector put to use: `strength` (lambda in DenseSteer) times the vector, added at `layers` in `phase`.

    layers: one or several; None is every layer of the vector. phase: "all" steers every position, prompt included;
    "generated" steers from the last prompt token on, that is every position whose logits choose a new token;
    "delimiter" steers of these the tokens that hold a blank line, where the next thought is chosen (SEAL). The vector's
    own tuning plays no part here: see `Steering.of`. Errors: VectorError for what is no SteeringVector, a layer it has
    not, a strength that is not finite, an unknown phase.
    """

    vector: SteeringVector
    strength: float = 1.0
    layers: tuple[int, ...] | None = None
    phase: Phase = "all"

    def __post_init__(self) -> None:
        _check_vector(self.vector)
        check_strength(self.strength)
        check_phase(self.phase)
        layers = (self.layers,) if isinstance(self.layers, int) else self.layers
        object.__setattr__(self, "layers", self.vector.layers if layers is None else self.vector.check_layers(layers))

    def __repr__(self) -> str:
        at = spans(self.layers or ())
        return f"Steering({self.vector!r}, strength {self.strength:g}, layers {at}, phase {self.phase})"

    @classmethod
    def of(
        cls,
        vector: SteeringVector,
        strength: float | None = None,
        layers: Iterable[int] | None = None,
        phase: Phase | None = None,
    ) -> Self:
        """The vector as its tuning says; what is given wins over it. Without a tuning: strength 1, all layers, "all".

        Errors: VectorError, as for a Steering.
        """
        _check_vector(vector)
        tuning = vector.tuning or Tuning(vector.layers)
        return cls(
            vector,
            tuning.strength if strength is None else strength,
            tuning.layers if layers is None else tuple(layers),
            tuning.phase if phase is None else phase,
        )

    def offsets(self) -> dict[int, Array]:
        """layer -> strength * direction, what is added to the residual stream there."""
        with np.errstate(over="ignore", invalid="ignore"):  # `Offsets.of` refuses what comes of it
            return {layer: np.float32(self.strength) * self.vector.directions[layer] for layer in self.layers or ()}


Steer = SteeringVector | Steering | Iterable[SteeringVector | Steering] | None


def steerings(steer: Steer) -> tuple[Steering, ...]:
    """What `steer=` of every function takes: a vector (used as its tuning says), a Steering, several of them, or None.

    Errors: VectorError for anything else.
    """
    if steer is None:
        return ()
    if isinstance(steer, Steering):
        return (steer,)
    if isinstance(steer, SteeringVector):
        return (Steering.of(steer),)
    if isinstance(steer, str | bytes | Mapping) or not isinstance(steer, Iterable):
        raise VectorError(
            f"steer is a {type(steer).__name__}; give a SteeringVector, a Steering, a list of them, or None "
            "(load_vector reads a file)"
        )
    return tuple(one if isinstance(one, Steering) else Steering.of(one) for one in steer)


@dataclass(frozen=True)
class Offsets:
    """Several steerings added up: what one request adds to the residual stream, layer by layer, and when.

    delimiters: the tokens that phase "delimiter" steers.
    """

    by_layer: Mapping[int, Array]
    phase: Phase
    delimiters: Sequence[int] = ()

    @classmethod
    def of(cls, steerings: Sequence[Steering], model: ModelIdentity) -> Self | None:
        """None for no steering, or one whose offsets are all zero (it leaves the model as it is).

        Errors: VectorError for a vector of another model, steerings of different phases, or more than LARGEST added.
        """
        total: dict[int, Array] = {}
        for steering in steerings:
            steering.vector.check_fits(model)
            if steering.phase != steerings[0].phase:
                raise VectorError(
                    f"one request cannot mix the phases '{steerings[0].phase}' and '{steering.phase}'; "
                    "give all its vectors one phase"
                )
            for layer, offset in steering.offsets().items():
                total[layer] = total[layer] + offset if layer in total else offset
        for layer, offset in total.items():
            if not (largest := float(np.abs(offset).max())) <= LARGEST:
                raise VectorError(f"{largest:g} would be added at layer {layer}; it must be at most {LARGEST:g}")
        total = {layer: offset for layer, offset in total.items() if offset.any()}
        return cls(total, steerings[0].phase) if total else None

    @property
    def needs_rows(self) -> bool:
        """Whether llama.cpp's own control vector cannot do it: it begins at layer 1, and steers whatever the token."""
        return 0 in self.by_layer or self.phase == "delimiter"

    @property
    def of_prompt(self) -> Mapping[int, Array]:
        """What is added to the tokens of a prompt but its last, layer by layer."""
        return self.by_layer if self.phase == "all" else {}

    def steered(self, tokens: Sequence[int], first: int, prompt: int) -> npt.NDArray[np.bool_]:
        """Which of these tokens are steered. first: position of the first; prompt: how many tokens the prompt has."""
        if self.phase == "all":
            return np.ones(len(tokens), dtype=np.bool_)
        generated = np.arange(first, first + len(tokens)) >= prompt - 1
        return generated if self.phase == "generated" else generated & np.isin(tokens, self.delimiters)

    def up_to(self, layer: int) -> Self | None:
        """What of them is added at or before a layer; None for nothing."""
        added = {at: offset for at, offset in self.by_layer.items() if at <= layer}
        return replace(self, by_layer=added) if added else None

    @property
    def key(self) -> str:
        """SHA-256 of phase and values: equal steerings have equal keys."""
        sha = hashlib.sha256(self.phase.encode())
        for layer in sorted(self.by_layer):
            sha.update(layer.to_bytes(4, "little") + self.by_layer[layer].astype("<f4").tobytes())
        return sha.hexdigest()


def by_row(offsets: Offsets | None, tokens: Sequence[int], first: int, prompt: int) -> list[Offsets | None]:
    """What steers each token of a batch of one sequence, from position `first` on; one entry where all are alike."""
    if offsets is None:
        return [None]
    steered = offsets.steered(tokens, first, prompt)
    return [offsets] if steered.all() else [offsets if one else None for one in steered]


def _check_vector(value: object) -> None:
    if not isinstance(value, SteeringVector):
        raise VectorError(f"a {type(value).__name__} cannot steer; give a SteeringVector (load_vector reads a file)")


def described(steering: Sequence[Steering]) -> list[dict[str, object]]:
    """A steering as files tell it: the digest of each vector, strength, layers and phase."""
    return [
        {"vector": s.vector.digest, "strength": s.strength, "layers": list(s.layers or ()), "phase": s.phase}
        for s in steering
    ]
