"""Is the vector added at the same place? Two backends, the same tokens, every block, phase and sign.

Takes an exact GGUF (F32 weights and KV cache, no flash attention) and the reference in float32 as Backends, gives
how far logits and the residual stream at every block are apart, and how far they are when the vector is one block
off. It loads nothing and prints nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from edge_steer.core.architectures import HALF_GELU
from edge_steer.core.backend import Backend, EngineOptions, Recording
from edge_steer.core.errors import ModelError
from edge_steer.core.stats import Floats
from edge_steer.core.steering import Steering
from edge_steer.core.vector import Array, Phase, SteeringVector
from edge_steer.parity.texts import TokenisedText

EXACT = "F32"  # the type whose mechanism is checked
OF_EVERY_TEXT: tuple[Phase, ...] = ("all", "generated")  # the phases that steer whatever the tokens


def options_for(quant: str, options: EngineOptions) -> EngineOptions:
    """How a file of a type runs: as asked, but an exact one with an F32 KV cache and without flash attention.

    Nothing but rounding is left then between an exact file and the reference.
    """
    return replace(options, kv_type="f32", flash_attention="off") if quant == EXACT else options


def check_exact(quant: str, architecture: str | None) -> None:
    """Errors: ModelError for an exact file that llama.cpp does not compute to the tolerances of one."""
    if quant == EXACT and architecture in HALF_GELU:
        raise ModelError(
            f"llama.cpp reads the GELU of {architecture} from a table of float16, which moves the logits of an {EXACT} "
            "file more than its tolerances allow; compare an F16 file"
        )


@dataclass(frozen=True)
class MechanismRow:
    """max|delta logit| with the vector at `layer` in both: its median over steered positions, its maximum over all.

    residual: max|delta| of the residual stream of each position relative to the root mean square of the stream there,
    its median over positions, the largest over all blocks. neighbour: the median with the vector one layer off in
    the reference; None at strength 0. rounding: see `rounding` of the same texts; None where it was not measured.
    """

    layer: int
    phase: Phase
    strength: float
    median: float
    max: float
    residual: float
    neighbour: float | None
    rounding: float | None = None


@runtime_checkable
class Widened(Protocol):
    """A backend that can compute in float64 for a while."""

    def in_float64(self) -> AbstractContextManager[None]: ...


def rounding(reference: Backend, text: TokenisedText, steering: Steering) -> float | None:
    """max|delta logit| of the reference in float32 against itself in float64 on a text: unsteered, and at both signs.

    None of a reference that cannot compute in float64.
    """
    if not isinstance(reference, Widened):
        return None

    def logits() -> list[Array]:
        strengths = (0.0, steering.strength, -steering.strength)
        return [reference.logits(text.tokens, text.prompt, [replace(steering, strength=s)]) for s in strengths]

    single = logits()
    with reference.in_float64():
        double = logits()
    return float(max(_delta(one, other).max() for one, other in zip(single, double, strict=True)))


def mechanism(
    reference: Backend,
    other: Backend,
    vector: SteeringVector,
    texts: Sequence[TokenisedText],
    *,
    layers: Iterable[int],
    strengths: Sequence[float],
    phases: Sequence[Phase] = OF_EVERY_TEXT,
) -> list[MechanismRow]:
    """Every layer, phase and strength; of an unsteered pair (strength 0) the phase makes no difference.

    The verdict is on the median over steered positions: a misplaced vector moves them all, while float32 rounding alone
    is amplified a hundredfold at the few positions where the model is undecided.
    """
    return [
        _row(reference, other, vector, texts, layer, phase, strength)
        for layer in layers
        for phase in phases
        for strength in strengths
    ]


def everywhere(vector: SteeringVector, blocks: int) -> SteeringVector:
    """The vector with a direction at every block: its own, or that of the nearest layer it has."""
    nearest = {layer: min(vector.layers, key=lambda have: abs(have - layer)) for layer in range(blocks)}
    return SteeringVector({layer: vector.directions[have] for layer, have in nearest.items()}, vector.model)


def _row(
    reference: Backend,
    other: Backend,
    vector: SteeringVector,
    texts: Sequence[TokenisedText],
    layer: int,
    phase: Phase,
    strength: float,
) -> MechanismRow:
    right = [Steering(vector, strength, (layer,), phase)]
    off = [Steering(_moved(vector, layer), strength, phase=phase)]
    deltas, steered, neighbours, residuals = [], [], [], []
    for text in texts:
        ours, theirs, offsets = _observe(reference, text, right), _observe(other, text, right), other.offsets(right)
        deltas.append(_delta(ours.logits, theirs.logits))
        if offsets:
            steered.append(offsets.steered(text.tokens, 0, text.prompt)[text.prompt - 1 :])
            neighbours.append(_delta(reference.logits(text.tokens, text.prompt, off), theirs.logits)[steered[-1]])
        residuals.append(_residual(ours.states, theirs.states))
    joined = np.concatenate(deltas)
    return MechanismRow(
        layer=layer,
        phase=phase,
        strength=strength,
        median=float(np.median(joined[np.concatenate(steered)] if steered else joined)),
        max=float(joined.max()),
        residual=float(np.median(np.concatenate(residuals, axis=1), axis=1).max()),
        neighbour=float(np.median(np.concatenate(neighbours))) if neighbours else None,
    )


@dataclass(frozen=True)
class _Observed:
    """A text in a backend: logits (positions, vocabulary), and the states after every block (positions, hidden)."""

    logits: Array
    states: Mapping[int, Array]


def _observe(backend: Backend, text: TokenisedText, steering: Sequence[Steering]) -> _Observed:
    recording = Recording(range(backend.model.block_count), range(len(text.tokens)))
    rows = [piece.copy() for piece in backend.logit_rows(text.tokens, text.prompt, steering, recording)]
    return _Observed(np.concatenate(rows), recording.states)


def _residual(ours: Mapping[int, Array], theirs: Mapping[int, Array]) -> Floats:
    """max|delta| of the residual stream over its root mean square: float64 (blocks, positions)."""
    return np.stack(
        [
            np.abs(ours[b] - theirs[b]).max(axis=1) / np.sqrt(np.square(ours[b], dtype=np.float64).mean(axis=1))
            for b in sorted(ours)
        ]
    )


def _delta(ours: Array, theirs: Array) -> Array:
    """max|delta logit| of each position."""
    largest: Array = np.abs(ours - theirs).max(axis=1)
    return largest


def _moved(vector: SteeringVector, layer: int) -> SteeringVector:
    """The vector with the direction of `layer` at a neighbouring layer instead."""
    last = vector.model.block_count - 1
    neighbour = layer + 1 if layer < last else layer - 1
    moved = {neighbour: vector.directions[layer]}
    return SteeringVector(moved, vector.model, vector.method, vector.pooling)
