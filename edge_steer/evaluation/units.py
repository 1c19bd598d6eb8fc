"""Rows in units: blocks of a task's problems under every method, resumable after a kill at any point.

Takes a task, methods and a runner that makes rows, gives all rows. The units follow from the settings alone, so the
rows do not depend on when a run was stopped or on who made them. It loads no model: a runner has one.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from edge_steer.core.backend import Backend
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.storage.records import Record, Store, read
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.rows import Key, Method, OnRow, Row, RowJob, complete, jobs_of
from edge_steer.tasks.task import Sample, Task

UNIT_ROUNDS = 8  # a unit fills the batch this many times over, so that its end, which does not fill it, weighs little
WHOLE = "whole"  # the key of the record that says a unit has all its rows


@dataclass(frozen=True)
class Unit:
    """A block of problems, to be answered under every method in one call of the backend."""

    index: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Plan:
    """All the rows of one file: a task's problems under each method, in units of `problems` problems."""

    task: Task
    methods: tuple[Method, ...]
    problems: int
    nll: bool = True

    @classmethod
    def of(cls, task: Task, methods: Sequence[Method], parallel: int, nll: bool = True) -> "Plan":
        """Units large enough for a batch of `parallel` sequences to be full most of the time."""
        per_problem = len(methods) * task.settings.samples
        return cls(task, tuple(methods), math.ceil(UNIT_ROUNDS * parallel / per_problem), nll)

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        samples, step = self.task.samples, self.problems
        return tuple(Unit(i // step, samples[i : i + step]) for i in range(0, len(samples), step))

    @property
    def size(self) -> int:
        """How many rows there are in all."""
        return len(self.task.samples) * len(self.methods) * self.task.settings.samples

    def jobs(self, unit: Unit) -> list[RowJob]:
        """A unit's jobs, those of one problem side by side, so that its prompt is computed once."""
        by_method = [{(job.sample.id, job.repeat): job for job in jobs_of(self.task, m)} for m in self.methods]
        repeats = range(self.task.settings.samples)
        return [jobs[sample.id, repeat] for sample in unit.samples for repeat in repeats for jobs in by_method]


class Runner(Protocol):
    """Makes the rows of units: in this process, or elsewhere."""

    def __call__(self, plan: Plan, units: Sequence[Unit], on_row: OnRow) -> Iterator[Unit]:
        """on_row is called for every row, a later one of the same key replacing the earlier.

        A unit is given once on_row was called for all its rows. Units may come in any order.
        """


@dataclass(frozen=True)
class PlanRows:
    """The rows of a plan in its order. changed: how many came out otherwise when they were made again."""

    rows: tuple[Row, ...]
    changed: int

    def of(self, method: str) -> list[Row]:
        return [row for row in self.rows if row.method == method]


def in_process(backend: Backend, graders: Graders) -> Runner:
    """A runner that makes units one after the other on this backend."""

    def run(plan: Plan, units: Sequence[Unit], on_row: OnRow) -> Iterator[Unit]:
        for unit in units:
            complete(backend, plan.jobs(unit), graders, on_row, nll=plan.nll)
            yield unit

    return run


def make_rows(
    plan: Plan,
    runner: Runner,
    *,
    path: Path | None = None,
    header: Mapping[str, object] | None = None,
    progress: Progress = SILENT,
    doing: str = "answering",
) -> PlanRows:
    """All rows of a plan, kept in a file of records; what whole units there are is not made again.

    A unit that was cut short is made again from its beginning: in the same batch the same rows come out, and rows
    that are on disk stay as they are unless their text did change, which is counted.
    path: of the file; None keeps no rows. header: what the rows depend on. progress: called with `doing`, the rows
    done and the rows in all. Errors: EdgeSteerError.
    """
    with contextlib.ExitStack() as stack:
        store = None
        if path:
            header = {**(header or {}), "rows": plan.size, "problems a unit": plan.problems}
            store = stack.enter_context(Store.open(path, header))
        records = list(store.records) if store else []
        rows = last_rows(records)
        whole = {record[WHOLE] for record in records if WHOLE in record}
        done = {job.key for unit in plan.units if unit.index in whole for job in plan.jobs(unit)}
        changed: set[Key] = set()

        def keep(row: Row) -> None:
            before = rows.get(row.key)
            if before and before.text != row.text:
                changed.add(row.key)
            if before is None or before.text != row.text or (before.nll is None and row.nll is not None):
                if store:
                    store.append(row.record())
                rows[row.key] = row
            done.add(row.key)
            progress(doing, len(done), plan.size)

        progress(doing, len(done), plan.size)
        for unit in runner(plan, [unit for unit in plan.units if unit.index not in whole], keep):
            if store:
                store.append({WHOLE: unit.index})
    return PlanRows(tuple(rows[job.key] for unit in plan.units for job in plan.jobs(unit)), len(changed))


def read_rows(path: Path, format: str) -> tuple[Record, list[Row]]:
    """The header of a file and its rows so far, also while it is being written.

    Errors: EdgeSteerError for a file whose header names another format.
    """
    header, records = read(path)
    if header.get("format") != format:
        raise EdgeSteerError(f"{path} holds no rows of an evaluation; expected the format {format!r}")
    return header, list(last_rows(records).values())


def last_rows(records: Sequence[Record]) -> dict[Key, Row]:
    """The last row of each key."""
    rows = (Row.of(record) for record in records if WHOLE not in record)
    return {row.key: row for row in rows}
