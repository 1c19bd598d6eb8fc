"""Numbers from arrays: log-probabilities, intervals, tests. Pure functions, nothing else known.

Intervals are at 95% unless asked otherwise. What is random is drawn from a seed, so that the same data gives the same
numbers.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from edge_steer.core.errors import EdgeSteerError

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]
MIN_VALUES = 5  # with fewer, the resamples take too few values to have tails to cut off
RESAMPLES = 5000
DRAWN_AT_ONCE = 2**22  # indices in memory
TAIL = 0.1  # of the values, for a tail that is fitted
LEAST_SHAPE = 0.05  # of a fitted tail: one so light that the shape no longer matters
REACH = 100.0  # times the largest value met: no tail goes further
TAIL_RESAMPLES = 1000  # fewer, since each looks at every large value


def log_softmax(logits: npt.NDArray[np.floating]) -> Floats:
    """Log-probabilities over the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def logsumexp(logits: npt.NDArray[np.floating]) -> Floats:
    """log(sum(exp(logits))) over the last axis, summed in float64; exact to 1e-7 for float32 logits."""
    peak = logits.max(axis=-1, keepdims=True)
    total: Floats = np.log(np.exp(logits - peak).sum(axis=-1, dtype=np.float64))
    total += peak[..., 0]
    return total


def cosine(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    """Cosine of the angle between two arrays taken as one long vector each. Errors: EdgeSteerError if one is zero."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    norm = np.linalg.norm(x) * np.linalg.norm(y)
    if norm == 0:
        raise EdgeSteerError("the cosine with a zero vector is undefined")
    return float(x @ y / norm)


def quantiles(values: Floats) -> dict[str, float]:
    """mean, median, p90, p99, p99.9 and max. Errors: EdgeSteerError for no values."""
    if not values.size:
        raise EdgeSteerError("no values to summarise")
    p50, p90, p99, p999 = np.quantile(values, (0.5, 0.9, 0.99, 0.999))
    return {
        "mean": float(values.mean()),
        "median": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "p99.9": float(p999),
        "max": float(values.max()),
    }


def wilson(successes: int, trials: int, z: float = 1.959964) -> Interval:
    """Wilson score interval of a proportion (E. B. Wilson, 1927), 95% by default.

    Errors: EdgeSteerError for no trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise EdgeSteerError(f"{successes} of {trials} trials is no proportion")
    share, z2 = successes / trials, z * z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))  # rounding may leave share out


def bootstrap(values: Floats, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Expanded percentile bootstrap interval of the mean of independent values.

    Percentiles of resampled means, taken as much further out as a t interval of so few values is wider than a normal
    one (Hesterberg, What Teachers Should Know About the Bootstrap, 2015). Values that are all the same give an interval
    without width. Errors: EdgeSteerError for fewer than MIN_VALUES.
    """
    count = len(values)
    if count < MIN_VALUES:
        raise EdgeSteerError(f"{count} values are too few for a bootstrap interval; at least {MIN_VALUES} are needed")
    rng = np.random.default_rng(seed)
    rows = max(1, DRAWN_AT_ONCE // count)
    means = [
        values[rng.integers(0, count, (min(rows, resamples - start), count))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    return _percentiles(np.concatenate(means), count, level)


def bootstrap_groups(
    sums: Floats,
    statistic: Callable[[Floats], Floats],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of a statistic of sums over independent groups, as of the positions of texts; whole groups are drawn.

    sums: (groups, k), what each group adds. statistic: (..., k) summed over groups -> (...), as sums[..., 0] /
    sums[..., 1] for the mean over members of groups of unequal size. Percentiles are taken as in `bootstrap`.
    Errors: EdgeSteerError for fewer than MIN_VALUES groups.
    """
    count = len(sums)
    if count < MIN_VALUES:
        raise EdgeSteerError(f"{count} groups are too few for a bootstrap interval; at least {MIN_VALUES} are needed")
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    return _percentiles(statistic(drawn @ sums), count, level)


def heavy_tailed_mean(
    groups: Sequence[Floats], *, floor: float, most: float, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of the mean over all values of independent groups, where rare large values may carry it.

    A bootstrap that has not met such a value cannot know of it. So every resample has two means: its own, and one in
    which the largest TAIL of its values give way to the mean of a Pareto tail that is fitted to them (Hill, 1975), cut
    off at `most` and at REACH times the largest value. The interval reaches from the lower of both bootstraps to the
    upper. Values up to `floor` are no tail; where all but a TAIL of the values are such, none is fitted.
    Errors: EdgeSteerError for fewer than MIN_VALUES groups.
    """
    count = len(groups)
    if count < MIN_VALUES:
        raise EdgeSteerError(f"{count} groups are too few for a bootstrap interval; at least {MIN_VALUES} are needed")
    sizes, sums = np.array([(len(values), values.sum()) for values in groups]).T
    values, of_group = np.concatenate(groups), np.repeat(np.arange(count), [len(group) for group in groups])
    falling = np.argsort(-values)[: math.ceil(2 * TAIL * len(values))]  # more than the tail of any likely resample
    falling = falling[values[falling] > floor] if np.quantile(values, 1 - TAIL) > floor else falling[:0]
    end = min(most, REACH * float(values.max()))
    rng = np.random.default_rng(seed)
    rows = max(1, DRAWN_AT_ONCE // max(len(falling), 1))
    plain, tailed = [], []
    for start in range(0, TAIL_RESAMPLES, rows):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(rows, TAIL_RESAMPLES - start))
        total = drawn @ sizes
        gain = _tail_gain(values[falling], drawn[:, of_group[falling]], TAIL * total, floor, end)
        plain.append(drawn @ sums / total)
        tailed.append(plain[-1] + gain / total)
    ends = [_percentiles(np.concatenate(means), count, level) for means in (plain, tailed)]
    return min(low for low, _ in ends), max(high for _, high in ends)


def combined(weights: Sequence[float], means: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Interval of a weighted sum of independent means from their own intervals (Zou and Donner, 2008, "MOVER").

    Weights are not negative. Errors: EdgeSteerError unless there are as many of each, and at least one.
    """
    if not 0 < len(weights) == len(means) == len(intervals):
        raise EdgeSteerError(f"{len(weights)} weights, {len(means)} means and {len(intervals)} intervals do not match")
    centre = sum(w * m for w, m in zip(weights, means, strict=True))
    below = math.hypot(*(w * (m - low) for w, m, (low, _) in zip(weights, means, intervals, strict=True)))
    above = math.hypot(*(w * (high - m) for w, m, (_, high) in zip(weights, means, intervals, strict=True)))
    return centre - below, centre + above


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided p value of McNemar's exact test (1947): the discordant pairs against a fair coin.

    lost, gained: pairs that are right only before, and only after. Without any of them p is 1.
    Errors: EdgeSteerError for a negative count.
    """
    if lost < 0 or gained < 0:
        raise EdgeSteerError(f"{lost} and {gained} are no counts of pairs")
    pairs = lost + gained
    tail = sum(math.comb(pairs, k) for k in range(min(lost, gained) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**pairs)))


def _tail_gain(values: Floats, drawn: npt.NDArray[np.integer], wanted: Floats, floor: float, most: float) -> Floats:
    """By how much a resample's sum rises where a Pareto tail stands for its largest values.

    values: falling, above the floor. drawn: (resamples, values), how often each was. wanted: how many are the tail.
    """
    inside = drawn.cumsum(axis=1) <= wanted[:, None]
    counts = drawn * inside
    members = counts.sum(axis=1)
    threshold = np.append(values, floor)[inside.sum(axis=1)]
    shape = np.maximum((counts @ np.log(values)) / np.maximum(members, 1) - np.log(threshold), LEAST_SHAPE)
    power, reach = 1 - 1 / shape, np.log(np.maximum(most / threshold, 1))
    beyond = np.where(np.abs(power) < 1e-6, reach, np.expm1(power * reach) / np.where(power == 0, 1, power))
    gain: Floats = members * threshold * (1 + beyond) - counts @ values
    return gain


def _percentiles(resampled: Floats, count: int, level: float) -> Interval:
    """Of a statistic of `count` values, resampled; by as much further out as Student's t is wider than normal."""
    tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * _student((1 + level) / 2, count - 1))
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return float(low), float(high)


def _student(share: float, freedom: int) -> float:
    """Quantile of Student's t by its expansion in 1/freedom (Abramowitz and Stegun, 26.7.5): 0.3% off at 4 degrees."""
    z = NormalDist().inv_cdf(share)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return math.fsum(term / float(freedom) ** power for power, term in enumerate(terms))
