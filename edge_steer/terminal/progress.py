"""Progress of long work on standard error: a bar with an estimate in a terminal, a line now and then in a log.

Takes what `core.progress.Progress` is told. rich is imported when the first bar is drawn.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from edge_steer.core.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

LOG_SECONDS = 10.0  # between two lines of a log


def say(message: str) -> None:
    """A line on stderr."""
    click.echo(message, err=True)


class Notes(Progress):
    """Prints notes on stderr, and no bar: for work that has no steps to count."""

    def note(self, text: str) -> None:
        say(text)


NOTES = Notes()


class LogProgress(Notes):
    """A line on stderr every `LOG_SECONDS`: what is being done, how much is done, how long the rest may take."""

    def __init__(self) -> None:
        self._doing = ""
        self._began = self._told = time.monotonic()
        self._first = 0

    def __call__(self, doing: str, done: int = 0, total: int = 1) -> None:
        now = time.monotonic()
        if doing != self._doing:
            self._doing, self._began, self._first = doing, now, done
        if now - self._told < LOG_SECONDS:
            return
        self._told = now
        left = ""
        if done > self._first:
            seconds = (now - self._began) / (done - self._first) * (total - done)
            left = f", about {duration(seconds)} left"
        say(f"{doing}: {done} of {total}{left}")


class BarProgress(Notes):
    """A bar that is drawn when the first step is told."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._doing = ""

    def __call__(self, doing: str, done: int = 0, total: int = 1) -> None:
        if self._bar is None:
            self._bar = _bar()
            self._task = self._bar.add_task("")
            self._bar.start()
        assert self._task is not None
        if doing != self._doing:
            self._doing = doing
            self._bar.reset(self._task, description=doing, completed=done)
        self._bar.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.stop()


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Progress on stderr while the block runs: a bar in a terminal, else lines of a log."""
    if not sys.stderr.isatty():
        yield LogProgress()
        return
    bar = BarProgress()
    try:
        yield bar
    finally:
        bar.close()


def duration(seconds: float) -> str:
    """A time in words, rounded: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bar() -> "Bar":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Bar(*columns, console=Console(stderr=True), transient=True)
