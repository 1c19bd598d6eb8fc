"""Records that outlive a kill: JSON lines under a header that says what they depend on.

Takes JSON objects, puts each on the disk before it counts, and gives them back when the file is opened again. One
process writes at a time. It knows nothing of what the records mean.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Self

import filelock

from edge_steer.core.errors import EdgeSteerError
from edge_steer.storage.files import readable

Record = dict[str, Any]
_MISSING = object()


class Store:
    """A file of records, open for appending. `records`: those read when it was opened, then every appended one."""

    def __init__(self, path: str | Path, header: Mapping[str, object]) -> None:
        self.path = path = Path(path)
        self._header = _normal(header)
        # A kill leaves the lock's file but not the lock, which ends with the process.
        self._lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), blocking=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self._file = path.open("a+b", buffering=0)
        except filelock.Timeout:
            raise EdgeSteerError(
                f"{path} is being written by another process; wait for it, or name another file"
            ) from None
        except OSError as error:
            self._release()
            raise EdgeSteerError(f"cannot write {path}: {error.strerror}; choose another place") from None
        try:
            self.records = self._resume()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: str | Path, header: Mapping[str, object]) -> Self:
        """Begin a file, its folders too, or take one up again; a last line that was torn by a kill is cut off, and a
        header of the same format that has no record yet gives way.

        Errors: EdgeSteerError for a file with another header, one that is no record file, or one that another
        process writes.
        """
        return cls(path, header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up the file and its lock."""
        self._file.close()
        self._release()

    def append(self, record: Mapping[str, object]) -> None:
        """Add a record; it is on the disk when this returns. Errors: EdgeSteerError when it cannot be written."""
        self._write(_line(record))
        self.records.append(_normal(record))

    def replace(self, records: Iterable[Mapping[str, object]]) -> None:
        """Put these records in the place of all there are, in one step: a kill leaves the old file or the new one."""
        new_records = [_normal(record) for record in records]
        temporary = self.path.with_name(f".{self.path.name}.partial")
        try:
            with contextlib.ExitStack() as undo:
                new = undo.enter_context(temporary.open("w+b", buffering=0))
                undo.callback(temporary.unlink, missing_ok=True)
                _put(new, b"".join(map(_line, (self._header, *new_records))))
                temporary.replace(self.path)
                _sync_folder(self.path.parent)
                undo.pop_all()
        except OSError as error:
            raise EdgeSteerError(f"cannot write {self.path}: {error.strerror}; free some space") from None
        self._file.close()
        self._file, self.records = new, new_records

    def _resume(self) -> list[Record]:
        self._file.seek(0)
        text = self._file.read()
        whole_lines = text[: text.rfind(b"\n") + 1]
        if len(whole_lines) < len(text):
            self._file.truncate(len(whole_lines))
        if not whole_lines:
            self._write(_line(self._header))
            _sync_folder(self.path.parent)
            return []
        header, records = _parse(self.path, whole_lines)
        if difference := _difference(header, self._header):
            if not records and header.get("format") == self._header.get("format"):  # ended before its first record
                self._file.truncate(0)
                self._write(_line(self._header))
                return []
            raise EdgeSteerError(
                f"{self.path} was made otherwise: {difference}; name another file, or delete it to begin anew"
            )
        return records

    def _write(self, line: bytes) -> None:
        end = self._file.seek(0, os.SEEK_END)
        try:
            _put(self._file, line)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise EdgeSteerError(
                f"cannot write {self.path}: {error.strerror}; free some space and run again to go on"
            ) from None

    def _release(self) -> None:
        with contextlib.suppress(OSError):  # Windows removes no open file; the next writer takes it over
            if self._lock.is_locked:
                Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()


def read(path: str | Path) -> tuple[Record, list[Record]]:
    """Header and whole records of a file, which may be being written. Errors: EdgeSteerError for any other file."""
    path = readable(path, "records under a header")
    text = path.read_bytes()
    return _parse(path, text[: text.rfind(b"\n") + 1])


def _parse(path: Path, text: bytes) -> tuple[Record, list[Record]]:
    lines: list[Record] = []
    for number, line in enumerate(text.split(b"\n")[:-1], start=1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise EdgeSteerError(f"{path} is damaged, or no file of records: line {number} is no JSON object")
        lines.append(value)
    if not lines:
        raise EdgeSteerError(f"{path} holds no whole line; expected records under a header")
    return lines[0], lines[1:]


def _line(record: Mapping[str, object]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _normal(record: Mapping[str, object]) -> Record:
    """The record as it is read back."""
    value: Record = json.loads(_line(record))
    return value


def _difference(there: object, here: object, key: str = "") -> str:
    """The first key whose values differ, with both; "" if none does."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in (*here, *there):
            inner = f"{key}.{name}" if key else str(name)
            if difference := _difference(there.get(name, _MISSING), here.get(name, _MISSING), inner):
                return difference
        return ""
    return "" if there == here else f"{key} is {_brief(there)} there and {_brief(here)} here"


def _brief(value: object) -> str:
    if value is _MISSING:
        return "missing"
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _put(file: FileIO, data: bytes) -> None:
    """Write all of it and wait for the disk."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder last; where folders cannot be opened, there is nothing to do."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
