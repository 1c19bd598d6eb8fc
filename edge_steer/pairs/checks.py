"""Is a dense rewrite a good one? Right, denser, with the same computed numbers, and likely to the model it is for.

Takes pairs, gives a CheckReport: the figures of each, which pass, and why the others do not. It rewrites nothing and
knows no file.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from edge_steer.core.backend import Backend
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.pairs.criteria import Check, Criteria, reasons_to_drop
from edge_steer.pairs.likelihood import Likelihood, likelihoods, score
from edge_steer.pairs.numbers import changed_numbers
from edge_steer.pairs.pair import Pair
from edge_steer.pairs.solutions import Solution
from edge_steer.tasks.answers import Kind, last_boxed
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.task import count_steps

CountTokens = Callable[[str], int]
DEFAULT_CRITERIA = Criteria()


@dataclass(frozen=True)
class CheckReport:
    """Each pair with its figures and the reasons to drop it, none for one that passes.

    likelihoods: of own solutions, rewrites and other traces; empty where nothing was scored.
    """

    pairs: tuple[Pair, ...]
    checks: tuple[Check, ...]
    reasons: tuple[tuple[str, ...], ...]
    likelihoods: tuple[Likelihood, ...] = ()

    @property
    def passing(self) -> tuple[Pair, ...]:
        """The pairs without a reason to drop them."""
        return tuple(pair for pair, reasons in zip(self.pairs, self.reasons, strict=True) if not reasons)

    @property
    def dropped(self) -> dict[str, tuple[str, ...]]:
        """The names of the other pairs, each with the reasons."""
        return {check.name: reasons for check, reasons in zip(self.checks, self.reasons, strict=True) if reasons}

    @property
    def remarks(self) -> list[str]:
        """A line for each pair that is dropped, and for each that passes with other numbers."""
        lines = []
        for check, reasons in zip(self.checks, self.reasons, strict=True):
            if reasons:
                lines.append(f"{check.name}: {'; '.join(reasons)}")
            elif check.number_changes:
                lines.append(f"{check.name}: kept, with other numbers: {', '.join(check.number_changes)}")
        return lines

    @property
    def means(self) -> dict[str, tuple[float, float]]:
        """Of steps, tokens and density: the means over the negatives and over the positives."""
        checks = self.checks
        return {
            "steps": (fmean(c.negative_steps for c in checks), fmean(c.positive_steps for c in checks)),
            "tokens": (fmean(c.negative_tokens for c in checks), fmean(c.positive_tokens for c in checks)),
            "density": (fmean(c.negative_density for c in checks), fmean(c.positive_density for c in checks)),
        }

    def records(self) -> list[dict[str, Any]]:
        """One JSON object for each pair: its figures, both ratios and the reasons."""
        return [
            {**asdict(check), "density_ratio": check.density_ratio, "nll_ratio": check.nll_ratio, "reasons": reasons}
            for check, reasons in zip(self.checks, self.reasons, strict=True)
        ]


def check_pairs(
    pairs: Sequence[Pair],
    *,
    backend: Backend | None = None,
    count_tokens: CountTokens | None = None,
    criteria: Criteria = DEFAULT_CRITERIA,
    graders: Graders | None = None,
    kind: Kind = "math",
    traces: Mapping[str, Sequence[Solution]] | None = None,
    progress: Progress = SILENT,
) -> CheckReport:
    """Grade, measure and compare both sides of each pair, and say which pass the criteria.

    backend: the model the pairs are for; with it both sides are scored, and other models' `traces` (solutions, by the
    name of their source) too. count_tokens: tokens of a text; None is the backend's tokenizer, or words without one.
    A pair without `answer` is graded by what its negative, the model's own solution, puts in \\boxed{...}.
    Errors: EdgeSteerError for criteria or traces that need a backend; as of `likelihood.likelihoods`.
    """
    if backend is None and (criteria.by_nll or traces):
        raise EdgeSteerError("an NLL is that of a model; give the model that the pairs are for")
    if count_tokens is None:
        count_tokens = _count_words if backend is None else lambda text: len(backend.encode(text, start=False))
    with contextlib.ExitStack() as stack:
        pool = graders or stack.enter_context(Graders())
        checks = measure_pairs(pairs, count_tokens, pool, kind, progress)
    means: list[Likelihood] = []
    if backend is not None:
        checks = score(backend, pairs, checks, progress)
        if traces or any(check.nll_ratio is not None for check in checks):
            means = likelihoods(backend, pairs, checks, traces or {}, progress)
    return CheckReport(tuple(pairs), tuple(checks), tuple(reasons_to_drop(checks, criteria)), tuple(means))


def measure_pairs(
    pairs: Sequence[Pair],
    count_tokens: CountTokens,
    graders: Graders,
    kind: Kind = "math",
    progress: Progress = SILENT,
) -> list[Check]:
    """The figures of each pair without an NLL: both answers graded, steps and tokens counted, numbers compared."""
    grades = []
    for pair in pairs:
        expected = pair.answer if pair.answer is not None else last_boxed(pair.negative)
        sides = (pair.positive, pair.negative)
        grades.append(None if expected is None else [graders.submit(side, expected, kind) for side in sides])
    checks = []
    for number, (pair, futures) in enumerate(progress.counted("grading", list(zip(pairs, grades, strict=True))), 1):
        positive, negative = (future.result().correct for future in futures) if futures else (False, False)
        dropped, added = changed_numbers(pair)
        checks.append(
            Check(
                name=pair.id or f"pair {number}",
                known=futures is not None,
                positive_right=positive,
                negative_right=negative,
                positive_steps=count_steps(pair.positive),
                negative_steps=count_steps(pair.negative),
                positive_tokens=count_tokens(pair.positive),
                negative_tokens=count_tokens(pair.negative),
                dropped=dropped,
                added=added,
                negative_digest=pair.negative_digest,
            )
        )
    return checks


def _count_words(text: str) -> int:
    return len(text.split())
