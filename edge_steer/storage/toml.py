"""A TOML file whose keys are taken one by one, each checked, so that a leftover is a mistake.

Takes a path, gives strings, numbers and lists of the right kind. It knows no key and no default of its own.
"""

import copy
import math
import tomllib
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError
from edge_steer.storage.files import readable


class TomlTable:
    """The keys of a file, or of a table in it. `what` it should hold is said if it is missing.

    Errors: EdgeSteerError, one line.
    """

    def __init__(self, path: str | Path, what: str) -> None:
        self.path = path = readable(path, what)
        try:
            self.rest = tomllib.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise EdgeSteerError(f"{path} is not TOML: {error}") from None
        self.taken: set[str] = set()
        self.name = ""

    def has(self, key: str) -> bool:
        """Whether the key is there and not taken yet."""
        self.taken.add(key)
        return key in self.rest

    def table(self, key: str) -> "TomlTable | None":
        """The table [key], to be taken and finished like this one; None if there is none."""
        if not self.has(key):
            return None
        rest = self._take(key)
        if not isinstance(rest, dict):
            raise self.error(key, f"{rest!r} is not a table")
        table = copy.copy(self)
        table.rest, table.taken, table.name = rest, set(), f"{self.name}{key}."
        return table

    def tables(self, *keys: str) -> "list[TomlTable]":
        """These tables, each of which must be there."""
        tables = []
        for key in keys:
            if not (table := self.table(key)):
                raise self.error(key, "is missing")
            tables.append(table)
        return tables

    def text(self, key: str, optional: bool = False) -> str:
        value = self._take(key, "" if optional else None)
        if not isinstance(value, str):
            raise self.error(key, f"{value!r} is not a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"{value!r} is not true or false")
        return value

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        value = self._take(key, None if default is None else list(default))
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(key, f"{value!r} is not a list of strings")
        return tuple(value)

    def whole(self, key: str, default: int | None = None) -> int:
        value = self._take(key, default)
        if type(value) is not int or value < 0:
            raise self.error(key, f"{value!r} is not a whole number from 0 up")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(key, f"{value!r} is not a finite number")
        return float(value)

    def finish(self) -> None:
        """Errors: EdgeSteerError for a key that nobody took."""
        if self.rest:
            raise self.error(min(self.rest), f"no such key; allowed are {', '.join(sorted(self.taken))}")

    def error(self, key: str, why: str) -> EdgeSteerError:
        return EdgeSteerError(f"{self.path}: {self.name}{key}: {why}")

    def _take(self, key: str, default: object = None) -> object:
        self.taken.add(key)
        value = self.rest.pop(key, default)
        if value is None:
            raise self.error(key, "is missing")
        return value
