"""A folder of results: rows.jsonl under a header that says what the rows depend on, and summary.json.

Takes a Backend, tasks and the names of methods, makes the rows that are not there yet, gives figures and comparisons
of them; reads the folder again. It parses no options and prints nothing.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from edge_steer.backend import Backend
from edge_steer.errors import EdgeSteerError
from edge_steer.evaluate import UNSTEERED, Comparison, Method, Row, Summary, compare, evaluate, summarise, weighted
from edge_steer.files import replacing
from edge_steer.grading import Graders
from edge_steer.store import Record, Store, read
from edge_steer.tasks import Task
from edge_steer.vector import Steering

Cells = dict[tuple[str, str], list[Row]]  # task, method
Progress = Callable[[str, int, int], None]  # what is being done, how much is done, of how much

FORMAT = "edge-steer rows 1"
METHODS = ("unsteered", "steered", "dense-prompt")
ROWS, SUMMARY = "rows.jsonl", "summary.json"

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


def load(folder: Path) -> tuple[Record, Cells]:
    """Header and rows of a folder, also while it is being filled. Errors: EdgeSteerError for any other folder."""
    header, records = read(folder / ROWS)
    if header.get("format") != FORMAT:
        raise EdgeSteerError(f"{folder / ROWS} holds no rows of an evaluation; expected the format {FORMAT!r}")
    last = {row.key: row for row in map(Row.of, records)}
    cells: Cells = {}
    for row in last.values():
        cells.setdefault((row.task, row.method), []).append(row)
    return header, cells


def summaries(cells: Cells) -> dict[tuple[str, str], Summary]:
    """The figures of each cell; with several tasks also the weighted average of each method, as the task "".

    Only of methods that every task has: averages over different tasks cannot be compared.
    """
    found = {cell: summarise(rows) for cell, rows in cells.items()}
    tasks = _names(cells, 0)
    for method in _names(cells, 1) if len(tasks) > 1 else ():
        if all((task, method) in cells for task in tasks):
            found["", method] = weighted([found[task, method] for task in tasks])
    return found


def comparisons(cells: Cells) -> list[tuple[str, Comparison]]:
    """Every two methods of a run; see `between`."""
    return between(cells, cells, list(combinations(_names(cells, 1), 2)))


def between(before: Cells, after: Cells, methods: Sequence[tuple[str, str]]) -> list[tuple[str, Comparison]]:
    """Pairs of methods, the first of `before` and the second of `after`, on each task that both have.

    With several tasks also on all their problems together, as the task "".
    """
    found = []
    for one, other in methods:
        tasks = [task for task, method in before if method == one and (task, other) in after]
        found += [(task, compare(before[task, one], after[task, other])) for task in tasks]
        if len(tasks) > 1:
            sides = ([row for t in tasks for row in side[t, m]] for side, m in ((before, one), (after, other)))
            found.append(("", compare(*sides)))
    return found


def save(folder: Path, header: Mapping[str, object], cells: Cells) -> dict[str, object]:
    """Write summary.json: the header, the figures and the comparisons; what was written."""
    written = {
        **header,
        "cells": [{"task": t, "method": m, **asdict(summary)} for (t, m), summary in summaries(cells).items()],
        "comparisons": [{"task": task, **asdict(comparison)} for task, comparison in comparisons(cells)],
    }
    with replacing(folder / SUMMARY) as temporary:
        temporary.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return written


def _names(cells: Iterable[tuple[str, str]], index: int) -> list[str]:
    return list(dict.fromkeys(cell[index] for cell in cells))
