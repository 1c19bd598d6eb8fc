"""A backend on a task: every completion a row, graded and scored; then accuracy, steps, tokens, density and NLL.

Takes a Backend, a Task and methods, gives rows, and figures with intervals from rows. With a Store every row is on
disk before the next is counted, and a stopped run goes on where it ended. It knows no model format and no plot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_steer.core.backend import Backend
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import Progress
from edge_steer.core.steering import Steering
from edge_steer.evaluation.results import FORMAT, ROWS, Cells
from edge_steer.storage.records import Store
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.rows import UNSTEERED, Method, OnRow, Prompts, Row, answer, jobs_of, scored
from edge_steer.tasks.task import Task


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

    prompts = Prompts(backend)
    for job in jobs:
        if (found := rows.get(job.key)) and found.ids:
            keep(scored(backend, prompts.of(job), found))
    answer(backend, [job for job in jobs if job.key not in rows], graders, keep, nll=nll)
    return [rows[job.key] for job in jobs]


METHODS = ("unsteered", "steered", "dense-prompt")
# Our words for what DenseSteer's rewriting prompt asks for: the same meaning, fewer steps, more in each.
DENSE_PROMPT = (
    "Reason densely. Solve the problem in as few steps as possible: merge steps that belong together, and let each "
    "step carry as much of the computation as it can. Leave out repetition, but no calculation that the answer needs. "
    "Write each step as one paragraph, with a blank line between steps."
)


def methods_of(names: Sequence[str], task: Task, steering: tuple[Steering, ...]) -> list[Method]:
    """The methods of METHODS that `names` lists, for a task.

    "dense-prompt" puts DENSE_PROMPT after the task's own system message. Errors: EdgeSteerError for an unknown name,
    or "steered" without a steering.
    """
    known = {
        "unsteered": UNSTEERED,
        "steered": Method("steered", steering),
        "dense-prompt": Method("dense-prompt", system="\n\n".join(filter(None, (task.settings.system, DENSE_PROMPT)))),
    }
    if not names or len({*names}) < len(names) or not {*names} <= {*known}:
        raise EdgeSteerError(f"methods {', '.join(names)!r}: allowed are {', '.join(METHODS)}, each once")
    if "steered" in names and not steering:
        raise EdgeSteerError("the method 'steered' needs a vector; give one with --vector")
    return [known[name] for name in names]


def header_of(
    model: Mapping[str, object],
    backend: Mapping[str, object],
    tasks: Sequence[Task],
    methods: Sequence[str],
    steering: Sequence[Steering],
    versions: Mapping[str, str],
    *,
    nll: bool,
    grading_seconds: float,
) -> dict[str, object]:
    """All that the rows depend on. model: at least its file's digest. backend: the settings that change numbers."""
    return {
        "format": FORMAT,
        "model": {**model},
        "backend": {**backend},
        "steering": [
            {"vector": s.vector.digest, "strength": s.strength, "layers": s.layers, "phase": s.phase} for s in steering
        ],
        "methods": {name: DENSE_PROMPT if name == "dense-prompt" else None for name in methods},
        "tasks": {
            task.name: {
                "digest": task.digest,
                "problems": len(task.samples),
                "grader": task.grader,
                "settings": asdict(task.settings),
            }
            for task in tasks
        },
        "nll": nll,
        "grading_seconds": grading_seconds,
        "versions": {**versions},
    }


def make(
    folder: Path,
    header: Mapping[str, object],
    backend: Backend,
    tasks: Sequence[Task],
    methods: Sequence[str],
    steering: tuple[Steering, ...],
    *,
    graders: Graders,
    progress: Progress,
    nll: bool = True,
) -> Cells:
    """Every method on every task, kept in `folder`; rows that are there are not made again.

    Once all are there the file holds each row once, in the order of tasks, methods, problems and repeats.
    Errors: EdgeSteerError for a folder with other rows, or one that another process writes.
    """
    cells: Cells = {}
    with Store.open(folder / ROWS, header) as store:
        kept = {row.key for row in map(Row.of, store.records)}
        for task in tasks:
            for method in methods_of(methods, task, steering):
                cell = task.name, method.name
                done = {key for key in kept if key[:2] == cell}
                doing, total = ", ".join(cell), len(task.samples) * task.settings.samples

                def count(row: Row, done: set[Any] = done, doing: str = doing, total: int = total) -> None:
                    done.add(row.key)
                    progress(doing, len(done), total)

                progress(doing, len(done), total)
                cells[cell] = evaluate(backend, task, method, graders=graders, store=store, on_row=count, nll=nll)
        records = [row.record() for rows in cells.values() for row in rows]
        if records != store.records:
            store.replace(records)
    return cells
