"""A backend on a task: every completion a row, graded and scored; then accuracy, steps, tokens, density and NLL.

Takes a Backend, a Task and methods, gives rows, and figures with intervals from rows. With a Store every row is on
disk before the next is counted, and a stopped run goes on where it ended. It knows no model format and no plot.
"""

import hashlib
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from edge_steer.backend import Backend, Completion, Request, Tokens
from edge_steer.errors import EdgeSteerError
from edge_steer.grading import Grade, Graders
from edge_steer.stats import MIN_VALUES, Interval, bootstrap, combined, mcnemar, wilson
from edge_steer.store import Store
from edge_steer.tasks import Sample, Task, count_steps, density
from edge_steer.vector import Offsets, Steering

Key = tuple[str, str, str, int]  # task, method, id, repeat


@dataclass(frozen=True)
class Method:
    """How the model is moved: by steering, by a system message in place of the task's, or not at all."""

    name: str
    steering: tuple[Steering, ...] = ()
    system: str | None = None


UNSTEERED = Method("unsteered")


@dataclass(frozen=True)
class Job:
    """One completion to make; `repeat` counts from 0 the completions of one problem."""

    task: Task
    sample: Sample
    repeat: int
    method: Method

    @property
    def key(self) -> Key:
        """The key of its row."""
        return self.task.name, self.method.name, self.sample.id, self.repeat

    @property
    def seed(self) -> int:
        """The request's seed: by the task's base seed, the problem and the repeat; the same for every method."""
        base = self.task.settings.sampling.seed
        return int.from_bytes(hashlib.sha256(f"{base} {self.repeat} {self.sample.id}".encode()).digest()[:4], "big")


@dataclass(frozen=True)
class Row:
    """One completion. `steps` and `tokens` are N_steps and N_tokens of the text; `prompt` is a digest.

    prompt: SHA-256 of the prompt's token ids. extracted: what was taken as the answer. error: why there is no text
    (finish is "error" then) or no grade, else "". seconds: wall time, not compared.
    nll: mean negative log-likelihood of a generated token, in nats, under the unsteered model on the same prompt;
    None when there is no token, or not yet: then `ids` are the generated tokens, and they are dropped with the score.
    """

    task: str
    id: str
    repeat: int
    method: str
    prompt: str
    text: str
    tokens: int
    steps: int
    correct: bool
    extracted: str
    finish: str
    error: str
    seconds: float = field(compare=False)
    nll: float | None
    ids: tuple[int, ...] = ()

    @property
    def key(self) -> Key:
        return self.task, self.method, self.id, self.repeat

    @property
    def answered(self) -> bool:
        """Whether there is a completion; its length means something only then."""
        return self.finish != "error"

    @property
    def density(self) -> float:
        """rho = N_tokens / N_steps; a text without a step counts as one."""
        return density(self.tokens, max(self.steps, 1))

    def record(self) -> dict[str, Any]:
        """What a store keeps."""
        record = asdict(self)
        if not self.ids:
            del record["ids"]
        return record

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Row":
        """The inverse of `record`. Errors: EdgeSteerError for anything else."""
        try:
            return cls(**{**record, "ids": tuple(record.get("ids", ()))})
        except TypeError:
            raise EdgeSteerError(f"{str(dict(record))[:80]} is no row of an evaluation") from None


OnRow = Callable[[Row], None]

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


def jobs_of(task: Task, method: Method = UNSTEERED) -> list[Job]:
    """Every completion of a task by one method, problem by problem.

    Errors: EdgeSteerError for several completions of a problem without sampling: they would all be the same.
    """
    settings = task.settings
    if settings.samples > 1 and not settings.sampling.temperature:
        raise EdgeSteerError(
            f"{settings.samples} samples of each problem of {task.name} at temperature 0 are all the same; "
            "set a temperature, or 1 sample"
        )
    return [Job(task, sample, repeat, method) for sample in task.samples for repeat in range(settings.samples)]


def answer(backend: Backend, jobs: Sequence[Job], graders: Graders, on_row: OnRow, *, nll: bool = True) -> None:
    """Make every job in one call of the backend, graded while it decodes.

    on_row is called, in the calling thread, for each row once it is graded, and again once it is scored where the
    score is not known from decoding; the later row of a key replaces the earlier.
    """
    prompts = _Prompts(backend)
    requests = []
    for job in jobs:
        unsteered = Offsets.of(job.method.steering, backend.model) is None
        requests.append(_request(job, prompts.of(job), wants_logprobs=nll and unsteered))
    waiting: deque[tuple[int, Completion, Future[Grade] | None]] = deque()
    unscored: list[tuple[int, Row]] = []

    def settle(wait: bool) -> None:
        """Give the rows that are graded, in the order in which they were completed."""
        while waiting:
            index, completion, grade = waiting[0]
            if grade and not (wait or grade.done()):
                return
            waiting.popleft()
            row = _row(jobs[index], requests[index].prompt, completion, grade.result() if grade else None, nll)
            if row.ids:
                unscored.append((index, row))
            on_row(row)

    def take(index: int, completion: Completion) -> None:
        job = jobs[index]
        failed = completion.finish == "error"
        grade = None if failed else graders.submit(completion.text, job.sample.answer, job.task.grader)
        waiting.append((index, completion, grade))
        settle(wait=False)

    if requests:
        backend.generate(requests, on_done=take)
    settle(wait=True)
    for index, row in unscored:
        on_row(_scored(backend, requests[index].prompt, row))


def evaluate(
    backend: Backend,
    task: Task,
    method: Method = UNSTEERED,
    *,
    graders: Graders,
    store: Store | None = None,
    on_row: OnRow | None = None,
    nll: bool = True,
) -> list[Row]:
    """Rows of one method on one task, in the order of its problems.

    store: keeps each row as it comes; rows of this method and task that it holds already are not made again, and
    those that lack only their score are scored. Its header must say what the rows depend on.
    """
    jobs = jobs_of(task, method)
    rows = {row.key: row for row in map(Row.of, store.records if store else ())}

    def keep(row: Row) -> None:
        if store:
            store.append(row.record())
        rows[row.key] = row
        if on_row:
            on_row(row)

    prompts = _Prompts(backend)
    for job in jobs:
        if (found := rows.get(job.key)) and found.ids:
            keep(_scored(backend, prompts.of(job), found))
    answer(backend, [job for job in jobs if job.key not in rows], graders, keep, nll=nll)
    return [rows[job.key] for job in jobs]


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


class _Prompts:
    """The prompts of jobs; those of one problem under one system message are made once."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._made: dict[tuple[str, str, str | None], Tokens] = {}

    def of(self, job: Job) -> Tokens:
        key = job.task.name, job.sample.id, job.method.system
        if key not in self._made:
            task = job.task
            if job.method.system is not None:
                task = replace(task, settings=replace(task.settings, system=job.method.system))
            self._made[key] = self._backend.chat(task.messages(job.sample))
        return self._made[key]


def _request(job: Job, prompt: Tokens, wants_logprobs: bool) -> Request:
    settings = job.task.settings
    return Request(
        prompt,
        settings.max_tokens,
        job.method.steering,
        replace(settings.sampling, seed=job.seed),
        logprobs=0 if wants_logprobs else None,
    )


def _row(job: Job, prompt: Tokens, completion: Completion, grade: Grade | None, nll: bool) -> Row:
    scored = None
    if nll and completion.logprobs:
        scored = -statistics.fmean(token.logprob for token in completion.logprobs)
    return Row(
        task=job.task.name,
        id=job.sample.id,
        repeat=job.repeat,
        method=job.method.name,
        prompt=hashlib.sha256(np.array(prompt, dtype="<i4").tobytes()).hexdigest(),
        text=completion.text,
        tokens=len(completion.tokens),
        steps=count_steps(completion.text),
        correct=grade.correct if grade else False,
        extracted=grade.extracted if grade else "",
        finish=completion.finish,
        error=grade.error if grade else completion.error,
        seconds=completion.seconds,
        nll=scored,
        ids=completion.tokens if nll and scored is None else (),
    )


def _scored(backend: Backend, prompt: Tokens, row: Row) -> Row:
    """The row with its likelihood under the unsteered model."""
    return replace(row, nll=float(backend.nll((*prompt, *row.ids), len(prompt)).mean()), ids=())


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
