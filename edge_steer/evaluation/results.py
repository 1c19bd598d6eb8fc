"""A folder of results: rows.jsonl under a header that says what the rows depend on, and summary.json.

Takes a Backend, tasks and the names of methods, makes the rows that are not there yet, gives figures and comparisons
of them; reads the folder again. It parses no options and prints nothing.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError
from edge_steer.evaluation.figures import Comparison, Summary, compare, summarise, weighted
from edge_steer.storage.files import replacing
from edge_steer.storage.records import Record, read
from edge_steer.tasks.rows import Row

Cells = dict[tuple[str, str], list[Row]]  # task, method
FORMAT = "edge-steer rows 1"
ROWS, SUMMARY = "rows.jsonl", "summary.json"


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
