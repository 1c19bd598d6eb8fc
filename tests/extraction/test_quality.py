"""separation.py: each figure against a slow formula or a simulation whose answer is known."""

import numpy as np
import pytest

from edge_steer.core.stats import cosine
from edge_steer.core.vector import ModelIdentity
from edge_steer.extraction.extract import PairStates
from edge_steer.extraction.methods import METHODS, Floats, mean_difference
from edge_steer.extraction.quality import (
    FOLDS,
    LayerQuality,
    auc,
    expected_cosine,
    measure_layers,
    separation,
    stability,
    suggest_layers,
)


def states(pairs: int, hidden: int, gaps: tuple[float, ...], seed: int = 0) -> PairStates:
    """A layer for each gap: noise of size 1 in every dimension, and a direction of that length between the sides."""
    rng = np.random.default_rng(seed)
    positive, negative = rng.standard_normal((2, len(gaps), pairs, hidden))
    for row, gap in enumerate(gaps):
        direction = rng.standard_normal(hidden)
        positive[row] += gap * direction / np.linalg.norm(direction)
    model = ModelIdentity("noise", "llama", hidden, len(gaps))
    layers = tuple(range(len(gaps)))
    once = tuple(range(pairs))
    return PairStates(positive.astype(np.float32), negative.astype(np.float32), (once, once), layers, model, "last", "")


def test_auc_counts_couples() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 6, 9).astype(float), rng.integers(-2, 5, 7).astype(float)
    count = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative)
    assert auc(positive, negative) == count / 63
    assert auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1
    assert auc(np.ones(3), np.ones(4)) == 0.5


@pytest.mark.parametrize("gap", [0.0, 2.0])
def test_separation_is_of_held_out_pairs(gap: float) -> None:
    """In 200 dimensions a vector separates the 20 pairs it is made of; pairs held out say how well it does."""
    held_out = []
    for seed in range(10):
        found = states(20, 200, (gap,), seed)
        positive, negative = found.positive[0].astype(np.float64), found.negative[0].astype(np.float64)
        vector = mean_difference(positive, negative)
        assert auc(positive @ vector, negative @ vector) > 0.95
        held_out.append(separation(positive, negative))
    assert np.mean(held_out) == pytest.approx(0.5, abs=0.12) if gap == 0 else 0.6 < np.mean(held_out) < 0.95


def test_no_pair_is_projected_on_a_vector_made_with_it() -> None:
    seen: list[Floats] = []

    def spy(positive: Floats, negative: Floats) -> Floats:
        seen.append(positive[:, 0])
        return mean_difference(positive, negative)

    numbers = np.arange(23.0)[:, None]
    separation(numbers, numbers - 1, spy)  # type: ignore[arg-type]
    assert len(seen) == FOLDS
    held = [set(range(23)) - set(made.astype(int)) for made in seen]
    assert sorted(pair for fold in held for pair in fold) == list(range(23))


def test_stability_follows_the_formula_of_the_mean() -> None:
    """cos of two means of n pairs: gap^2 / (gap^2 + 2 hidden / n), the noise of a difference being sqrt(2)."""
    gap, hidden = 3.0, 100
    curves = [stability(*sides(states(100, hidden, (gap,), seed))) for seed in range(5)]
    assert set(curves[0]) == {5, 10, 20, 50}
    for size in curves[0]:
        found = np.mean([curve[size] for curve in curves])
        assert found == pytest.approx(gap**2 / (gap**2 + 2 * hidden / size), abs=0.04)


def test_sets_are_disjoint_and_sizes_end_at_half() -> None:
    made: list[set[int]] = []

    def spy(positive: Floats, negative: Floats) -> Floats:
        made.append(set(positive[:, 0].astype(int)))
        return mean_difference(positive, negative)

    numbers = np.arange(15.0)[:, None]
    curve = stability(numbers, numbers - 1, spy)  # type: ignore[arg-type]
    assert set(curve) == {5, 7}
    for a, b in zip(made[::2], made[1::2], strict=True):
        assert len(a) == len(b) and not a & b


def test_the_expected_cosine_is_what_the_truth_shows() -> None:
    """Vectors of 60 pairs against the direction that made them; the estimate sees the pairs alone."""
    gap, hidden = 2.0, 100
    estimates, truths = [], []
    for seed in range(30):
        found = states(60, hidden, (gap,), seed)
        positive, negative = sides(found)
        truth = sides(states(60, hidden, (gap + 1000,), seed))[0][0] - positive[0]
        truths.append(cosine(mean_difference(positive, negative), truth))
        estimates.append(expected_cosine(stability(positive, negative), 60))
    assert np.mean(estimates) == pytest.approx(np.mean(truths), abs=0.03)
    assert 0.6 < np.mean(truths) < 0.9
    assert expected_cosine({25: -0.2}, 50) == 0


def sides(found: PairStates) -> tuple[Floats, Floats]:
    return found.positive[0].astype(np.float64), found.negative[0].astype(np.float64)


@pytest.mark.parametrize("method", METHODS)
def test_measuring_in_few_coordinates_is_measuring_the_states(method: str) -> None:
    found = states(12, 60, (0.5, 4.0))
    for quality, row in zip(measure_layers(found, method), (0, 1), strict=True):
        positive, negative = found.positive[row].astype(np.float64), found.negative[row].astype(np.float64)
        vector = METHODS[method](positive, negative)
        assert quality.norm == pytest.approx(np.linalg.norm(vector))
        both = np.concatenate((positive, negative))
        assert quality.relative == pytest.approx(quality.norm / np.linalg.norm(both, axis=1).mean())
        assert quality.separation == pytest.approx(separation(positive, negative, METHODS[method]))
        direct = stability(positive, negative, METHODS[method])
        assert quality.stability == pytest.approx(direct)


def test_suggested_are_good_layers_near_the_middle() -> None:
    qualities = measure_layers(states(40, 50, (0.0, 12.0, 12.0, 12.0, 12.0, 12.0, 0.5)))
    assert [quality.score > 0.8 for quality in qualities] == [False, True, True, True, True, True, False]
    assert suggest_layers(qualities, 7) == (3, 2, 4)
    assert suggest_layers(qualities[:3], 7) == (2, 1)
    chance = LayerQuality(0, 1.0, 0.1, 0.4, {5: 0.2}, 0.3)
    assert chance.score == 0
    assert suggest_layers([chance], 1) == ()


def test_too_few_pairs_have_norms_alone() -> None:
    [quality] = measure_layers(states(9, 20, (3.0,)))
    assert quality.norm > 0
    assert (quality.separation, quality.stability, quality.expected, quality.score) == (None, {}, None, 0)
    [enough] = measure_layers(states(10, 20, (3.0,)))
    assert enough.separation is not None and set(enough.stability) == {5}


def test_a_layer_without_difference_is_at_chance() -> None:
    found = states(12, 20, (1.0,))
    equal = PairStates(found.positive, found.positive, found.different, found.layers, found.model, "last", "")
    [quality] = measure_layers(equal)
    assert quality.norm == pytest.approx(0, abs=1e-9)
    assert quality.score < 0.3
    zero = np.zeros((12, 20))
    assert stability(zero, zero)[6] == 0
    assert separation(zero, zero) == 0.5
