"""Rows to figures: means with intervals, and two methods compared on the same problems.

Takes rows, gives numbers. It runs no model and reads no file.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.stats import MIN_VALUES, Interval, bootstrap, combined, mcnemar, wilson
from edge_steer.tasks.rows import Row

# A row's part in each figure; None where it has none. An error is a wrong answer, and says nothing of lengths.
FIGURES: dict[str, Callable[[Row], float | None]] = {
    "accuracy": lambda row: float(row.correct),
    "steps": lambda row: row.steps if row.answered else None,
    "tokens": lambda row: row.tokens if row.answered else None,
    "density": lambda row: row.density if row.answered else None,
    "nll": lambda row: row.nll,
}


@dataclass(frozen=True)
class Figure:
    """A mean over problems of the mean over a problem's completions, with its 95% interval.

    interval: None for fewer than MIN_VALUES problems, unless it is Wilson's.
    """

    mean: float
    interval: Interval | None


@dataclass(frozen=True)
class Summary:
    """The figures of one method: accuracy, steps, tokens, density and, if any row is scored, nll.

    The interval of the accuracy is Wilson's over problems for one completion of each, and where all completions are
    right or all wrong; else it is bootstrapped over problems as all others are. samples: problems. errors: rows with
    an error. truncated: completions that ended at max_tokens or at the end of the context.
    """

    samples: int
    completions: int
    errors: int
    truncated: int
    figures: Mapping[str, Figure]

    @property
    def accuracy(self) -> float:
        return self.figures["accuracy"].mean

    @property
    def accuracy_interval(self) -> Interval | None:
        return self.figures["accuracy"].interval

    @property
    def steps(self) -> float:
        return self.figures["steps"].mean

    @property
    def tokens(self) -> float:
        return self.figures["tokens"].mean

    @property
    def density(self) -> float:
        return self.figures["density"].mean

    @property
    def nll(self) -> float | None:
        return self.figures["nll"].mean if "nll" in self.figures else None


@dataclass(frozen=True)
class Difference(Figure):
    """A figure after minus before, over the `problems` that have it on both sides; the bootstrap is paired."""

    problems: int


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same problems; `left_out` counts those that only one of them has.

    lost, gained: problems solved by the first alone and by the second alone. p_value: McNemar's exact test of them.
    All three are None where a problem has several completions. differences: by figure; one that no problem has on
    both sides is not there.
    """

    before: str
    after: str
    problems: int
    left_out: int
    lost: int | None
    gained: int | None
    p_value: float | None
    differences: Mapping[str, Difference]


def summarise(rows: Sequence[Row]) -> Summary:
    """The figures of one method's rows. Errors: EdgeSteerError for no rows, or none with a completion."""
    if not rows:
        raise EdgeSteerError("no rows to summarise")
    if not any(row.answered for row in rows):
        raise EdgeSteerError(f"{rows[0].task}, {rows[0].method}: no completion succeeded; the first: {rows[0].error}")
    figures = {}
    for name, of in FIGURES.items():
        values = _by_problem(rows, of)
        if values:
            figures[name] = _figure(values.values())
    problems = len({(row.task, row.id) for row in rows})
    accuracy = figures["accuracy"].mean
    if len(rows) == problems or accuracy in (0, 1):
        figures["accuracy"] = Figure(accuracy, wilson(round(accuracy * problems), problems))
    return Summary(
        samples=problems,
        completions=len(rows),
        errors=sum(bool(row.error) for row in rows),
        truncated=sum(row.finish == "length" for row in rows),
        figures=figures,
    )


def weighted(summaries: Sequence[Summary]) -> Summary:
    """The average over tasks, each weighted by its number of problems, as in DenseSteer's main table.

    Only figures that every task has; intervals are combined as those of independent tasks, None if one is missing.
    Errors: EdgeSteerError for no summaries.
    """
    if not summaries:
        raise EdgeSteerError("no summaries to average")
    samples = sum(summary.samples for summary in summaries)
    weights = [summary.samples / samples for summary in summaries]
    figures = {}
    for name in FIGURES:
        parts = [summary.figures[name] for summary in summaries if name in summary.figures]
        if len(parts) == len(summaries):
            means = [part.mean for part in parts]
            intervals = [part.interval for part in parts if part.interval]
            whole = combined(weights, means, intervals) if len(intervals) == len(parts) else None
            figures[name] = Figure(float(np.dot(weights, means)), whole)
    return Summary(
        samples=samples,
        completions=sum(summary.completions for summary in summaries),
        errors=sum(summary.errors for summary in summaries),
        truncated=sum(summary.truncated for summary in summaries),
        figures=figures,
    )


def compare(before: Sequence[Row], after: Sequence[Row]) -> Comparison:
    """Two methods, or two runs of one, on the problems they share. Errors: EdgeSteerError if they share none."""
    known = [{(row.task, row.id) for row in rows} for rows in (before, after)]
    shared = known[0] & known[1]
    if not shared:
        raise EdgeSteerError("the two have no problem in common; compare results of the same task")
    first, second = ([row for row in rows if (row.task, row.id) in shared] for rows in (before, after))
    differences = {}
    for name, of in FIGURES.items():
        a, b = _by_problem(first, of), _by_problem(second, of)
        found = [b[key] - a[key] for key in a if key in b]
        if found:
            figure = _figure(found)
            differences[name] = Difference(figure.mean, figure.interval, len(found))
    lost = gained = None
    if len(first) == len(second) == len(shared):
        right = {(row.task, row.id): row.correct for row in second}
        lost = sum(row.correct and not right[row.task, row.id] for row in first)
        gained = sum(right[row.task, row.id] and not row.correct for row in first)
    return Comparison(
        before=before[0].method,
        after=after[0].method,
        problems=len(shared),
        left_out=len(known[0] ^ known[1]),
        lost=lost,
        gained=gained,
        p_value=None if lost is None or gained is None else mcnemar(lost, gained),
        differences=differences,
    )


def _by_problem(rows: Sequence[Row], of: Callable[[Row], float | None]) -> dict[tuple[str, str], float]:
    """A figure's mean over the completions of each problem that has it."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if (value := of(row)) is not None:
            values.setdefault((row.task, row.id), []).append(value)
    return {key: statistics.fmean(found) for key, found in values.items()}


def _figure(values: Iterable[float]) -> Figure:
    found = np.array([*values])
    return Figure(statistics.fmean(found.tolist()), bootstrap(found) if len(found) >= MIN_VALUES else None)
