"""A folder of results: rows.jsonl under a header that says what the rows depend on, and summary.json.

Reads the rows of a folder, gives figures and comparisons of them, and names a folder after what its rows depend on. It
runs no model and prints nothing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from edge_steer.core.errors import EdgeSteerError
from edge_steer.evaluation.figures import Comparison, Summary, compare, summarise, weighted
from edge_steer.evaluation.units import read_rows
from edge_steer.storage.files import write_json
from edge_steer.storage.provenance import key
from edge_steer.storage.records import Record
from edge_steer.tasks.rows import Row

Cells = dict[tuple[str, str], list[Row]]  # task, method
FORMAT = "edge-steer rows 1"
ROWS, SUMMARY = "rows.jsonl", "summary.json"
RESULTS = Path("results")


def default_folder(header: Mapping[str, Any], prefix: str = "", root: Path = RESULTS) -> Path:
    """<root>/<model>/<prefix><key of the header>: the same settings lead to the same folder."""
    return root / folder_name(model_of(header).replace(" ", "-")) / f"{prefix}{key(header)}"


def model_of(header: Mapping[str, Any]) -> str:
    """The model of a header with its quant, as "abacus Q4_K_M"."""
    model = header["model"]
    return " ".join(filter(None, (model["name"], model.get("quant"))))


def folder_name(name: str) -> str:
    """A model's name as a folder's: without its owner, and only letters, digits, '.', '_' and '-'."""
    return re.sub(r"[^\w.-]+", "-", name.rpartition("/")[2]).strip(".-") or "model"


def load_results(folder: str | Path) -> tuple[Record, Cells]:
    """Header and rows of a folder, also while it is being filled. Errors: EdgeSteerError for any other folder."""
    path = Path(folder) / ROWS
    header, rows = read_rows(path, FORMAT)
    cells: Cells = {}
    for row in rows:
        cells.setdefault((row.task, row.method), []).append(row)
    return header, cells


def summaries(cells: Cells) -> dict[tuple[str, str], Summary]:
    """The figures of each cell; with several tasks also the weighted average of each method, as the task "".

    Only of methods that every task has: averages over different tasks cannot be compared.
    """
    by_cell = {cell: summarise(rows) for cell, rows in cells.items()}
    tasks = _names(cells, 0)
    for method in _names(cells, 1) if len(tasks) > 1 else ():
        if all((task, method) in cells for task in tasks):
            by_cell["", method] = weighted([by_cell[task, method] for task in tasks])
    return by_cell


def comparisons(cells: Cells) -> list[tuple[str, Comparison]]:
    """Every two methods of a run; see `compare_methods`."""
    return compare_methods(cells, cells, list(combinations(_names(cells, 1), 2)))


def compare_methods(before: Cells, after: Cells, methods: Sequence[tuple[str, str]]) -> list[tuple[str, Comparison]]:
    """Pairs of methods, the first of `before` and the second of `after`, on each task that both have.

    With several tasks also on all their problems together, as the task "".
    """
    by_task = []
    for one, other in methods:
        tasks = [task for task, method in before if method == one and (task, other) in after]
        by_task += [(task, compare(before[task, one], after[task, other])) for task in tasks]
        if len(tasks) > 1:
            sides = ([row for t in tasks for row in side[t, m]] for side, m in ((before, one), (after, other)))
            by_task.append(("", compare(*sides)))
    return by_task


def compare_folders(
    before: str | Path, after: str | Path, methods: tuple[str, str] | None = None
) -> list[tuple[str, Comparison]]:
    """Two folders of results on the problems that both hold, task by task.

    methods: one of each folder; None compares each method that both hold with itself. Errors: EdgeSteerError for a
    folder without results, or nothing in common.
    """
    (_, one), (_, other) = load_results(before), load_results(after)
    shared = [(name, name) for name in _names(one, 1) if name in _names(other, 1)]
    by_task = compare_methods(one, other, [methods] if methods else shared)
    if not by_task:
        raise EdgeSteerError(
            f"no task with a method that both hold: {before} has {_contents(one)}; {after} has {_contents(other)}"
        )
    return by_task


def other_problems(before: str | Path, after: str | Path) -> list[str]:
    """The tasks of which the two folders hold different sets of problems."""
    (header, _), (other, _) = load_results(before), load_results(after)
    before_tasks, after_tasks = header["tasks"], other["tasks"]
    shared = [task for task in before_tasks if task in after_tasks]
    return [task for task in shared if before_tasks[task]["digest"] != after_tasks[task]["digest"]]


def save_summary(folder: Path, header: Mapping[str, object], cells: Cells) -> Path:
    """Write summary.json: the header, the figures and the comparisons; its path."""
    summary = {
        **header,
        "cells": [{"task": t, "method": m, **asdict(figures)} for (t, m), figures in summaries(cells).items()],
        "comparisons": [{"task": task, **asdict(comparison)} for task, comparison in comparisons(cells)],
    }
    return write_json(folder / SUMMARY, summary)


def _names(cells: Iterable[tuple[str, str]], index: int) -> list[str]:
    return list(dict.fromkeys(cell[index] for cell in cells))


def _contents(cells: Iterable[tuple[str, str]]) -> str:
    return "; ".join(", ".join(cell) for cell in cells) or "no rows"
