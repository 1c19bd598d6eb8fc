"""A model on tasks under several methods: every completion a row, graded and scored.

Takes a running model, tasks and methods, gives rows. In a folder every row is on disk before the next is counted, and a
stopped run goes on where it ended. It knows no model format and no plot.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_steer.core.backend import Backend
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.steering import Steer, Steering
from edge_steer.evaluation.results import FORMAT, ROWS, Cells, save_summary
from edge_steer.evaluation.units import last_rows
from edge_steer.storage.provenance import Provenance, RunningModel, versions
from edge_steer.storage.records import Store
from edge_steer.tasks.grading import GRADING_SECONDS, Graders
from edge_steer.tasks.load import load_task
from edge_steer.tasks.rows import UNSTEERED, Method, OnRow, Prompts, Row, complete, jobs_of, score
from edge_steer.tasks.task import Task

# Tells the model to reason densely: milder than the rules of rewriting, which DenseSteer's prompt row gives it.
DENSE_PROMPT = (
    "Reason densely. Solve the problem in as few steps as possible: merge steps that belong together, and let each "
    "step carry as much of the computation as it can. Leave out repetition, but no calculation that the answer needs. "
    "Write each step as one paragraph, with a blank line between steps."
)
METHODS = ("unsteered", "steered", "dense-prompt", "rewriting-prompt")


def evaluate(
    model: RunningModel,
    task: str | Path | Task,
    methods: Mapping[str, Method | Steer],
    *,
    folder: str | Path | None = None,
    limit: int | None = None,
    nll: bool = True,
    grading_seconds: float = GRADING_SECONDS,
    graders: Graders | None = None,
    progress: Progress = SILENT,
) -> dict[str, list[Row]]:
    """The rows of each method on a task, in the order of its problems.

    task: a name, NAME=FILE, the path of a task.toml, or a Task. methods: by name what steers (a vector, a Steering, a
    list of them, or None for the model as it is), or a Method with a system message. folder: where rows.jsonl and
    summary.json are kept, so that a stopped run goes on; None writes nothing. limit: the first so many problems.
    nll: score each text under the unsteered model. grading_seconds: the time limit of one answer. graders: those of a
    caller who evaluates again and again, which have their own limit. Errors: EdgeSteerError.
    """
    settings = EvaluationSettings.of([task], methods, limit=limit, nll=nll, grading_seconds=grading_seconds)
    cells = evaluate_tasks(model, settings, folder=folder, graders=graders, progress=progress)
    return {method: rows for (_, method), rows in cells.items()}


@dataclass(frozen=True)
class EvaluationSettings:
    """What is evaluated: every method on every task.

    nll: score each text under the unsteered model. grading_seconds: the time limit of one answer.
    Errors: EdgeSteerError for no tasks or methods, two of one name, or several samples at temperature 0.
    """

    tasks: tuple[Task, ...]
    methods: tuple[Method, ...]
    nll: bool = True
    grading_seconds: float = GRADING_SECONDS

    def __post_init__(self) -> None:
        for what, names in (("task", [t.name for t in self.tasks]), ("method", [m.name for m in self.methods])):
            if not names:
                raise EdgeSteerError(f"no {what} to evaluate; at least one is needed")
            if len({*names}) < len(names):
                raise EdgeSteerError(f"a {what} is named twice in {', '.join(names)}")
        for task in self.tasks:
            jobs_of(task)

    @classmethod
    def of(
        cls,
        tasks: Iterable[str | Path | Task],
        methods: Mapping[str, Method | Steer],
        *,
        limit: int | None = None,
        nll: bool = True,
        grading_seconds: float = GRADING_SECONDS,
    ) -> "EvaluationSettings":
        """From names of tasks and a mapping of methods, as `evaluate` takes them. Errors: EdgeSteerError."""
        return cls(
            tuple(task_of(task, limit) for task in tasks),
            tuple(Method.of(name, method) for name, method in methods.items()),
            nll,
            grading_seconds,
        )

    def header(self, provenance: Provenance) -> dict[str, Any]:
        """All that the rows depend on."""
        return {
            "format": FORMAT,
            "model": {**provenance.model},
            "backend": {**provenance.backend},
            "methods": {method.name: method.described() for method in self.methods},
            "tasks": {task.name: task.described() for task in self.tasks},
            "nll": self.nll,
            "grading_seconds": self.grading_seconds,
            "versions": {**provenance.versions, **versions("math-verify", "sympy")},
        }


def evaluate_tasks(
    model: RunningModel,
    settings: EvaluationSettings,
    *,
    folder: str | Path | None = None,
    graders: Graders | None = None,
    progress: Progress = SILENT,
) -> Cells:
    """The rows of every method on every task, by the names of both; see `evaluate`.

    Once all are there rows.jsonl holds each row once, in the order of tasks, methods, problems and repeats.
    Errors: EdgeSteerError, for a folder with other rows too, or one that another process writes.
    """
    for method in settings.methods:
        model.check_steering(method.steering)
    header = settings.header(model.provenance)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Store.open(Path(folder) / ROWS, header)) if folder else None
        graders = graders or stack.enter_context(Graders(seconds=settings.grading_seconds))
        evaluator = Evaluator(model, graders, store=store, nll=settings.nll, progress=progress)
        cells = {(task.name, m.name): evaluator.rows(task, m) for task in settings.tasks for m in settings.methods}
        if store:
            records = [row.record() for rows in cells.values() for row in rows]
            if records != store.records:
                store.replace(records)
    if folder:
        save_summary(Path(folder), header, cells)
    return cells


class Evaluator:
    """A model, graders and a store, ready for any method on any task.

    store: keeps each row as it comes. Rows that it holds are not made again, and those that await their score are
    scored; its header must say what the rows depend on. None keeps no rows.
    """

    def __init__(
        self,
        model: Backend,
        graders: Graders,
        *,
        store: Store | None = None,
        nll: bool = True,
        progress: Progress = SILENT,
    ) -> None:
        self._model, self._graders, self._store, self._nll, self._progress = model, graders, store, nll, progress
        self._rows = last_rows(store.records if store else ())
        self._prompts = Prompts(model)

    def rows(self, task: Task, method: Method = UNSTEERED, on_row: OnRow | None = None) -> list[Row]:
        """Rows of one method on one task, in the order of its problems. on_row: called with each new row."""
        jobs = jobs_of(task, method)
        done = {job.key for job in jobs if job.key in self._rows}
        doing = f"{task.name}, {method.name}"
        self._progress(doing, len(done), len(jobs))

        def keep(row: Row) -> None:
            if self._store:
                self._store.append(row.record())
            self._rows[row.key] = row
            done.add(row.key)
            self._progress(doing, len(done), len(jobs))
            if on_row:
                on_row(row)

        missing = [job for job in jobs if job.key not in done]
        for job in jobs:
            if (row := self._rows.get(job.key)) and row.awaits_score:
                keep(score(self._model, self._prompts.of(job), row))
        complete(self._model, missing, self._graders, keep, nll=self._nll)
        return [self._rows[job.key] for job in jobs]


def task_of(task: str | Path | Task, limit: int | None = None) -> Task:
    """A task by what names it, or itself; its first `limit` problems. Errors: EdgeSteerError."""
    if isinstance(task, Task):
        return task if limit is None else task.limit(limit)
    return load_task(task, limit=limit)


def methods_of(
    names: Sequence[str], steering: tuple[Steering, ...] = (), *, rewriting: str | None = None
) -> dict[str, Method]:
    """The methods of METHODS that `names` lists.

    "dense-prompt" asks with DENSE_PROMPT and "rewriting-prompt" with `rewriting`, the instruction that a rewriter is
    given; both are unsteered. Errors: EdgeSteerError for an unknown name, "steered" without a steering, or
    "rewriting-prompt" without its text.
    """
    known = {
        "unsteered": UNSTEERED,
        "steered": Method("steered", steering),
        "dense-prompt": Method("dense-prompt", system=DENSE_PROMPT),
        "rewriting-prompt": Method("rewriting-prompt", system=rewriting),
    }
    if not names or len({*names}) < len(names) or not {*names} <= {*known}:
        raise EdgeSteerError(f"methods {', '.join(names)!r}: allowed are {', '.join(METHODS)}, each once")
    if "steered" in names and not steering:
        raise EdgeSteerError("the method 'steered' needs a vector")
    if "rewriting-prompt" in names and not rewriting:
        raise EdgeSteerError("the method 'rewriting-prompt' needs the text of the rules of rewriting")
    return {name: known[name] for name in names}
