"""Figures held against their tolerances: findings, and the verdict of several.

Takes figures with their intervals and what is allowed, gives "pass" where all of an interval is within tolerance,
"fail" where none of it is, else "not enough data". It measures nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from edge_steer.core.stats import Interval
from edge_steer.parity.divergence import Divergence
from edge_steer.parity.effect import Effect
from edge_steer.parity.mechanism import MechanismRow
from edge_steer.parity.tolerances import AT_FIRST_BLOCK, MECHANISM, MIN_POSITIONS, RESIDUAL, ROUNDINGS, Tolerance

Verdict = Literal["pass", "fail", "not enough data"]
VERDICT_WORDS: dict[Verdict, str] = {
    "pass": "within tolerance",
    "fail": "out of tolerance",
    "not enough data": "not enough data",
}


@dataclass(frozen=True)
class Finding:
    """One figure held against its tolerance. at_most: whether the figure may be no larger, else no smaller."""

    name: str
    value: float
    interval: Interval | None
    tolerance: float
    at_most: bool
    verdict: Verdict

    @property
    def bound(self) -> str:
        return "at most" if self.at_most else "at least"

    def __str__(self) -> str:
        ends = f" ({self.interval[0]:.3g}..{self.interval[1]:.3g})" if self.interval else ""
        return f"{self.name} is {self.value:.3g}{ends}; {self.bound} {self.tolerance:g} allowed: {self.verdict}"


def finding(
    name: str, value: float, interval: Interval | None, tolerance: float, *, at_most: bool = True, exact: bool = False
) -> Finding:
    """A figure with its verdict. Without an interval it can fail; it passes only if it is `exact`, not an estimate."""
    low, high = (value, value) if interval is None else interval
    verdict: Verdict = "not enough data"
    if (low > tolerance) if at_most else (high < tolerance):
        verdict = "fail"
    elif (interval is not None or exact) and ((high <= tolerance) if at_most else (low >= tolerance)):
        verdict = "pass"
    return Finding(name, value, interval, tolerance, at_most, verdict)


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst: one failure fails all, and one that lacks data leaves all without a verdict."""
    if not verdicts:
        return "not enough data"
    return min(verdicts, key=("fail", "not enough data", "pass").index)


def mechanism_findings(rows: Sequence[MechanismRow]) -> Iterator[Finding]:
    """Of the worst layer, phase and strength."""
    logits, residual = max(row.median for row in rows), max(row.residual for row in rows)
    neighbour = min(row.neighbour for row in rows if row.neighbour is not None)
    yield finding("mechanism: median max|delta logit|", logits, None, MECHANISM, exact=True)
    yield finding("mechanism: residual stream", residual, None, RESIDUAL, exact=True)
    if (largest := largest_in_roundings(rows)) is not None:
        yield finding("mechanism: max|delta logit| in roundings", largest, None, ROUNDINGS, exact=True)
    yield finding("mechanism: one layer off", neighbour, None, MECHANISM, at_most=False, exact=True)


def largest_in_roundings(rows: Sequence[MechanismRow]) -> float | None:
    """The largest max|delta logit| in units of the reference's own rounding; None where that was not measured."""
    return max((row.max / row.rounding for row in rows if row.rounding), default=None)


def divergence_finding(name: str, divergence: Divergence, tolerance: Tolerance) -> Finding:
    """Of the mean KL of the unsteered or steered texts."""
    interval = divergence.kl_interval if divergence.positions >= MIN_POSITIONS else None
    return finding(f"{name}: mean KL", divergence.kl["mean"], interval, tolerance.kl)


def effect_findings(effect: Effect, tolerance: Tolerance) -> Iterator[Finding]:
    """Of what is added at the first block, and of what becomes of it on the logits and the residual stream."""
    length_off = abs(effect.placed_norm - 1)
    yield finding("what is added: cosine", effect.placed_cosine, None, 1 - AT_FIRST_BLOCK, at_most=False, exact=True)
    yield finding("what is added: length off by", length_off, None, AT_FIRST_BLOCK, exact=True)
    for name, cosine, cosine_interval, norm, norm_interval in (
        ("effect", effect.cosine, effect.cosine_interval, effect.norm, effect.norm_interval),
        ("effect on the residual stream", effect.residual_cosine, effect.residual_cosine_interval,
         effect.residual_norm, effect.residual_norm_interval),
    ):  # fmt: skip
        yield finding(f"{name}: cosine", cosine, cosine_interval, tolerance.cosine, at_most=False)
        yield finding(f"{name}: length, at most", norm, norm_interval, 1 + tolerance.norm)
        yield finding(f"{name}: length, at least", norm, norm_interval, 1 - tolerance.norm, at_most=False)
