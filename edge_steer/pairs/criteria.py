"""Which pairs to keep: the figures of one pair, the criteria it must satisfy, and the reasons why it does not.

Takes figures, gives reasons. It grades nothing, runs no model and knows no file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edge_steer.core.errors import EdgeSteerError


@dataclass(frozen=True)
class Check:
    """The figures of one pair. Steps are paragraphs; density is tokens per step (rho in DenseSteer).

    known: whether there is an answer to grade by. dropped, added: computed numbers that only one side has.
    positive_nll, negative_nll: nats per token under the model the pair is for; None if not scored, and `unscored`
    says why it could not be. negative_digest: pairs that share it are candidates of one negative, in answer to one
    prompt.
    """

    name: str
    known: bool
    positive_right: bool
    negative_right: bool
    positive_steps: int
    negative_steps: int
    positive_tokens: int
    negative_tokens: int
    dropped: tuple[str, ...]
    added: tuple[str, ...]
    positive_nll: float | None = None
    negative_nll: float | None = None
    unscored: str = ""
    negative_digest: str = ""

    @property
    def positive_density(self) -> float:
        return self.positive_tokens / self.positive_steps

    @property
    def negative_density(self) -> float:
        return self.negative_tokens / self.negative_steps

    @property
    def density_ratio(self) -> float:
        return self.positive_density / self.negative_density

    @property
    def nll_ratio(self) -> float | None:
        """NLL of a rewrite's token over that of the own solution's."""
        if self.positive_nll is None or not self.negative_nll:
            return None
        return self.positive_nll / self.negative_nll

    @property
    def number_changes(self) -> list[str]:
        """Computed numbers that only one side has, in words."""
        changes = (("dropped", self.dropped), ("added", self.added))
        return [f"{change} {' '.join(numbers)}" for change, numbers in changes if numbers]


@dataclass(frozen=True)
class Criteria:
    """What a pair must satisfy. numbers: keep the computed numbers. max_nll_ratio: of rewrite to own solution.

    best_candidate: of the pairs of one negative that satisfy the rest, the one with the likeliest positive.
    keep_lowest: of those that are left, so many with the likeliest positives. right: both answers are right;
    denser: the positive is. Pairs that are no rewrites need neither.
    """

    numbers: bool = True
    max_nll_ratio: float | None = None
    keep_lowest: int | None = None
    right: bool = True
    denser: bool = True
    best_candidate: bool = False

    @property
    def by_nll(self) -> bool:
        """Whether pairs must be scored."""
        return self.max_nll_ratio is not None or self.keep_lowest is not None or self.best_candidate


def reasons_to_drop(checks: Sequence[Check], criteria: Criteria) -> list[tuple[str, ...]]:
    """For each check why its pair is dropped; nothing for one that passes.

    Errors: EdgeSteerError where the criteria ask for an NLL and nothing is scored.
    """
    if criteria.by_nll and all(check.positive_nll is None for check in checks):
        raise EdgeSteerError("no pair has an NLL to choose by; score them under the model they are for")
    reasons = [_reasons(check, criteria) for check in checks]
    if criteria.best_candidate:
        best: dict[str, int] = {}
        for nll, i in _by_nll(checks, reasons):
            if (likeliest := best.setdefault(checks[i].negative_digest, i)) != i:
                reasons[i] = [f"its NLL of {nll:.3f} is not below that of {checks[likeliest].name}"]
    if criteria.keep_lowest is not None:
        for nll, i in _by_nll(checks, reasons)[criteria.keep_lowest :]:
            reasons[i] = [f"its NLL of {nll:.3f} is not among the {criteria.keep_lowest} lowest"]
    return [tuple(why) for why in reasons]


def _by_nll(checks: Sequence[Check], reasons: Sequence[Sequence[str]]) -> list[tuple[float, int]]:
    """The NLL of each positive that passes so far, and its place, the likeliest first."""
    return sorted((check.positive_nll or 0.0, i) for i, check in enumerate(checks) if not reasons[i])


def _reasons(check: Check, criteria: Criteria) -> list[str]:
    reasons = []
    if criteria.right and not check.known:
        reasons.append("no answer to grade by")
    elif criteria.right:
        reasons += ["the rewrite's answer is wrong"] * (not check.positive_right)
        reasons += ["the own solution's answer is wrong"] * (not check.negative_right)
    if criteria.denser and check.density_ratio <= 1:
        reasons.append(f"not denser: {check.density_ratio:.2f} times the density")
    if criteria.numbers and check.dropped:
        reasons.append(f"computed numbers dropped: {', '.join(check.dropped)}")
    if criteria.numbers and check.added:
        reasons.append(f"computed numbers added: {', '.join(check.added)}")
    if criteria.by_nll:
        reasons += _reasons_by_nll(check, criteria.max_nll_ratio)
    return reasons


def _reasons_by_nll(check: Check, max_ratio: float | None) -> list[str]:
    if check.unscored:
        return [f"not scored: {check.unscored}"]
    if max_ratio is not None and check.nll_ratio is not None and check.nll_ratio > max_ratio:
        return [f"its NLL is {check.nll_ratio:.2f} times the own solution's, above {max_ratio:g}"]
    return []
