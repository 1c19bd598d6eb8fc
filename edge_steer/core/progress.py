"""How long work tells of itself: what is being done, how much of it is done, and a note now and then.

One type for every function that takes a while. This one is silent; `terminal.progress` shows it. It prints nothing.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Progress:
    """Hears what long work does. Silent; a subclass shows it."""

    def __call__(self, doing: str, done: int = 0, total: int = 1) -> None:
        """`doing` is what is being done, `done` how much of it is done, `total` of how much."""

    def note(self, text: str) -> None:
        """One line that stays: what is fetched, left out or written."""

    def counted(self, doing: str, items: Iterable[T], total: int | None = None) -> Iterator[T]:
        """`items`, each counted once the next is asked for. total: how many they are, if they have no length."""
        if total is None:
            items = items if isinstance(items, Collection) else list(items)
            total = len(items)
        self(doing, 0, total)
        for done, item in enumerate(items, start=1):
            yield item
            self(doing, done, total)


SILENT = Progress()
