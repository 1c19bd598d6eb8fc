"""SHA-256 of files; a large file is read once, and then known by its place, size and times.

Takes paths, gives hex digests. What is known lies in the cache folder, a small file for each large one. It knows
nothing of what the files hold.
"""

import contextlib
import hashlib
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError
from edge_steer.storage.files import cache_folder, write_text
from edge_steer.storage.provenance import key

LARGE = 2**23  # bytes; a smaller file is hashed in milliseconds
HEX_DIGITS = 64


def digest(path: str | Path) -> str:
    """SHA-256 of the file's bytes, in hex. A large file that has not changed since is not read again."""
    path = Path(path).resolve()
    state = _state(path)
    if path.stat().st_size < LARGE:
        return _sha256(path)
    known = cache_folder() / "digests" / key(state, length=32)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if len(sha256 := known.read_text("ascii")) == HEX_DIGITS:
            return sha256
    sha256 = _sha256(path)
    if _state(path) == state:  # nobody wrote to it meanwhile
        with contextlib.suppress(OSError, EdgeSteerError):  # without a writable cache it is read again
            known.parent.mkdir(exist_ok=True)
            write_text(known, sha256)
    return sha256


def weights_digest(folder: str | Path) -> str:
    """One SHA-256 over the names and digests of a folder's .safetensors files, in hex."""
    paths = sorted(Path(folder).glob("*.safetensors"))
    return hashlib.sha256("".join(f"{path.name} {digest(path)}\n" for path in paths).encode()).hexdigest()


def _state(path: Path) -> list[str | int]:
    """Where a file is, and what changes whenever its content does."""
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
