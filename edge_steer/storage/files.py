"""Whole files or none: writing through a temporary name, and naming content by SHA-256. Imports only errors."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends well and vanishes when it does not.

    Errors: EdgeSteerError when the folder does not exist or cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    except OSError as error:
        raise EdgeSteerError(
            f"cannot write {path}: {error.strerror}; choose a folder that exists and is writable"
        ) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise EdgeSteerError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def readable(path: Path, what: str) -> Path:
    """`path` itself if it is a file with content. Errors: EdgeSteerError naming `what` was expected."""
    if not path.is_file():
        raise EdgeSteerError(f"no such file: {path}; expected {what}")
    if not path.stat().st_size:
        raise EdgeSteerError(f"{path} is empty; expected {what}")
    if not os.access(path, os.R_OK):
        raise EdgeSteerError(f"{path} cannot be read: permission denied")
    return path


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a UTF-8 text that are not blank. Errors: EdgeSteerError if there are none, or it is not UTF-8."""
    try:
        lines = [line for line in readable(path, what).read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise EdgeSteerError(f"{path} is not UTF-8 at byte {error.start + 1}; expected {what}") from None
    if not lines:
        raise EdgeSteerError(f"{path} holds only blank lines; expected {what}")
    return lines


def digest(path: Path) -> str:
    """SHA-256 of the file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where derived files are kept: $EDGE_STEER_CACHE, else edge-steer under the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-steer"
    folder = Path(os.environ.get("EDGE_STEER_CACHE") or default)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
