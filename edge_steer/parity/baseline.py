"""The reference's side of a comparison, and what steering changes in a text.

Takes a Backend, texts and a steering; gives logits and the effect of steering, text by text. saved.py keeps the same in
a file. It compares nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from edge_steer.core.backend import Backend
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.stats import Floats, logsumexp
from edge_steer.core.steering import Offsets, Steering
from edge_steer.core.vector import Array, ModelIdentity, Phase
from edge_steer.parity.texts import TokenisedText

EFFECT_TEXTS = 16  # of the steered ones
Piece = tuple[Array, Floats]  # logits (positions, vocabulary), and log(sum(exp(logits))) of each position


@dataclass(frozen=True)
class SteeringRecord:
    """A steering as files have it. vector: the digest of its directions."""

    vector: str
    strength: float
    layers: tuple[int, ...]
    phase: Phase

    @classmethod
    def of(cls, steering: Steering) -> Self:
        return cls(steering.vector.digest, steering.strength, tuple(steering.layers or ()), steering.phase)


def records_of(steering: Sequence[Steering]) -> tuple[SteeringRecord, ...]:
    return tuple(map(SteeringRecord.of, steering))


def first_block(records: Sequence[SteeringRecord]) -> int:
    """The first block that these steerings add something at."""
    return min(layer for record in records for layer in record.layers)


@dataclass(frozen=True)
class SteeringEffect:
    """Steered minus unsteered at a text's effect_rows: logits, and the residual stream after the last block.

    at_first_block: the residual stream after the first steered block, at the text's first_block_positions. No later
    block has worked on the vector there, so it is what was added, in a quantised model too.
    """

    logits: Array
    states: Array
    at_first_block: Array


class Baseline(Protocol):
    """The reference's side of a comparison: texts without steering, and texts under a steering."""

    @property
    def model(self) -> ModelIdentity: ...

    @property
    def unsteered(self) -> Sequence[TokenisedText]: ...

    @property
    def steered(self) -> Sequence[TokenisedText]: ...

    @property
    def steering(self) -> Sequence[SteeringRecord]:
        """What the steered texts are steered with."""

    @property
    def exact_backend(self) -> Backend | None:
        """The running reference, which the mechanism is checked against; None where it is not at hand."""

    def rows(self, index: int, steered: bool) -> Iterator[Piece]:
        """The logits of one of the unsteered or steered texts, piece by piece; a piece is valid until the next."""

    def effect(self, index: int) -> SteeringEffect:
        """What steering does to one of the first EFFECT_TEXTS steered texts."""


class LiveReference:
    """A running reference. It computes anew whatever is asked."""

    def __init__(
        self,
        backend: Backend,
        unsteered: Sequence[TokenisedText],
        steered: Sequence[TokenisedText],
        steering: Sequence[Steering],
    ) -> None:
        """Texts without a token after their prompt are left out.

        Errors: EdgeSteerError if none is left, ModelError where llama.cpp computes otherwise than the backend's model.
        """
        self.unsteered, self.steered = ([t for t in texts if len(t.following)] for texts in (unsteered, steered))
        self.steered = _with_delimiters(self.steered, backend.offsets(steering))
        if not self.unsteered:
            raise EdgeSteerError("no texts to compare on; at least one with a token after its prompt is needed")
        backend.check_comparable(max(len(text.tokens) for text in (*self.unsteered, *self.steered)))
        self.exact_backend = backend
        self._steering = tuple(steering)

    @property
    def model(self) -> ModelIdentity:
        return self.exact_backend.model

    @property
    def steering(self) -> tuple[SteeringRecord, ...]:
        return records_of(self._steering)

    def rows(self, index: int, steered: bool) -> Iterator[Piece]:
        text, steering = (self.steered[index], self._steering) if steered else (self.unsteered[index], ())
        for logits in self.exact_backend.logit_rows(text.tokens[:-1], text.prompt, steering):
            yield logits, logsumexp(logits)

    def effect(self, index: int) -> SteeringEffect:
        return steering_effect(self.exact_backend, self.steered[index], self._steering, first_block(self.steering))


def steering_effect(
    backend: Backend, text: TokenisedText, steering: Sequence[Steering], first_block: int
) -> SteeringEffect:
    """What steering does to a text in a backend. first_block: the first one that the reference is steered at."""
    effect_rows, positions = text.effect_rows, text.first_block_positions
    tokens, last_block = text.tokens[: effect_rows[-1] + text.prompt], backend.model.block_count - 1
    blocks = sorted({first_block, last_block})
    logits, states = [], []
    for one in (steering, ()):
        logits.append(_rows(backend.logit_rows(tokens, text.prompt, one), effect_rows))
        states.append(backend.record(tokens, blocks, positions.tolist(), prompt=text.prompt, steering=one))
    change = {block: states[0][block] - states[1][block] for block in blocks}
    of_effect = np.isin(positions, effect_rows + text.prompt - 1)
    return SteeringEffect(logits[0] - logits[1], change[last_block][of_effect], change[first_block])


def _with_delimiters(texts: Sequence[TokenisedText], offsets: Offsets | None) -> list[TokenisedText]:
    """The texts, and where phase "delimiter" steers them. Errors: EdgeSteerError if it steers none."""
    if offsets is None or offsets.phase != "delimiter":
        return list(texts)
    steered = [offsets.steered(text.tokens[:-1], 0, text.prompt) for text in texts]
    if texts and not any(at.any() for at in steered):
        raise EdgeSteerError("phase 'delimiter' steers none of the texts; compare on answers with blank lines")
    return [
        replace(text, delimiters=tuple(np.flatnonzero(at).tolist())) for text, at in zip(texts, steered, strict=True)
    ]


def _rows(pieces: Iterator[Array], indices: npt.NDArray[np.int64]) -> Array:
    """Copies of some rows of a stream."""
    copies, first = [], 0
    for piece in pieces:
        copies.append(piece[indices[(indices >= first) & (indices < first + len(piece))] - first])
        first += len(piece)
    rows: Array = np.concatenate(copies)
    return rows
