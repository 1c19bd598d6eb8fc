"""Whole files or none: writing through a temporary name, reading what must be there, and the cache folder.

Takes paths, gives paths and text. It knows nothing of what the files mean.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from edge_steer.core.errors import EdgeSteerError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends well and vanishes when it does not.

    Errors: EdgeSteerError when the folder does not exist or cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        temporary.touch(exist_ok=False)  # with the mode that the umask leaves
    except OSError as error:
        raise EdgeSteerError(
            f"cannot write {path}: {error.strerror}; choose a folder that exists and is writable"
        ) from None
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise EdgeSteerError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write a whole UTF-8 file or leave the old one; the path. Errors: as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def write_json(path: str | Path, value: object) -> Path:
    """Write a value as indented JSON, the whole file or none; the path. Errors: as `replacing`."""
    return write_text(path, json.dumps(value, indent=1) + "\n")


def readable(path: str | Path, what: str) -> Path:
    """`path` itself if it is a file with content. Errors: EdgeSteerError naming `what` was expected."""
    path = Path(path)
    if not path.is_file():
        raise EdgeSteerError(f"no such file: {path}; expected {what}")
    if not path.stat().st_size:
        raise EdgeSteerError(f"{path} is empty; expected {what}")
    if not os.access(path, os.R_OK):
        raise EdgeSteerError(f"{path} cannot be read: permission denied")
    return path


def read_text(path: str | Path, what: str) -> str:
    """A whole UTF-8 text. Errors: EdgeSteerError as of `readable`, or if it is not UTF-8."""
    try:
        return readable(path, what).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise EdgeSteerError(f"{path} is not UTF-8 at byte {error.start + 1}; expected {what}") from None


def read_lines(path: str | Path, what: str) -> list[str]:
    """The lines of a UTF-8 text that are not blank. Errors: EdgeSteerError if there are none, or it is not UTF-8."""
    lines = [line for line in read_text(path, what).splitlines() if line.strip()]
    if not lines:
        raise EdgeSteerError(f"{path} holds only blank lines; expected {what}")
    return lines


def cache_folder() -> Path:
    """Where derived files are kept: $EDGE_STEER_CACHE, else edge-steer in the user's cache folder."""
    folder = Path(os.environ.get("EDGE_STEER_CACHE") or platformdirs.user_cache_path("edge-steer", appauthor=False))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def size_in_words(size: float) -> str:
    """A number of bytes to three digits: 1234567 is "1.23 MB"."""
    for unit_bytes, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit_bytes:
            return f"{size / unit_bytes:.3g} {unit}"
    return f"{size:.0f} bytes"
