"""The reference's side of a comparison, and what steering changes in a text.

Takes a Backend, texts and a steering; gives logits and the effect of steering, text by text. saved.py keeps the same in
a file. It compares nothing.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np

from edge_steer.core.backend import Backend, Recording
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


class SteeredTexts:
    """A backend on texts, unsteered and steered, and what steering changes in them.

    A text's effect comes from the same two passes as its logits, if those have been given before.
    """

    def __init__(
        self,
        backend: Backend,
        steering: Sequence[Steering],
        effect_texts: Collection[TokenisedText],
        reference_steering: Sequence[SteeringRecord],
    ) -> None:
        """effect_texts: those whose effect is asked. reference_steering: says which block is the first steered one."""
        self._backend, self._steering = backend, tuple(steering)
        self._effect_texts = frozenset(effect_texts)
        last = backend.model.block_count - 1
        self._first_block = first_block(reference_steering) if effect_texts else last
        self._blocks = sorted({self._first_block, last})
        self._sides: dict[tuple[TokenisedText, bool], _EffectSide] = {}

    def rows(self, text: TokenisedText, *, steered: bool) -> Iterator[Array]:
        """The logits at the compared positions, piece by piece; a piece is valid until the next."""
        tokens, steering = text.tokens[:-1], self._steering if steered else ()
        if text not in self._effect_texts:
            yield from self._backend.logit_rows(tokens, text.prompt, steering)
            return
        recording = Recording(self._blocks, text.first_block_positions.tolist())
        copies, first, wanted = [], 0, text.effect_rows
        for piece in self._backend.logit_rows(tokens, text.prompt, steering, recording):
            copies.append(piece[wanted[(wanted >= first) & (wanted < first + len(piece))] - first])
            first += len(piece)
            yield piece
        self._sides[text, steered] = _EffectSide(np.concatenate(copies), recording.states)

    def effect(self, text: TokenisedText) -> SteeringEffect:
        """What steering does to one of the effect texts."""
        for steered in (False, True):
            if (text, steered) not in self._sides:
                for _ in self.rows(text, steered=steered):
                    pass
        without, with_steering = (self._sides.pop((text, steered)) for steered in (False, True))
        change = {block: with_steering.states[block] - without.states[block] for block in self._blocks}
        of_effect = np.isin(text.first_block_positions, text.effect_rows + text.prompt - 1)
        return SteeringEffect(
            logits=with_steering.logits - without.logits,
            states=change[self._blocks[-1]][of_effect],
            at_first_block=change[self._first_block],
        )


@dataclass(frozen=True)
class _EffectSide:
    """One side of an effect: logits at a text's effect_rows, states after blocks at its first_block_positions."""

    logits: Array
    states: Mapping[int, Array]


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
    """A running reference. It computes anew whatever is asked, but for an effect whose two sides it has just given."""

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
        self._texts = SteeredTexts(backend, steering, self.steered[:EFFECT_TEXTS], self.steering)

    @property
    def model(self) -> ModelIdentity:
        return self.exact_backend.model

    @property
    def steering(self) -> tuple[SteeringRecord, ...]:
        return records_of(self._steering)

    def rows(self, index: int, steered: bool) -> Iterator[Piece]:
        text = (self.steered if steered else self.unsteered)[index]
        for logits in self._texts.rows(text, steered=steered):
            yield logits, logsumexp(logits)

    def effect(self, index: int) -> SteeringEffect:
        return self._texts.effect(self.steered[index])


def _with_delimiters(texts: Sequence[TokenisedText], offsets: Offsets | None) -> list[TokenisedText]:
    """The texts, and where phase "delimiter" steers them: those it does not are left out.

    Errors: EdgeSteerError if it steers none.
    """
    if offsets is None or offsets.phase != "delimiter":
        return list(texts)
    steered = [offsets.steered(text.tokens[:-1], 0, text.prompt) for text in texts]
    if texts and not any(at.any() for at in steered):
        raise EdgeSteerError("phase 'delimiter' steers none of the texts; compare on answers with blank lines")
    return [
        replace(text, delimiters=tuple(np.flatnonzero(at).tolist()))
        for text, at in zip(texts, steered, strict=True)
        if at.any()
    ]
