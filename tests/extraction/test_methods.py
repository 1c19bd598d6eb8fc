"""methods.py: each direction against another way to the same one."""

import numpy as np
import pytest
import scipy.optimize

from edge_steer.core.errors import RequestError, VectorError
from edge_steer.core.stats import cosine
from edge_steer.extraction.methods import LOSS_WEIGHT, METHODS, Floats, coordinates
from edge_steer.extraction.pooling import POOLINGS, pooling_named


def states(pairs: int, hidden: int, gap: float = 1.0, seed: int = 0) -> tuple[Floats, Floats]:
    """Pairs with a common part, a fixed direction that parts them, and noise, around a point far from zero."""
    rng = np.random.default_rng(seed)
    common = 3 * rng.standard_normal((pairs, hidden)) + 10
    direction = rng.standard_normal(hidden)
    noise = rng.standard_normal((2, pairs, hidden))
    return common + gap * direction + noise[0], common - gap * direction + noise[1]


def slow_mean(positive: Floats, negative: Floats) -> Floats:
    total = np.zeros(positive.shape[1])
    for up, down in zip(positive, negative, strict=True):
        total += up - down
    return total / len(positive)


def slow_pca(positive: Floats, negative: Floats) -> Floats:
    """By the eigenvectors of the covariance of what repeng calls "pca_center": states about their pair's middle."""
    middle = (positive + negative) / 2
    rows = np.concatenate((positive - middle, negative - middle))
    return leading(np.cov(rows.T), positive, negative)


def slow_pca_centred(positive: Floats, negative: Floats) -> Floats:
    return leading(np.cov((positive - negative).T), positive, negative)


def leading(covariance: Floats, positive: Floats, negative: Floats) -> Floats:
    axis = np.linalg.eigh(covariance)[1][:, -1]
    wins = np.sign(((positive - negative) @ axis).mean())  # the sign by the pairs
    along: Floats = wins * axis * abs((positive - negative).mean(axis=0) @ axis)
    return along


def slow_logistic(positive: Floats, negative: Floats) -> Floats:
    """By scipy's general minimiser on all hidden dimensions."""
    both = np.concatenate((positive, negative))
    both = both - both.mean(axis=0)
    both = both / np.sqrt((np.linalg.norm(both, axis=1) ** 2).mean())
    side = np.array([1.0] * len(positive) + [-1.0] * len(negative))

    def loss(w: Floats) -> tuple[float, Floats]:
        margins = side * (both @ w)
        gradient = w - LOSS_WEIGHT * both.T @ (side / (1 + np.exp(margins)))
        return float(w @ w / 2 + LOSS_WEIGHT * np.log1p(np.exp(-margins)).sum()), gradient

    start = np.zeros(both.shape[1])
    found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10})
    unit = found.x / np.linalg.norm(found.x)
    along: Floats = unit * (unit @ (positive - negative).mean(axis=0))
    return along


SLOW = {
    "mean_difference": slow_mean,
    "pca": slow_pca,
    "pca_centred": slow_pca_centred,
    "logistic": slow_logistic,
    "class_means": slow_mean,
}


def test_every_method_is_held_against_a_slow_formula() -> None:
    assert SLOW.keys() == METHODS.keys()


@pytest.mark.parametrize(("pairs", "hidden"), [(30, 12), (12, 40)])
@pytest.mark.parametrize("method", METHODS)
def test_methods_equal_their_slow_formulas(method: str, pairs: int, hidden: int) -> None:
    positive, negative = states(pairs, hidden)
    expected = SLOW[method](positive, negative)
    found = METHODS[method](positive, negative)
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


def test_methods_are_not_one_and_the_same() -> None:
    positive, negative = states(30, 12, gap=0.3)
    found = [METHODS[method](positive, negative) for method in METHODS if method != "class_means"]
    found.append(METHODS["class_means"](positive, negative[:20]))  # of as many it is the mean difference
    for i, a in enumerate(found):
        for b in found[:i]:
            assert cosine(a, b) < 0.999


@pytest.mark.parametrize("method", METHODS)
def test_pairs_fix_sign_and_length(method: str) -> None:
    """Along the vector the pairs' mean difference is as long as the vector; swapped pairs give its negative."""
    positive, negative = states(20, 30)
    direct = METHODS[method]
    vector = direct(positive, negative)
    assert (positive - negative).mean(axis=0) @ vector == pytest.approx(vector @ vector)
    np.testing.assert_allclose(direct(negative, positive), -vector, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_methods_follow_rotation_shift_and_scale(method: str) -> None:
    positive, negative = states(20, 30)
    direct = METHODS[method]
    vector = direct(positive, negative)
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((30, 30)))[0]
    np.testing.assert_allclose(direct(positive @ rotation, negative @ rotation), vector @ rotation, atol=1e-8)
    np.testing.assert_allclose(direct(1e3 * positive + 7, 1e3 * negative + 7), 1e3 * vector, atol=1e-4)
    positive_there, negative_there = np.split(coordinates(np.concatenate((positive, negative))), 2)
    assert np.linalg.norm(direct(positive_there, negative_there)) == pytest.approx(np.linalg.norm(vector))


@pytest.mark.parametrize("method", METHODS)
def test_float32_states_are_summed_in_float64_and_equal_sides_give_zero(method: str) -> None:
    positive, negative = (side.astype(np.float32) for side in states(20, 30))
    found = METHODS[method](positive, negative)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, METHODS[method](positive.astype(np.float64), negative.astype(np.float64)))
    assert not METHODS[method](positive, positive).any()
    assert not METHODS[method](np.zeros((3, 4)), np.zeros((3, 4))).any()


def test_logistic_finds_what_separates_where_the_mean_is_misled() -> None:
    """One dimension is noise with a few giants; it moves the mean difference, not the regression."""
    rng = np.random.default_rng(0)
    positive, negative = rng.standard_normal((2, 40, 5))
    positive[:, 0] += 4
    positive[:2, 1] += 60
    mean = METHODS["mean_difference"](positive, negative)
    weights = METHODS["logistic"](positive, negative)
    truth = np.eye(5)[0]
    assert cosine(weights, truth) > cosine(mean, truth) + 0.03


def test_poolings() -> None:
    assert {name: pooling_named(name)(10) for name in ("last", "last:4", "mean", "token:0", "token:-10")} == {
        "last": (9, 10),
        "last:4": (6, 10),
        "mean": (0, 10),
        "token:0": (0, 1),
        "token:-10": (0, 1),
    }
    for name in ("last:11", "token:10", "token:-11"):
        with pytest.raises(RequestError, match=f"an answer of 10 tokens is too short for pooling {name}"):
            pooling_named(name)(10)
    for name in (
        "last:0",
        "last:-1",
        "last:x",
        "last:",
        "last:1.5",
        "mean:2",
        "token",
        "token:",
        "token:1:2",
        "",
        "max",
    ):
        with pytest.raises(VectorError, match=r"no pooling .*; poolings are last, last:K, mean, token:I"):
            pooling_named(name)
    assert set(POOLINGS) == {"last", "mean", "token"}
