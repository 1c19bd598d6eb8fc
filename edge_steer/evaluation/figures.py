"""Rows to figures: means with intervals, two methods compared on the same problems, and how a figure is written.

Takes rows, gives numbers and their text. It runs no model and reads no file.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.stats import (
    MIN_VALUES,
    Floats,
    Interval,
    bootstrap,
    bootstrap_groups,
    combined,
    mcnemar,
    wilson,
)
from edge_steer.tasks.rows import Row
from edge_steer.tasks.task import count_calculations, count_sentences

MIN_DISCORDANT = 6  # with fewer McNemar's exact p stays above 0.05, whichever way they fall


@dataclass(frozen=True)
class FigureKind:
    """What one figure measures and how it is written.

    label: the name in a table. unit: "" for a share, which is written in percent. digits: after the point.
    value: a row's part in the figure; None where it has none. per: the figure is the ratio of the two over all rows,
    else the mean over problems of the value.
    """

    label: str
    unit: str
    value: Callable[[Row], float | None]
    digits: int = 1
    per: Callable[[Row], float] | None = None

    @property
    def share(self) -> bool:
        return not self.unit

    @property
    def title(self) -> str:
        """The label with its unit, unless they are the same."""
        return self.label if self.unit in ("", self.label) else f"{self.label}, {self.unit}"


# An error is a wrong answer, and says nothing of lengths.
FIGURES: dict[str, FigureKind] = {
    "accuracy": FigureKind("accuracy", "", lambda row: float(row.correct)),
    "steps": FigureKind("steps", "steps", lambda row: row.steps if row.answered else None),
    "tokens": FigureKind("tokens", "tokens", lambda row: row.tokens if row.answered else None),
    "density": FigureKind("density", "tokens per step", lambda row: row.density if row.answered else None),
    "nll": FigureKind("NLL", "nats per token", lambda row: row.nll, digits=3),
}
# How much a text says with its tokens, wherever its lines break.
WORDING: dict[str, FigureKind] = {
    "sentence": FigureKind(
        "tokens per sentence",
        "tokens per sentence",
        lambda row: row.tokens / max(count_sentences(row.text), 1) if row.answered else None,
    ),
    "calculations": FigureKind(
        "calculations per 100 tokens",
        "calculations per 100 tokens",
        lambda row: 100 * count_calculations(row.text) / max(row.tokens, 1) if row.answered else None,
        digits=2,
    ),
    "right_answer": FigureKind(
        "tokens per right answer",
        "tokens per right answer",
        lambda row: row.tokens if row.answered else None,
        per=lambda row: float(row.correct),
    ),
}
KINDS = FIGURES | WORDING


@dataclass(frozen=True)
class Figure:
    """A mean over problems of the mean over a problem's completions, or a ratio of two, with its 95% interval.

    interval: None for fewer than MIN_VALUES problems, unless it is Wilson's, and where a ratio may be without bound.
    """

    mean: float
    interval: Interval | None


@dataclass(frozen=True)
class Summary:
    """The figures of one method: those of KINDS; nll if any row is scored, right_answer if any is right.

    The interval of the accuracy is Wilson's over problems for one completion of each, and where all completions are
    right or all wrong; else it is bootstrapped over problems as all others are. samples: problems. errors: rows with
    an error. truncated: completions that ended at max_tokens or at the end of the context. boxed, lenient: the accuracy
    in each way of grading, of which the figure is one; None for rows written before both were graded.
    """

    samples: int
    completions: int
    errors: int
    truncated: int
    figures: Mapping[str, Figure]
    boxed: float | None = None
    lenient: float | None = None

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
    for name, kind in KINDS.items():
        values = by_problem(rows, kind.value)
        if kind.per:
            if any(map(kind.per, rows)):
                figures[name] = _ratio(np.array([*_sums(rows, kind).values()]), _first_over_second)
        elif values:
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
        boxed=_graded(rows, lambda row: row.boxed),
        lenient=_graded(rows, lambda row: row.lenient),
    )


def weighted(summaries: Sequence[Summary]) -> Summary:
    """The average over tasks, each weighted by its number of problems, as in DenseSteer's main table.

    Only means that every task has; intervals are combined as those of independent tasks, None if one is missing.
    Errors: EdgeSteerError for no summaries.
    """
    if not summaries:
        raise EdgeSteerError("no summaries to average")
    samples = sum(summary.samples for summary in summaries)
    weights = [summary.samples / samples for summary in summaries]
    figures = {}
    for name in (name for name, kind in KINDS.items() if not kind.per):
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
        boxed=_dot(weights, [summary.boxed for summary in summaries]),
        lenient=_dot(weights, [summary.lenient for summary in summaries]),
    )


def compare(before: Sequence[Row], after: Sequence[Row]) -> Comparison:
    """Two methods, or two runs of one, on the problems they share. Errors: EdgeSteerError if they share none."""
    known = [{(row.task, row.id) for row in rows} for rows in (before, after)]
    shared = known[0] & known[1]
    if not shared:
        raise EdgeSteerError("the two have no problem in common; compare results of the same task")
    first, second = ([row for row in rows if (row.task, row.id) in shared] for rows in (before, after))
    differences = {
        name: difference for name, kind in KINDS.items() if (difference := _difference(first, second, kind)) is not None
    }
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


def mean_text(name: str, figure: Figure, *, signed: bool = False) -> str:
    """The mean of the figure `name` as text: "83.0%", "12.1", or signed "+0.3"."""
    return _number(name, figure.mean, signed) + ("%" if KINDS[name].share else "")


def interval_text(name: str, figure: Figure, *, signed: bool = False) -> str:
    """The interval of the figure `name` as text: "74.5 to 89.1"; "" where there is none."""
    return " to ".join(_number(name, end, signed) for end in figure.interval or ())


def figure_text(name: str, figure: Figure, *, signed: bool = False) -> str:
    """Mean and interval of the figure `name` as text: "83.0% (74.5 to 89.1)"."""
    interval = interval_text(name, figure, signed=signed)
    return mean_text(name, figure, signed=signed) + (f" ({interval})" if interval else "")


def _number(name: str, value: float, signed: bool) -> str:
    kind = KINDS[name]
    return f"{value * (100 if kind.share else 1):{'+' if signed else ''}.{kind.digits}f}"


def by_problem(rows: Sequence[Row], value: Callable[[Row], float | None]) -> dict[tuple[str, str], float]:
    """The mean of a value over the completions of each problem that has it, by task and id."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if (of_row := value(row)) is not None:
            values.setdefault((row.task, row.id), []).append(of_row)
    return {key: statistics.fmean(of_problem) for key, of_problem in values.items()}


def _graded(rows: Sequence[Row], value: Callable[[Row], bool | None]) -> float | None:
    """The accuracy in one way of grading: a row without a grade is wrong; None where no row was graded both ways."""
    if all(value(row) is None for row in rows):
        return None
    return statistics.fmean(by_problem(rows, lambda row: float(value(row) or False)).values())


def _dot(weights: Sequence[float], values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.dot(weights, known)) if len(known) == len(values) else None


def _difference(first: Sequence[Row], second: Sequence[Row], kind: FigureKind) -> Difference | None:
    """A figure of the second minus that of the first, paired by problem; None where they share no value."""
    if kind.per:
        before, after = _sums(first, kind), _sums(second, kind)
        sums = np.array([(*before[key], *after[key]) for key in before if key in after])
        if not len(sums) or not (sums.sum(axis=0)[1::2] > 0).all():
            return None
        figure = _ratio(sums, lambda sums: _first_over_second(sums[..., 2:]) - _first_over_second(sums[..., :2]))
        return Difference(figure.mean, figure.interval, len(sums))
    a, b = by_problem(first, kind.value), by_problem(second, kind.value)
    changes = [b[key] - a[key] for key in a if key in b]
    if not changes:
        return None
    figure = _figure(changes)
    return Difference(figure.mean, figure.interval, len(changes))


def _sums(rows: Sequence[Row], kind: FigureKind) -> dict[tuple[str, str], tuple[float, float]]:
    """What each problem adds to both sides of a ratio."""
    assert kind.per
    values, divisors = by_problem(rows, kind.value), by_problem(rows, kind.per)
    return {key: (value, divisors[key]) for key, value in values.items()}


def _ratio(sums: Floats, statistic: Callable[[Floats], Floats]) -> Figure:
    """A statistic of sums over problems. Where draws of problems have no right answer, it has no bound."""
    interval = None
    if len(sums) >= MIN_VALUES:
        with np.errstate(invalid="ignore"):
            low, high = bootstrap_groups(sums, statistic)
        interval = (low, high) if np.isfinite([low, high]).all() else None
    return Figure(float(statistic(sums.sum(axis=0))), interval)


def _first_over_second(sums: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = sums[..., 0] / sums[..., 1]
    return ratio


def _figure(values: Iterable[float]) -> Figure:
    means = np.array([*values])
    return Figure(statistics.fmean(means.tolist()), bootstrap(means) if len(means) >= MIN_VALUES else None)
