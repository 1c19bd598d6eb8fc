"""A vector read as tokens: for each layer those that its direction raises and lowers most.

Takes a SteeringVector and an Unembedding, gives a Reading, a value that is JSON as it stands. It runs no model.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edge_steer.core.errors import VectorError
from edge_steer.core.vector import Array, SteeringVector
from edge_steer.lens.geometry import Geometry, geometry
from edge_steer.lens.scores import SCORES, NullChoice, NullLine, Score, checked_score, null_line, ranked
from edge_steer.lens.unembedding import Unembedding
from edge_steer.lens.vocabulary import Vocabulary

FORMAT = "edge-steer lens 1"
TOP = 50  # tokens of each layer, as in the paper
NULL = NullChoice()


@dataclass(frozen=True)
class TokenScore:
    """A token, its text and its score. special: it is no text, a control token or an unused row."""

    token: int
    text: str
    score: float
    special: bool


@dataclass(frozen=True)
class LayerReading:
    """What one layer says. top: tokens of the largest scores, best first; bottom: of the smallest, smallest first.

    A layer whose direction is zero says nothing: it has no null line and no tokens.
    """

    layer: int
    norm: float
    null: NullLine | None
    top: tuple[TokenScore, ...]
    bottom: tuple[TokenScore, ...]

    @property
    def beyond(self) -> int:
        """How many of the top tokens score higher than the largest score of random directions."""
        return sum(one.score > self.null.largest for one in self.top) if self.null else 0


@dataclass(frozen=True)
class Origin:
    """What was read by what. vector: its digest. unembedding: the tensor's name and type in its file."""

    vector: str
    vector_model: str
    model: str
    unembedding: str
    tied: bool

    @classmethod
    def of(cls, vector: SteeringVector, unembedding: Unembedding) -> "Origin":
        tensor = f"{unembedding.name}, {unembedding.tensor.kind}"
        return cls(vector.digest, str(vector.model), str(unembedding.model), tensor, unembedding.tied)


@dataclass(frozen=True)
class Reading:
    """A vector read layer by layer."""

    origin: Origin
    score: Score
    null: NullChoice
    layers: tuple[LayerReading, ...]
    geometry: Geometry

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}


def read_vector(
    vector: SteeringVector,
    unembedding: Unembedding,
    score: Score = "cosine",
    *,
    layers: Sequence[int] | None = None,
    top: int = TOP,
    null: NullChoice = NULL,
) -> Reading:
    """The tokens that each layer of a vector raises and lowers most.

    layers: None is all of the vector's. top: how many tokens at either end. null: the random directions each score is
    compared with. Errors: VectorError for a vector of another model, a missing layer, or one that is zero everywhere;
    EdgeSteerError for an unknown score.
    """
    score_of = SCORES[checked_score(score)]
    vector.check_fits(unembedding.model)
    chosen = vector.layers if layers is None else vector.check_layers(layers)
    norms = {layer: norm for layer, norm in vector.norms.items() if layer in chosen}
    nonzero = [layer for layer in chosen if norms[layer]]
    if not nonzero:
        raise VectorError("the vector is zero at every layer asked for; there is nothing to read")
    random = null.draw(unembedding.model.hidden_size)
    scores = score_of(unembedding, np.concatenate([np.stack([vector.directions[layer] for layer in nonzero]), random]))
    line = null_line(scores[len(nonzero) :], top, null.quantile)
    lines = {layer: line if score == "cosine" else line * norms[layer] for layer in nonzero}
    by_layer = dict(zip(nonzero, scores, strict=False))
    return Reading(
        Origin.of(vector, unembedding),
        score,
        null,
        tuple(
            _layer(layer, norms[layer], lines[layer], by_layer[layer], unembedding.vocabulary, top)
            if layer in by_layer
            else LayerReading(layer, 0.0, None, (), ())
            for layer in chosen
        ),
        geometry(vector if layers is None else vector.at(chosen)),
    )


def token_scores(tokens: Sequence[int], scores: Array, vocabulary: Vocabulary) -> tuple[TokenScore, ...]:
    """The tokens with their texts and scores. scores: of the whole vocabulary."""
    return tuple(
        TokenScore(token, vocabulary.texts[token], float(scores[token]), token in vocabulary.special)
        for token in tokens
    )


def _layer(layer: int, norm: float, null: NullLine, scores: Array, vocabulary: Vocabulary, count: int) -> LayerReading:
    top, bottom = (token_scores(tokens, scores, vocabulary) for tokens in ranked(scores, count))
    return LayerReading(layer, norm, null, top, bottom)
