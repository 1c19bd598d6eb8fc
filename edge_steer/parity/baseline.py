"""What the reference says of texts, live from a Backend or saved in a file for another process or machine.

A saved reference is one file: a line that names the format, a line of JSON (model, steering, vocabulary, texts), then
a block of bytes for each text: its length as int64, and inside it, all little-endian:

    for each position: float64 log(sum(exp(logits))), uint32 count, a bit for each token of the vocabulary (first token
    in the highest bit), then float32 logits of the tokens whose bit is set
    for each of the first steered texts: what steering adds to logits (float32 positions x vocabulary) and to the
    residual stream after the last block (float32 positions x hidden), at EFFECT_POSITIONS positions, and to that after
    the first steered block (float32 positions x hidden), at these and the first and a middle one of the prompt

Kept are the token that follows and those whose log-probability is above -16, which are those llama-perplexity counts.
It compares nothing: divergence.py and parity.py do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_steer.core.backend import Backend
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.stats import Floats, logsumexp
from edge_steer.core.steering import Steering, described, first_layer
from edge_steer.core.vector import Array, ModelIdentity
from edge_steer.parity.texts import Text

EFFECT_TEXTS = 16  # of the steered ones
Piece = tuple[Array, Floats]  # logits (positions, vocabulary), and log(sum(exp(logits))) of each position


@dataclass(frozen=True)
class Shift:
    """Steered minus unsteered at a text's effect_rows: logits, and the residual stream after the last block.

    placed: the residual stream after the first steered block, at the text's placed_positions. Nothing has been made of
    the vector there yet, so it is what was added, in a quantised model too.
    """

    logits: Array
    states: Array
    placed: Array


class Baseline(Protocol):
    """The reference's side of a comparison: texts under no steering, others under a steering."""

    @property
    def model(self) -> ModelIdentity: ...

    @property
    def unsteered(self) -> Sequence[Text]: ...

    @property
    def steered(self) -> Sequence[Text]: ...

    @property
    def steering(self) -> Sequence[Mapping[str, object]]:
        """What the steered texts are steered with; see `described`."""

    def rows(self, index: int, steered: bool) -> Iterator[Piece]:
        """The logits of one of the unsteered or steered texts, piece by piece; a piece is valid until the next."""

    def shift(self, index: int) -> Shift:
        """What steering does to one of the first EFFECT_TEXTS steered texts."""


class Live:
    """A Backend that is asked anew each time."""

    def __init__(
        self, backend: Backend, unsteered: Sequence[Text], steered: Sequence[Text], steering: Sequence[Steering]
    ) -> None:
        """Texts without a token after their prompt are left out.

        Errors: EdgeSteerError if none is left, ModelError where llama.cpp computes otherwise than the backend's model.
        """
        self.unsteered, self.steered = ([t for t in texts if len(t.following)] for texts in (unsteered, steered))
        if not self.unsteered:
            raise EdgeSteerError("no texts to compare on; at least one with a token after its prompt is needed")
        backend.check_comparable(max(len(text.tokens) for text in (*self.unsteered, *self.steered)))
        self.backend, self._with = backend, steering

    @property
    def model(self) -> ModelIdentity:
        return self.backend.model

    @property
    def steering(self) -> list[dict[str, object]]:
        return described(self._with)

    def rows(self, index: int, steered: bool) -> Iterator[Piece]:
        text, steering = (self.steered[index], self._with) if steered else (self.unsteered[index], ())
        for logits in self.backend.logit_rows(text.tokens[:-1], text.prompt, steering):
            yield logits, logsumexp(logits)

    def shift(self, index: int) -> Shift:
        return shift(self.backend, self.steered[index], self._with, first_layer(self.steering))


def shift(backend: Backend, text: Text, steering: Sequence[Steering], first: int) -> Shift:
    """What steering does to a text in a backend. first: the first block that the reference is steered at."""
    wanted = text.effect_rows
    seen = wanted[-1] + text.prompt  # tokens that are looked at
    tokens, last = text.tokens[:seen], backend.model.block_count - 1
    placed = text.placed_positions
    later = np.isin(placed, wanted + text.prompt - 1)
    blocks = sorted({first, last})
    logits, states = [], []
    for given in (steering, ()):
        logits.append(_picked(backend.logit_rows(tokens, text.prompt, given), wanted))
        states.append(backend.record(tokens, blocks, placed.tolist(), prompt=text.prompt, steering=given))
    added = {block: states[0][block] - states[1][block] for block in blocks}
    return Shift(logits[0] - logits[1], added[last][later], added[first])


def _picked(pieces: Iterator[Array], wanted: npt.NDArray[np.int64]) -> Array:
    """Copies of some rows of a stream."""
    found, first = [], 0
    for piece in pieces:
        found.append(piece[wanted[(wanted >= first) & (wanted < first + len(piece))] - first])
        first += len(piece)
    picked: Array = np.concatenate(found)
    return picked
