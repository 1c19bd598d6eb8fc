"""How far the next-token probabilities of one model are from another's: the statistics of llama-perplexity.

Takes logits of a reference and of another model at the same positions, piece by piece, and the tokens that follow;
keeps a few numbers for each position, gives figures with intervals over texts. Definitions are those of
`llama-perplexity --kl-divergence` (llama.cpp, tools/perplexity). It knows nothing of models, vectors or files.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.stats import MIN_VALUES, Floats, Interval, bootstrap_groups, heavy_tailed_mean, quantiles
from edge_steer.parity.tolerances import KL_FLOOR

Logits = npt.NDArray[np.float32]
BLOCK = 2**18  # logits worked on at once, so that what is made of them stays in the processor's cache
MOST_KL = 16.0  # nats; llama-perplexity counts no log-probability below -16
DELTA_P = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True)
class Positions:
    """A few numbers for each compared position: float64 arrays of one length.

    kl: KL(reference || other) in nats. same: 1 where both have the same first choice. nll, reference_nll: negative
    log-likelihood of the token that follows, under the other model and under the reference.
    """

    kl: Floats
    same: Floats
    nll: Floats
    reference_nll: Floats

    def __len__(self) -> int:
        return len(self.kl)

    @property
    def delta_p(self) -> Floats:
        """Probability of the token that follows: the other model's minus the reference's."""
        change: Floats = np.exp(-self.nll) - np.exp(-self.reference_nll)
        return change

    def record(self) -> dict[str, list[float]]:
        """The same for a JSON file."""
        return {name: getattr(self, name).tolist() for name in self.__dataclass_fields__}

    @classmethod
    def of(cls, record: Mapping[str, Sequence[float]]) -> "Positions":
        """The inverse of `record`."""
        return cls(**{name: np.array(values, dtype=np.float64) for name, values in record.items()})

    @classmethod
    def joined(cls, parts: Sequence["Positions"]) -> "Positions":
        """Errors: EdgeSteerError for no parts."""
        if not parts:
            raise EdgeSteerError("no positions to compare; each text needs a token after its prompt")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


@dataclass(frozen=True)
class Divergence:
    """Figures over all positions of all texts; intervals are at 95%, over texts, None for fewer than MIN_VALUES.

    kl: mean, median, p90, p99, p99.9, max in nats; kl_error the standard error of the mean over positions.
    top1: share of positions with the same first choice. delta_p: mean, rms, max of the absolute value, and
    percentiles p0.1 to p99.9 of the change of the true token's probability. perplexity, reference_perplexity and
    their ratio, other over reference; ratio_error is its uncertainty over positions, as llama-perplexity has it.
    """

    texts: int
    positions: int
    kl: dict[str, float]
    kl_error: float
    kl_interval: Interval | None
    top1: float
    top1_interval: Interval | None
    delta_p: dict[str, float]
    delta_p_interval: Interval | None
    perplexity: float
    reference_perplexity: float
    perplexity_ratio: float
    ratio_error: float
    ratio_interval: Interval | None


def compare_logits(reference: Logits, total: Floats, other: Logits, following: npt.NDArray[np.int64]) -> Positions:
    """One piece of a text. reference, other: logits (positions, vocabulary). following: the token after each position.

    total: log(sum(exp(reference))) of each position. Exponentials are taken in float32 and summed in float64, which
    leaves an error of less than 1e-6 nats. Where reference logits are left out, as by a saved reference, -inf stands
    for them and they add nothing, as in llama-perplexity, which leaves out log-probabilities below -16. As there, a
    KL that is next to nothing may come out below 0 by rounding. Errors: EdgeSteerError for NaN, or where the other
    model gives no probability to a token that the reference gives one.
    """
    count, vocabulary = other.shape
    kl, same = np.empty(count), np.empty(count)
    other_total = np.empty(count)
    step = max(1, BLOCK // vocabulary)
    # a reused buffer: allocating costs as much as computing
    buffer = np.empty((2, min(step, count), vocabulary), dtype=np.float32)
    for first in range(0, count, step):
        part = slice(first, first + step)
        ours, theirs = reference[part], other[part]
        weights, distances = buffer[:, : len(ours)]
        first_choice, others_choice = ours.argmax(axis=1), theirs.argmax(axis=1)
        other_peak = _exponentials(theirs, others_choice, weights)
        other_total[part] = np.log(weights.sum(axis=1, dtype=np.float64)) + other_peak
        peak = _exponentials(ours, first_choice, weights)
        with np.errstate(invalid="ignore"):
            np.subtract(ours, theirs, out=distances)
            np.multiply(distances, weights, out=distances)
            products = distances.sum(axis=1, dtype=np.float64)
        if not np.isfinite(products).all():  # -inf where the reference has no probability
            distances[weights == 0] = 0
            products = distances.sum(axis=1, dtype=np.float64)
        shift = total[part] - other_total[part]
        sums = products - shift * weights.sum(axis=1, dtype=np.float64)
        kl[part] = sums * np.exp(peak - total[part])
        same[part] = first_choice == others_choice
    if not np.isfinite(kl).all():
        raise EdgeSteerError("a logit is not a finite number, so the KL divergence is none; is the model damaged?")
    rows = np.arange(count)
    return Positions(
        kl=kl,
        same=same,
        nll=other_total - other[rows, following],
        reference_nll=total - reference[rows, following],
    )


def summarise(texts: Sequence[Positions], *, seed: int = 0) -> Divergence:
    """The figures of the texts' positions. Errors: EdgeSteerError for no position at all."""
    texts = [text for text in texts if len(text)]
    every = Positions.joined(texts)
    delta = every.delta_p
    log_ratio = every.nll - every.reference_nll
    # what each text adds: positions, same first choices, squared delta p, log ratio
    sums = np.array([(len(t), t.same.sum(), (t.delta_p**2).sum(), (t.nll - t.reference_nll).sum()) for t in texts])
    ratio = math.exp(log_ratio.mean())
    shares = np.quantile(delta, DELTA_P)
    return Divergence(
        texts=len(texts),
        positions=len(every),
        kl=quantiles(every.kl),
        kl_error=_error(every.kl),
        kl_interval=_kl_interval([text.kl for text in texts], seed),
        top1=float(every.same.mean()),
        top1_interval=over_texts(sums, lambda s: s[..., 1] / s[..., 0], seed),
        delta_p={
            "mean": float(delta.mean()),
            "rms": float(np.sqrt((delta**2).mean())),
            "max": float(np.abs(delta).max()),
            **{f"p{100 * share:g}": float(value) for share, value in zip(DELTA_P, shares, strict=True)},
        },
        delta_p_interval=over_texts(sums, lambda s: np.sqrt(s[..., 2] / s[..., 0]), seed),
        perplexity=math.exp(every.nll.mean()),
        reference_perplexity=math.exp(every.reference_nll.mean()),
        perplexity_ratio=ratio,
        ratio_error=ratio * _error(log_ratio),
        ratio_interval=over_texts(sums, lambda s: np.exp(s[..., 3] / s[..., 0]), seed),
    )


def _kl_interval(texts: Sequence[Floats], seed: int) -> Interval | None:
    """Of the mean KL, which few positions may carry; None for fewer than MIN_VALUES texts."""
    if len(texts) < MIN_VALUES:
        return None
    return heavy_tailed_mean(texts, floor=KL_FLOOR, most=MOST_KL, seed=seed)


def over_texts(sums: Floats, statistic: Callable[[Any], Any], seed: int = 0) -> Interval | None:
    """`bootstrap_groups`, or None for fewer than MIN_VALUES texts."""
    return bootstrap_groups(sums, statistic, seed=seed) if len(sums) >= MIN_VALUES else None


def _exponentials(logits: Logits, largest: npt.NDArray[np.intp], out: Logits) -> Logits:
    """Write exp(logits - peak) into `out`; gives the peak, which is where `largest` says."""
    peak: Logits = logits[np.arange(len(logits)), largest]
    np.subtract(logits, peak[:, None], out=out)
    np.exp(out, out=out)
    return peak


def _error(values: Floats) -> float:
    """Standard error of the mean as llama-perplexity takes it: 0 for ten values or fewer."""
    return math.sqrt(values.var() / (len(values) - 1)) if len(values) > 10 else 0.0
