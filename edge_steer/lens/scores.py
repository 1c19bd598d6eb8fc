"""The score of every token for a direction, and the scores that random directions reach.

Takes directions and an Unembedding, gives numbers. Two readings of a direction s, with u_v the row of token v:

    cosine      <s, u_v> / (|s| |u_v|), without the final norm (Bias-Only Adaptation, section 5)
    norm-gain   <g * s, u_v>, g the gain of the final norm: what s adds to the logits, times the residual stream's RMS
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.vector import Array
from edge_steer.lens.unembedding import Unembedding

Score = Literal["cosine", "norm-gain"]
Scorer = Callable[[Unembedding, Array], Array]


@dataclass(frozen=True)
class NullChoice:
    """Random directions to compare with: how many, the seed that draws them, and the quantile over them that is shown.

    Errors: EdgeSteerError for fewer than 1, or a quantile outside 0..1.
    """

    directions: int = 20
    seed: int = 0
    quantile: float = 0.95

    def __post_init__(self) -> None:
        if self.directions < 1 or not 0 <= self.quantile <= 1:
            raise EdgeSteerError("the null needs at least 1 random direction and a quantile in 0..1")

    def draw(self, hidden: int) -> Array:
        """Directions of length 1, evenly over the sphere: float32 (directions, hidden)."""
        drawn = np.random.default_rng(self.seed).standard_normal((self.directions, hidden))
        units: Array = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
        return units


@dataclass(frozen=True)
class NullLine:
    """What random directions of the same length reach: the quantile of their largest, and of their k-th largest, score.

    Both signs of each direction are counted, so the line holds, negated, for the smallest scores.
    """

    largest: float
    kth: float

    def __mul__(self, factor: float) -> "NullLine":
        return NullLine(self.largest * factor, self.kth * factor)


def cosine(unembedding: Unembedding, directions: Array) -> Array:
    """Cosines with each row, float32 (directions, vocabulary); NaN where a row is zero."""
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    units = directions / lengths
    parts = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for block in unembedding.blocks():
            parts.append(units @ block.T / np.linalg.norm(block, axis=1))
    return np.concatenate(parts, axis=1)


def norm_gain(unembedding: Unembedding, directions: Array) -> Array:
    """Products with each row through the final norm's gain, float32 (directions, vocabulary)."""
    scaled = unembedding.norm.direction(directions)
    return np.concatenate([scaled @ block.T for block in unembedding.blocks()], axis=1)


SCORES: dict[Score, Scorer] = {"cosine": cosine, "norm-gain": norm_gain}


def checked_score(score: str) -> Score:
    """The name itself. Errors: EdgeSteerError for an unknown one."""
    if score not in SCORES:
        raise EdgeSteerError(f"no score {score!r}; allowed are {', '.join(SCORES)}")
    return score


def null_line(scores: Array, k: int, quantile: float) -> NullLine:
    """The line of random directions whose scores are `scores` (directions, vocabulary); NaN is left out."""
    both = np.concatenate([scores, -scores])
    ordered = np.sort(np.where(np.isnan(both), -np.inf, both), axis=1)
    largest, kth = (np.quantile(ordered[:, -place], quantile) for place in (1, min(k, ordered.shape[1])))
    return NullLine(float(largest), float(kth))


def ranked(scores: Array, k: int) -> tuple[list[int], list[int]]:
    """The tokens of the k largest scores, best first, and of the k smallest, smallest first; NaN is left out."""
    usable = np.flatnonzero(~np.isnan(scores))
    order = usable[np.argsort(scores[usable], kind="stable")]
    k = min(k, len(order))
    return order[::-1][:k].tolist(), order[:k].tolist()
