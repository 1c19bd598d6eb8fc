"""The statistics of llama-perplexity against scipy, slow formulas and known distributions."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats

from edge_steer.divergence import Divergence, Positions, compare, summarise
from edge_steer.errors import EdgeSteerError
from edge_steer.stats import bootstrap_groups, logsumexp

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
    found = compare(reference, logsumexp(reference), other, following)
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
    found = compare(reference, logsumexp(reference), other, np.zeros(3, dtype=np.int64))
    exact = [p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)) for p in shares]
    assert found.kl == pytest.approx(exact, abs=2e-7)
    assert found.delta_p == pytest.approx(0.5 - shares, abs=1e-6)


def test_a_model_against_itself_is_nowhere_apart() -> None:
    same = logits(20, 500)
    found = summarise([compare(same, logsumexp(same), same + 3, np.arange(20))])
    assert found.kl["max"] < 1e-6
    assert found.top1 == 1
    assert found.perplexity_ratio == pytest.approx(1, abs=1e-6)


def test_tokens_left_out_of_the_reference_add_nothing(pair: tuple[Logits, Logits, npt.NDArray[np.int64]]) -> None:
    reference, other, _ = pair
    total = logsumexp(reference)
    kept = reference > total[:, None] - 16
    cut = np.where(kept, reference, -np.inf).astype(np.float32)
    found = compare(cut, total, other, reference.argmax(axis=1))
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


def test_intervals_over_texts_hold_the_truth_as_often_as_they_say() -> None:
    """Texts of unequal length whose positions are alike within a text: intervals over positions would be too narrow."""
    rng = np.random.default_rng(1)
    held = narrow = 0
    for seed in range(300):
        lengths = rng.integers(20, 60, 25)
        of_text = rng.exponential(1, 25)  # mean 1
        values = [level * rng.exponential(1, length) for level, length in zip(of_text, lengths, strict=True)]
        sums = np.array([(len(v), v.sum()) for v in values])
        low, high = bootstrap_groups(sums, lambda s: s[..., 1] / s[..., 0], resamples=600, seed=seed)
        held += low <= 1 <= high
        every = np.concatenate(values)
        narrow += abs(every.mean() - 1) <= 1.96 * every.std() / math.sqrt(len(every))
    assert 0.88 <= held / 300 <= 0.98
    assert narrow / 300 < 0.6
    with pytest.raises(EdgeSteerError, match="4 groups are too few"):
        bootstrap_groups(np.ones((4, 2)), lambda s: s[..., 1] / s[..., 0])


def made(count: int) -> Positions:
    """Positions as of a text."""
    reference = RNG.exponential(1, count)
    return Positions(
        kl=RNG.exponential(0.01, count),
        same=(RNG.random(count) < 0.9).astype(np.float64),
        nll=np.abs(reference + RNG.normal(0, 0.1, count)),
        reference_nll=reference,
    )
