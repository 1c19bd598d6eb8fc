"""Statistics against slow direct formulas and known values."""

import math

import numpy as np
import pytest
import scipy.stats

from edge_steer.core import stats
from edge_steer.core.errors import EdgeSteerError


def test_log_probabilities_are_those_of_a_slow_sum() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32) * 3
    sums = [math.log(math.fsum(math.exp(x) for x in row)) for row in logits.tolist()]
    np.testing.assert_allclose(stats.logsumexp(logits), sums, atol=1e-6)
    np.testing.assert_allclose(stats.logsumexp(logits.astype(np.float64)), sums, atol=1e-14)
    np.testing.assert_allclose(stats.log_softmax(logits), logits - np.array(sums)[:, None], atol=1e-13)
    large = np.array([[1e4, 0.0], [0.0, 1e4]])
    assert np.isfinite(stats.log_softmax(large)).all() and stats.logsumexp(large).tolist() == [1e4, 1e4]


def test_wilson_against_published_values() -> None:
    # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for successes, trials, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
                                         (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):  # fmt: skip
        assert stats.wilson(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_quantiles_and_cosine() -> None:
    values = np.arange(101, dtype=np.float64)
    found = {"mean": 50, "median": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "max": 100}
    assert stats.quantiles(values) == pytest.approx(found)
    a, b = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])
    assert stats.cosine(a, b) == pytest.approx(math.sqrt(0.5))


def test_too_little_data_raises() -> None:
    for call in (
        lambda: stats.wilson(0, 0),
        lambda: stats.quantiles(np.array([])),
        lambda: stats.cosine(np.zeros(3), np.ones(3)),
        lambda: stats.bootstrap(np.arange(4.0)),
        lambda: stats.bootstrap(np.array([])),
        lambda: stats.combined([], [], []),
        lambda: stats.combined([0.5, 0.5], [1.0, 2.0], [(0.0, 2.0)]),
        lambda: stats.mcnemar(-1, 3),
    ):
        with pytest.raises(EdgeSteerError):
            call()


def test_wilson_against_scipy() -> None:
    for successes, trials in ((0, 1), (1, 1), (3, 7), (99, 100), (812, 1319)):
        slow = scipy.stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
        assert stats.wilson(successes, trials) == pytest.approx((slow.low, slow.high), abs=1e-7)


def test_mcnemar_against_scipy() -> None:
    for lost, gained in ((0, 0), (0, 1), (0, 6), (5, 0), (3, 3), (4, 13), (13, 4), (120, 171), (700, 619)):
        slow = scipy.stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
        assert stats.mcnemar(lost, gained) == pytest.approx(slow, rel=1e-9)
    assert stats.mcnemar(0, 5) > 0.05 > stats.mcnemar(0, 6)


def test_bootstrap_against_scipy_and_the_exact_distribution() -> None:
    rng = np.random.default_rng(1)
    for count in (5, 20, 60):
        values = rng.exponential(size=count)
        tail = scipy.stats.norm.cdf(-math.sqrt(count / (count - 1)) * scipy.stats.t.ppf(0.975, count - 1))
        slow = scipy.stats.bootstrap(
            (values,), np.mean, method="percentile", n_resamples=20000, confidence_level=1 - 2 * tail, random_state=2
        ).confidence_interval
        error = values.std() / math.sqrt(count)
        assert stats.bootstrap(values) == pytest.approx((slow.low, slow.high), abs=0.15 * error)
    fast = stats.bootstrap(values)
    assert fast == stats.bootstrap(values)
    assert fast != stats.bootstrap(values, seed=1)
    # The resampled mean of zeros and ones is binomial, whose quantiles are known.
    coin = np.array([0.0] * 12 + [1.0] * 28)
    tail = scipy.stats.norm.cdf(-math.sqrt(40 / 39) * scipy.stats.t.ppf(0.975, 39))
    exact = scipy.stats.binom.ppf((tail, 1 - tail), 40, 0.7) / 40
    assert stats.bootstrap(coin) == pytest.approx(tuple(exact), abs=1 / 40 + 1e-9)
    assert stats.bootstrap(np.full(9, 0.3)) == pytest.approx((0.3, 0.3))


def test_bootstrap_does_not_depend_on_how_many_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=100)
    whole = stats.bootstrap(values)
    monkeypatch.setattr(stats, "DRAWN_AT_ONCE", 700)
    assert stats.bootstrap(values) == pytest.approx(whole)


def test_intervals_cover_what_they_should() -> None:
    """Coverage of 95% intervals by simulation; the bootstrap is a little short on small skewed samples."""
    rng = np.random.default_rng(5)
    rounds = 400

    def covered(low_high: stats.Interval, truth: float) -> bool:
        return low_high[0] <= truth <= low_high[1]

    for share in (0.1, 0.5, 0.95):
        drawn = rng.binomial(60, share, rounds)
        assert 0.92 <= np.mean([covered(stats.wilson(int(k), 60), share) for k in drawn]) <= 0.99
    for count, least in ((5, 0.86), (12, 0.91), (100, 0.92)):
        samples = rng.gamma(4.0, 2.0, (rounds, count))
        found = [covered(stats.bootstrap(sample, resamples=1000), 8.0) for sample in samples]
        assert least <= np.mean(found) <= 0.985
    # Paired differences: what two methods share cancels out.
    shared = rng.gamma(4.0, 20.0, (rounds, 60))
    differences = (shared + rng.normal(3, 1, shared.shape)) - shared
    intervals = [stats.bootstrap(difference, resamples=1000) for difference in differences]
    assert 0.92 <= np.mean([covered(interval, 3.0) for interval in intervals]) <= 0.98
    assert max(high - low for low, high in intervals) < 1


def test_combined_intervals_cover_the_weighted_mean() -> None:
    assert stats.combined([1.0], [2.0], [(1.0, 4.0)]) == pytest.approx((1.0, 4.0))
    assert stats.combined([0.5, 0.5], [0.0, 0.0], [(-3, 6), (-4, 8)]) == pytest.approx((-2.5, 5.0))
    rng = np.random.default_rng(7)
    sizes, shares = (200, 40, 30), (0.8, 0.4, 0.05)
    weights = [size / sum(sizes) for size in sizes]
    truth = float(np.dot(weights, shares))
    hits = 0
    for _ in range(600):
        right = [int(rng.binomial(size, share)) for size, share in zip(sizes, shares, strict=True)]
        intervals = [stats.wilson(k, size) for k, size in zip(right, sizes, strict=True)]
        low, high = stats.combined(weights, [k / size for k, size in zip(right, sizes, strict=True)], intervals)
        hits += low <= truth <= high
    assert 0.92 <= hits / 600 <= 0.98


def test_an_interval_that_reckons_with_values_it_has_not_met() -> None:
    """A value in 4,000 carries most of the mean: 16 groups of 100 rarely hold one."""
    rng = np.random.default_rng(11)
    rounds, truth = 60, math.exp(3.0**2 / 2)
    hits = {"bootstrap": 0, "heavy-tailed": 0}
    for seed in range(rounds):
        groups = [rng.lognormal(0, 3.0, size=100) for _ in range(16)]
        sums = np.array([(100, group.sum()) for group in groups])
        plain = stats.bootstrap_groups(sums, lambda s: s[..., 1] / s[..., 0], resamples=600, seed=seed)
        tailed = stats.heavy_tailed_mean(groups, floor=1e-6, most=1e6, seed=seed)
        for name, (low, high) in (("bootstrap", plain), ("heavy-tailed", tailed)):
            hits[name] += low <= truth <= high
        assert tailed[0] <= plain[0] * 1.2
        assert tailed[1] >= plain[1] * 0.8
    assert hits["bootstrap"] < 0.8 * rounds
    assert hits["heavy-tailed"] >= 0.95 * rounds


def test_a_light_tail_costs_little_and_rounding_is_no_tail() -> None:
    rng = np.random.default_rng(12)
    groups = [rng.exponential(size=150) for _ in range(16)]
    sums = np.array([(len(group), group.sum()) for group in groups])
    low, high = stats.bootstrap_groups(sums, lambda s: s[..., 1] / s[..., 0])
    light = stats.heavy_tailed_mean(groups, floor=1e-6, most=16)
    assert light[0] == pytest.approx(low, rel=0.02)
    assert high * 0.98 <= light[1] <= 1.25 * high
    noise = [rng.normal(0, 1e-9, size=150) for _ in range(16)]
    assert np.abs(stats.heavy_tailed_mean(noise, floor=1e-6, most=16)).max() < 1e-9
    for group in noise:
        group[7] = 1e-3
    assert stats.heavy_tailed_mean(noise, floor=1e-6, most=16) == pytest.approx((1e-3 / 150,) * 2, rel=1e-3)
    assert stats.heavy_tailed_mean([np.full(5, 2.0)] * 6, floor=3.0, most=16) == pytest.approx((2.0, 2.0))
    with pytest.raises(EdgeSteerError, match="4 groups are too few"):
        stats.heavy_tailed_mean(groups[:4], floor=0.0, most=16)


def test_a_fitted_tail_is_that_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every group the same, so that every resample is: the gain by hand."""
    group = np.sort(np.random.default_rng(3).pareto(0.8, size=100) + 0.01)
    tail, threshold = group[-10:], group[-11]
    shape = float(np.mean(np.log(tail / threshold)))
    grid = np.geomspace(threshold, 50.0, 200_001)
    mean = threshold + float(np.trapezoid((grid / threshold) ** (-1 / shape), grid))
    whole = (group[:-10].sum() + 10 * mean) / 100
    found = stats.heavy_tailed_mean([group] * 8, floor=1e-6, most=50.0)
    assert sorted(found) == pytest.approx(sorted([group.mean(), whole]), rel=1e-4)
    monkeypatch.setattr(stats, "DRAWN_AT_ONCE", 700)
    assert stats.heavy_tailed_mean([group] * 8, floor=1e-6, most=50.0) == pytest.approx(found)
