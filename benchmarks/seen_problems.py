"""Which problems of a task earlier runs drew, and the others.

Takes a table of settings and tasks, gives frozen values and tasks. It runs no model.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from edge_steer.storage.toml import TomlTable
from edge_steer.tasks.task import Task


@dataclass(frozen=True)
class Seen:
    """The first `problems` of a draw of `draw` by seed 0."""

    problems: int
    draw: int


def seen_draws(table: TomlTable) -> tuple[Seen, ...]:
    """The table's `seen`, such as ["64 of 320"], one run after the other; none where it is missing."""
    draws = []
    for text in table.texts("seen", ()):
        numbers = text.split(" of ")
        if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
            raise table.error("seen", f"{text!r} is not like '64 of 320'")
        draws.append(Seen(*map(int, numbers)))
    return tuple(draws)


def without_seen(task: Task, seen: Iterable[Seen]) -> Task:
    """The problems that no earlier run drew; each run drew from what those before it left."""
    for run in seen:
        ids = {sample.id for sample in task.subset(run.draw).samples[: run.problems]}
        task = replace(task, samples=tuple(sample for sample in task.samples if sample.id not in ids))
    return task
