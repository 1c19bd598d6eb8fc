"""Statistics against slow direct formulas and known values."""

import math

import numpy as np
import pytest

from edge_steer import stats
from edge_steer.errors import EdgeSteerError


def test_kl_divergence_is_the_sum_over_the_vocabulary() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 40)).astype(np.float32) * 3
    for row_a, row_b, found in zip(a, b, stats.kl_divergence(a, b), strict=True):
        p = [math.exp(x) for x in row_a.tolist()]
        q = [math.exp(x) for x in row_b.tolist()]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        slow = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        assert found == pytest.approx(slow, rel=1e-6)
    assert stats.kl_divergence(a, a + 7).max() < 1e-12
    large = np.array([[1e4, 0.0], [0.0, 1e4]])
    assert np.isfinite(stats.kl_divergence(large, large[::-1])).all()


def test_wilson_against_published_values() -> None:
    # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for successes, trials, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
                                         (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):  # fmt: skip
        assert stats.wilson(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_quantiles_and_cosine() -> None:
    values = np.arange(101, dtype=np.float64)
    assert stats.quantiles(values) == {"mean": 50, "median": 50, "p90": 90, "p99": 99, "max": 100}
    a, b = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])
    assert stats.cosine(a, b) == pytest.approx(math.sqrt(0.5))


def test_too_little_data_raises() -> None:
    for call in (
        lambda: stats.wilson(0, 0),
        lambda: stats.quantiles(np.array([])),
        lambda: stats.cosine(np.zeros(3), np.ones(3)),
    ):
        with pytest.raises(EdgeSteerError):
            call()
