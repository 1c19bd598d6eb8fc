"""How good a vector each layer gives: how well it separates pairs it was not made from, how it depends on the pairs.

Takes recorded states, gives figures for each layer and a suggestion of layers. Everything is seeded. It runs no model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_steer.core.stats import cosine
from edge_steer.extraction.extract import PairStates
from edge_steer.extraction.methods import Floats, Method, coordinates, mean_difference, method_named

MIN_PAIRS = 10
FOLDS = 5
SPLITS = 20
SIZES = (5, 10, 20, 50, 100, 200, 500, 1000)
NEAR_BEST = 0.95  # of the best score: where a layer is still suggested
SUGGESTED = 3  # layers at most


@dataclass(frozen=True)
class LayerQuality:
    """Figures of one layer's vector. The last three are None, or empty, for fewer than MIN_PAIRS pairs.

    norm: of the vector. relative: norm over the mean norm of the states. separation: AUC, the chance that a positive
    state lies further along the vector than a negative one, of pairs held out of the vector, by FOLDS-fold
    cross-validation. stability: by number of pairs, the mean cosine of vectors from two disjoint sets of so many.
    expected: the cosine with the vector of unlimited pairs that the stability lets expect of all pairs.
    """

    layer: int
    norm: float
    relative: float
    separation: float | None
    stability: Mapping[int, float]
    expected: float | None

    @property
    def score(self) -> float:
        """What layers are suggested by: (2 AUC - 1) * stability of the halves; 0 where either is at chance."""
        if self.separation is None:
            return 0.0
        return max(0.0, 2 * self.separation - 1) * max(0.0, self.stability[max(self.stability)])


def measure_layers(states: PairStates, method: str = "mean_difference") -> list[LayerQuality]:
    """The figures of every layer for vectors made by `method`. Errors: VectorError for an unknown method."""
    direct = method_named(method)
    qualities = []
    for row, layer in enumerate(states.layers):
        both = np.concatenate((states.positive[row], states.negative[row]), dtype=np.float64)
        size = float(np.linalg.norm(both, axis=1).mean())
        positive, negative = np.split(coordinates(both), 2)
        norm = float(np.linalg.norm(direct(positive, negative)))
        relative = norm / size if size else 0.0
        if states.pairs < MIN_PAIRS:
            qualities.append(LayerQuality(layer, norm, relative, None, {}, None))
            continue
        curve = stability(positive, negative, direct)
        auc = separation(positive, negative, direct)
        qualities.append(LayerQuality(layer, norm, relative, auc, curve, expected_cosine(curve, states.pairs)))
    return qualities


def suggest_layers(layers: Sequence[LayerQuality], block_count: int) -> tuple[int, ...]:
    """At most SUGGESTED layers to try first: of those whose score is near the best one's, those nearest the middle.

    Scores alone do not tell layers apart that separate pairs equally well, and DenseSteer's text, if not its public
    code, has middle layers steer best. It is a suggestion: only steered answers show which layer steers. No layer if
    all are at chance.
    """
    best = max(layer.score for layer in layers)
    near = [layer.layer for layer in layers if best and layer.score >= NEAR_BEST * best]
    return tuple(sorted(near, key=lambda layer: abs(layer - (block_count - 1) / 2))[:SUGGESTED])


def separation(positive: Floats, negative: Floats, method: Method = mean_difference, *, seed: int = 0) -> float:
    """The mean over folds of the AUC of held-out pairs, projected on the vector of all other pairs."""
    folds = np.array_split(np.random.default_rng(seed).permutation(len(positive)), FOLDS)
    areas = []
    for fold in folds:
        others = np.setdiff1d(np.arange(len(positive)), fold)
        vector = method(positive[others], negative[others])
        areas.append(auc(positive[fold] @ vector, negative[fold] @ vector))
    return float(np.average(areas, weights=[len(fold) for fold in folds]))


def auc(positive: Floats, negative: Floats) -> float:
    """The share of (positive, negative) couples whose positive is the larger; equal ones count half.

    That is the area under the ROC curve (Hanley and McNeil, 1982).
    """
    differences = np.subtract.outer(positive, negative)
    return float(((differences > 0) + 0.5 * (differences == 0)).mean())


def stability(
    positive: Floats, negative: Floats, method: Method = mean_difference, *, seed: int = 0
) -> dict[int, float]:
    """Mean cosine of vectors from two disjoint sets of n pairs, over SPLITS draws: for some n, up to half the pairs."""
    half = len(positive) // 2
    rng = np.random.default_rng(seed)
    curve = {}
    for size in sorted({*(size for size in SIZES if size < half), half}):
        cosines = []
        for _ in range(SPLITS):
            drawn = rng.permutation(len(positive))
            a, b = (method(positive[some], negative[some]) for some in (drawn[:size], drawn[size : 2 * size]))
            cosines.append(cosine(a, b) if a.any() and b.any() else 0.0)
        curve[size] = float(np.mean(cosines))
    return curve


def expected_cosine(curve: Mapping[int, float], pairs: int) -> float:
    """The cosine of the vector of all pairs with the one of unlimited pairs, from the largest sets of `curve`.

    Spearman and Brown's formula (1910) lengthens the sets, and the root of a reliability is the cosine with the
    truth. It holds for means of independent pairs; for other methods it is a guess.
    """
    size = max(curve)
    cosine_of_sets = max(0.0, curve[size])
    factor = pairs / size
    return math.sqrt(factor * cosine_of_sets / (1 + (factor - 1) * cosine_of_sets))
