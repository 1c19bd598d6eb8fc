"""The statistics of llama-perplexity against scipy, slow formulas and known distributions."""

import math
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats

from edge_steer.core import stats
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.stats import bootstrap_groups, logsumexp
from edge_steer.parity import divergence
from edge_steer.parity.divergence import Divergence, Positions, compare_logits, over_texts, summarise

RNG = np.random.default_rng(0)
Logits = npt.NDArray[np.float32]


def logits(rows: int, vocabulary: int, spread: float = 4.0) -> Logits:
    return RNG.normal(0, spread, (rows, vocabulary)).astype(np.float32)


@pytest.fixture(scope="module")
def pair() -> tuple[Logits, Logits, npt.NDArray[np.int64]]:
    reference = logits(60, 3000)
    other = (reference + RNG.normal(0, 0.05, reference.shape) + 7).astype(np.float32)
    return reference, other, RNG.integers(0, 3000, 60)


def test_every_position_is_that_of_scipy(pair: tuple[Logits, Logits, npt.NDArray[np.int64]]) -> None:
    reference, other, following = pair
    found = compare_logits(reference, logsumexp(reference), other, following)
    for row in range(len(reference)):
        p, q = (np.exp(x[row].astype(np.float64) - x[row].max()) for x in (reference, other))
        p, q = p / p.sum(), q / q.sum()
        assert found.kl[row] == pytest.approx(scipy.stats.entropy(p, q), abs=5e-7)
        assert found.same[row] == (p.argmax() == q.argmax())
        assert found.delta_p[row] == pytest.approx(q[following[row]] - p[following[row]], abs=1e-7)
        assert found.nll[row] == pytest.approx(-np.log(q[following[row]]), abs=1e-5)


def test_two_outcomes_have_the_divergence_of_a_coin() -> None:
    shares = np.array([0.5, 0.9, 0.999])
    reference, other = (np.log(np.stack([p, 1 - p], axis=1)).astype(np.float32) for p in (shares, np.full(3, 0.5)))
    found = compare_logits(reference, logsumexp(reference), other, np.zeros(3, dtype=np.int64))
    exact = [p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)) for p in shares]
    assert found.kl == pytest.approx(exact, abs=2e-7)
    assert found.delta_p == pytest.approx(0.5 - shares, abs=1e-6)


def test_two_normal_distributions_have_the_divergence_of_the_formula() -> None:
    """On a fine grid: log(s2 / s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2; tokens have density times step."""
    grid = np.linspace(-12, 12, 4001)
    step = grid[1] - grid[0]
    for (mean, width), (other_mean, other_width) in (((0, 1), (0.5, 1)), ((0, 1), (0, 1.3)), ((1, 0.7), (0.2, 1.1))):
        log_p, log_q = scipy.stats.norm.logpdf(grid, [[mean], [other_mean]], [[width], [other_width]])
        # any constant may be added to the logits of either side
        ours, theirs = (x[None].astype(np.float32) for x in (log_p - 3, log_q + 5))
        found = compare_logits(ours, logsumexp(ours), theirs, np.array([2100]))
        exact = math.log(other_width / width) + (width**2 + (mean - other_mean) ** 2) / (2 * other_width**2) - 0.5
        assert found.kl[0] == pytest.approx(exact, abs=2e-6)
        assert found.delta_p[0] == pytest.approx(step * (math.exp(log_q[2100]) - math.exp(log_p[2100])), abs=1e-8)
        assert found.same[0] == (mean == other_mean)


def test_a_vocabulary_of_qwen_is_exact_to_a_millionth() -> None:
    reference = logits(3, 151936)
    other = (reference + RNG.normal(0, 0.3, reference.shape) - 11).astype(np.float32)
    found = compare_logits(reference, logsumexp(reference), other, np.arange(3))
    for row in range(3):
        p, q = (scipy.special.softmax(x[row].astype(np.float64)) for x in (reference, other))
        assert found.kl[row] == pytest.approx(scipy.stats.entropy(p, q), abs=1e-6)


def test_positions_do_not_depend_on_what_is_worked_on_at_once(
    pair: tuple[Logits, Logits, npt.NDArray[np.int64]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, other, following = pair
    total, reference = logsumexp(reference), reference.copy()
    reference[7, 100:200] = -np.inf  # one of the blocks lacks some
    whole = compare_logits(reference, total, other, following)
    for block in (1, 3 * 3000, 7 * 3000 + 1):
        monkeypatch.setattr(divergence, "BLOCK", block)
        parts = compare_logits(reference, total, other, following)
        for name in ("kl", "same", "nll", "reference_nll"):
            assert np.array_equal(getattr(parts, name), getattr(whole, name))


def test_what_is_no_number_is_refused() -> None:
    """A damaged file must not come out as one that lacks data."""
    reference, other = logits(5, 40), logits(5, 40)
    total, following = logsumexp(reference), np.arange(5)
    never = other.copy()
    never[2, 3] = -np.inf
    nothing = other.copy()
    nothing[2, 3] = np.nan
    for wrong in (never, nothing):
        with pytest.raises(EdgeSteerError, match="not a finite number"):
            compare_logits(reference, total, wrong, following)
    # a token that neither can say adds nothing
    reference[2, 3] = -np.inf
    found = compare_logits(reference, logsumexp(reference), never, following)
    p, q = (scipy.special.softmax(x[2].astype(np.float64)) for x in (reference, never))
    assert found.kl[2] == pytest.approx(scipy.stats.entropy(p, q), abs=5e-7)


def test_a_model_against_itself_is_nowhere_apart() -> None:
    same = logits(20, 500)
    found = summarise([compare_logits(same, logsumexp(same), same + 3, np.arange(20))])
    assert found.kl["max"] < 1e-6
    assert found.top1 == 1
    assert found.perplexity_ratio == pytest.approx(1, abs=1e-6)


def test_tokens_left_out_of_the_reference_add_nothing(pair: tuple[Logits, Logits, npt.NDArray[np.int64]]) -> None:
    reference, other, _ = pair
    total = logsumexp(reference)
    kept = reference > total[:, None] - 16
    cut = np.where(kept, reference, -np.inf).astype(np.float32)
    found = compare_logits(cut, total, other, reference.argmax(axis=1))
    p = np.exp(reference - total[:, None].astype(np.float64))
    log_ratio = reference - total[:, None] - (other - logsumexp(other)[:, None])
    assert not kept.all()
    assert found.kl == pytest.approx(np.where(kept, p * log_ratio, 0).sum(axis=1), abs=5e-7)


def test_the_summary_is_that_of_llama_perplexity() -> None:
    """mean_and_uncertainty, covariance and percentile of llama.cpp's perplexity.cpp, written out."""
    texts = [made(int(count)) for count in RNG.integers(50, 90, 12)]
    found = summarise(texts)
    every = Positions.joined(texts)
    count = len(every)

    def uncertainty(values: npt.NDArray[np.float64]) -> float:
        return math.sqrt(((values**2).sum() / count - values.mean() ** 2) / (count - 1))

    covariance = ((every.nll * every.reference_nll).mean() - every.nll.mean() * every.reference_nll.mean()) / (
        count - 1
    )
    of_log = math.sqrt(uncertainty(every.nll) ** 2 + uncertainty(every.reference_nll) ** 2 - 2 * covariance)
    assert found.perplexity_ratio == pytest.approx(found.perplexity / found.reference_perplexity)
    assert found.ratio_error == pytest.approx(found.perplexity_ratio * of_log, rel=1e-6)
    assert found.kl_error == pytest.approx(uncertainty(every.kl))
    ordered = np.sort(every.kl)
    for name, share in (("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)):
        place = share * (count - 1)
        low = int(place)
        assert found.kl[name] == pytest.approx(
            (1 - place + low) * ordered[low] + (place - low) * ordered[min(low + 1, count - 1)]
        )
    assert found.delta_p["rms"] == pytest.approx(math.sqrt((every.delta_p**2).mean()))
    assert found.delta_p["max"] == np.abs(every.delta_p).max()
    assert (found.texts, found.positions) == (12, count)


def test_the_summary_is_that_of_scipy() -> None:
    texts = [made(int(count)) for count in RNG.integers(50, 90, 12)]
    found = summarise([*texts[:5], made(0), *texts[5:]])  # a text without positions counts for nothing
    every = Positions.joined(texts)
    assert found.texts == 12
    assert found.kl["mean"] == pytest.approx(math.fsum(every.kl) / len(every))
    assert found.kl["max"] == max(every.kl)
    assert found.kl_error == pytest.approx(scipy.stats.sem(every.kl, ddof=1))
    assert found.top1 == sum(every.same) / len(every)
    for name, share in (("median", 50), ("p90", 90), ("p99", 99), ("p99.9", 99.9)):
        assert found.kl[name] == pytest.approx(scipy.stats.scoreatpercentile(every.kl, share))
    change = np.exp(-every.nll) - np.exp(-every.reference_nll)
    assert found.delta_p["mean"] == pytest.approx(change.mean())
    percentiles = (0.1, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)  # those that llama-perplexity prints
    assert set(found.delta_p) == {"mean", "rms", "max", *(f"p{share:g}" for share in percentiles)}
    for share in percentiles:
        assert found.delta_p[f"p{share:g}"] == pytest.approx(scipy.stats.scoreatpercentile(change, share))
    assert found.perplexity == pytest.approx(scipy.stats.gmean(np.exp(every.nll)))
    assert found.reference_perplexity == pytest.approx(scipy.stats.gmean(np.exp(every.reference_nll)))
    assert found.perplexity_ratio == pytest.approx(scipy.stats.gmean(np.exp(every.nll - every.reference_nll)))


def test_the_summary_of_a_known_distribution() -> None:
    """KL exponential of mean 1, log ratio normal of mean 0.1; a text has 20,000 positions."""
    rng = np.random.default_rng(2)

    def text() -> Positions:
        told = np.full(20_000, 2.0)
        ratio = rng.normal(0.1, 0.2, len(told))
        return Positions(
            rng.exponential(1, len(told)), (rng.random(len(told)) < 0.9).astype(np.float64), told + ratio, told
        )

    found = summarise([text() for _ in range(10)])
    for name, exact, within in (
        ("mean", 1, 0.01), ("median", math.log(2), 0.01), ("p90", math.log(10), 0.03), ("p99", math.log(100), 0.1),
        ("p99.9", math.log(1000), 0.3),
    ):  # fmt: skip
        assert found.kl[name] == pytest.approx(exact, abs=within)
    assert found.kl_error == pytest.approx(1 / math.sqrt(200_000), rel=0.02)
    assert found.top1 == pytest.approx(0.9, abs=0.003)
    assert found.perplexity_ratio == pytest.approx(math.exp(0.1), rel=0.002)
    assert found.ratio_error == pytest.approx(math.exp(0.1) * 0.2 / math.sqrt(200_000), rel=0.02)
    for share in (0.01, 0.5, 0.99):
        ratio = 0.1 + 0.2 * scipy.stats.norm.ppf(1 - share)
        assert found.delta_p[f"p{100 * share:g}"] == pytest.approx(math.exp(-2) * (math.exp(-ratio) - 1), abs=1e-3)


def test_intervals_need_texts_and_hold_their_figure() -> None:
    few = summarise([made(80) for _ in range(4)])
    assert few.kl_interval is few.top1_interval is few.ratio_interval is few.delta_p_interval is None
    many: Divergence = summarise([made(80) for _ in range(20)])
    for value, interval in (
        (many.kl["mean"], many.kl_interval),
        (many.top1, many.top1_interval),
        (many.delta_p["rms"], many.delta_p_interval),
        (many.perplexity_ratio, many.ratio_interval),
    ):
        assert interval
        assert interval[0] < value < interval[1]
    with pytest.raises(EdgeSteerError, match="no positions"):
        summarise([])


MEAN, OF_TEXT, OF_POSITION, TOLD = 0.05, 0.1, 0.3, 0.7  # of the log ratio, between and within texts; the reference's
SPREAD = OF_TEXT**2 + OF_POSITION**2
TRUTH = {
    "kl": 1.0,
    "top1": 0.9,
    "ratio": math.exp(MEAN),
    "delta_p": math.exp(-TOLD) * math.sqrt(math.exp(-2 * MEAN + 2 * SPREAD) - 2 * math.exp(-MEAN + SPREAD / 2) + 1),
}


@pytest.mark.parametrize(("texts", "least"), [(8, 0.85), (16, 0.87), (40, 0.89)])
def test_intervals_over_texts_hold_the_truth_as_often_as_they_say(
    texts: int, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All four, of texts of unequal length whose positions are alike within a text.

    Short of 95% where texts are few and KL is skewed; intervals over positions are far too narrow.
    """
    monkeypatch.setattr(divergence, "bootstrap_groups", partial(bootstrap_groups, resamples=600))
    monkeypatch.setattr(stats, "TAIL_RESAMPLES", 200)
    rng = np.random.default_rng(texts)
    held, narrow, rounds = dict.fromkeys(TRUTH, 0), 0, 300
    for seed in range(rounds):
        found = summarise([alike(rng) for _ in range(texts)], seed=seed)
        for name in held:
            interval = getattr(found, f"{name}_interval")
            held[name] += interval[0] <= TRUTH[name] <= interval[1]
        narrow += abs(found.kl["mean"] - TRUTH["kl"]) <= 1.96 * found.kl_error
    assert all(least <= count / rounds <= 0.985 for count in held.values()), held
    assert narrow / rounds < 0.6


@pytest.mark.parametrize(("texts", "least"), [(8, 0.85), (16, 0.87), (40, 0.89)])
def test_intervals_of_cosine_and_length_hold_the_truth(
    texts: int, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of sums of products over texts, as the effect of steering takes them: b = 1.1 a + noise that varies by text."""
    monkeypatch.setattr(divergence, "bootstrap_groups", partial(bootstrap_groups, resamples=600))
    rng = np.random.default_rng(texts)
    noise = 0.3**2 + 0.15**2  # mean square of what is drawn below
    truth = (1.1 / math.sqrt(1.1**2 + noise), math.sqrt(1.1**2 + noise))
    held, rounds = np.zeros(2), 300
    for seed in range(rounds):
        size, off = rng.uniform(0.5, 1.5, (texts, 1)), np.abs(rng.normal(0.3, 0.15, (texts, 1)))
        a = size * rng.standard_normal((texts, 160))
        b = 1.1 * a + size * off * rng.standard_normal((texts, 160))
        sums = np.stack([(a * b).sum(axis=1), (a * a).sum(axis=1), (b * b).sum(axis=1)], axis=1)
        intervals = (
            over_texts(sums, lambda s: s[..., 0] / np.sqrt(s[..., 1] * s[..., 2]), seed),
            over_texts(sums, lambda s: np.sqrt(s[..., 2] / s[..., 1]), seed),
        )
        held += [interval is not None and interval[0] <= exact <= interval[1]
                 for exact, interval in zip(truth, intervals, strict=True)]  # fmt: skip
    assert (held / rounds >= least).all(), held
    assert (held / rounds <= 0.985).all(), held


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(EdgeSteerError, match="4 groups are too few"):
        bootstrap_groups(np.ones((4, 2)), lambda s: s[..., 1] / s[..., 0])


def alike(rng: np.random.Generator) -> Positions:
    """A text whose positions share a level of KL, a share of same first choices and a part of the log ratio."""
    count = int(rng.integers(20, 60))
    ratio = MEAN + rng.normal(0, OF_TEXT) + rng.normal(0, OF_POSITION, count)
    return Positions(
        kl=rng.exponential(1) * rng.exponential(1, count),
        same=(rng.random(count) < rng.beta(9, 1)).astype(np.float64),
        nll=TOLD + ratio,
        reference_nll=np.full(count, TOLD),
    )


def made(count: int) -> Positions:
    """Positions as of a text."""
    reference = RNG.exponential(1, count)
    return Positions(
        kl=RNG.exponential(0.01, count),
        same=(RNG.random(count) < 0.9).astype(np.float64),
        nll=np.abs(reference + RNG.normal(0, 0.1, count)),
        reference_nll=reference,
    )
