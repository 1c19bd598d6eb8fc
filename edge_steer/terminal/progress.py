"""Progress of long work on standard error: a bar with an estimate in a terminal, a line now and then in a log.

Takes what `core.progress.Progress` is told. rich is imported when the first bar is drawn.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from edge_steer.core.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

LOG_SECONDS = 10.0  # between two lines of a log


def say(message: str) -> None:
    """A line on stderr, above a bar that is drawn there."""
    print(message, file=sys.stderr, flush=True)  # while rich draws, sys.stderr is its own


class Notes(Progress):
    """Prints notes on stderr, and no bar: for work that has no steps to count."""

    def note(self, text: str) -> None:
        say(text)


NOTES = Notes()


class LogProgress(Notes):
    """A line on stderr now and then: what is being done, how much of it is done, how long the rest may take.

    The lines come from a thread of their own, so that a single long step is in the log too. seconds: between two lines.
    """

    def __init__(self, seconds: float = LOG_SECONDS) -> None:
        self._seconds = seconds
        self._doing = ""
        self._first = self._done = self._total = 0
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._log, daemon=True)
        self._thread.start()

    def __call__(self, doing: str, done: int = 0, total: int = 1) -> None:
        if doing != self._doing or done < self._done:
            self._doing, self._began, self._first = doing, time.monotonic(), done
        self._done, self._total = done, total

    def line(self, now: float) -> str:
        """The state at a time of `time.monotonic`."""
        passed, steps = now - self._began, self._done - self._first
        if not steps:
            return f"{self._doing}: {self._done} of {self._total} after {duration(passed)}"
        left = passed / steps * (self._total - self._done)
        return f"{self._doing}: {self._done} of {self._total}, about {duration(left)} left"

    def close(self) -> None:
        """End the log."""
        self._ended.set()
        self._thread.join()

    def _log(self) -> None:
        while not self._ended.wait(self._seconds):
            if self._doing:
                say(self.line(time.monotonic()))


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
    with closing(BarProgress() if sys.stderr.isatty() else LogProgress()) as progress:
        yield progress


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
