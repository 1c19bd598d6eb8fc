"""Members of a zip file within bounds, whatever its bytes claim: no bomb, no overlap, no second opinion on sizes.

Takes a path, gives bytes by name. Stored and deflated members are read, as torch and numpy write them; encrypted,
split and 64-bit archives are refused. It knows nothing of what the members hold.
"""

import mmap
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_steer.core.errors import VectorError
from edge_steer.storage.files import readable
from edge_steer.vectors.native import MAX_BYTES

MAGIC = b"PK\x03\x04"
MAX_MEMBERS = 4096
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 1
_END = struct.Struct("<4s4H2IH")  # end of central directory
_ENTRY = struct.Struct("<4s6H3I5H2I")  # one member in the central directory
_LOCAL = struct.Struct("<4s5H3I2H")  # what stands before a member's bytes
_LONGEST_COMMENT = 2**16 - 1


@dataclass(frozen=True)
class _Member:
    method: int
    crc: int
    packed: int
    size: int
    offset: int


class Archive:
    """An open zip file. `names`: its members, folders left out, in the order of its directory."""

    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self._path, self._view = path, view
        self._members, self._data_end = self._directory()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._members)

    def read(self, name: str) -> bytes:
        """A member unpacked. Errors: VectorError if it is not there or is not what the directory says."""
        if name not in self._members:
            raise VectorError(f"{self._path} has no member {name!r}; it is truncated or not what it seems")
        member = self._members[name]
        signature, *_, name_length, extra_length = self._unpack(_LOCAL, member.offset)
        start = member.offset + _LOCAL.size + name_length + extra_length
        if signature != MAGIC or start + member.packed > self._data_end:
            raise self._damaged(f"member {name!r} does not lie where the directory says")
        data = self._view[start : start + member.packed]
        if member.method == _DEFLATED:
            unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                data = unpacker.decompress(data, member.size + 1)
            except zlib.error as error:
                raise self._damaged(f"member {name!r} cannot be unpacked: {error}") from None
        if len(data) != member.size:
            raise self._damaged(f"member {name!r} is not of the {member.size} bytes that the directory says")
        if zlib.crc32(data) != member.crc:
            raise self._damaged(f"member {name!r} does not match its checksum")
        return data

    def _directory(self) -> tuple[dict[str, _Member], int]:
        tail = max(0, len(self._view) - _END.size - _LONGEST_COMMENT)
        if (at := self._view.rfind(b"PK\x05\x06", tail)) < 0:
            raise self._damaged("it has no end record")
        _, disk, first_disk, here, count, size, start, comment = self._unpack(_END, at)
        if disk or first_disk or here != count or start + size > at or at + _END.size + comment != len(self._view):
            raise self._damaged("its end record contradicts the file")
        if count > min(MAX_MEMBERS, size // _ENTRY.size):
            raise self._damaged(f"it claims {count} members; up to {MAX_MEMBERS} are read")
        members: dict[str, _Member] = {}
        at, total = start, 0
        for _ in range(count):
            entry = self._unpack(_ENTRY, at)
            _, _, _, flags, method, _, _, crc, packed, unpacked, *lengths, _, _, _, offset = entry
            name_length, extra_length, comment_length = lengths
            raw = self._view[at + _ENTRY.size : at + _ENTRY.size + name_length]
            at += _ENTRY.size + name_length + extra_length + comment_length
            try:
                name = raw.decode()
            except UnicodeDecodeError:
                raise self._damaged("a member's name is not UTF-8") from None
            if entry[0] != b"PK\x01\x02" or at > start + size or name in members:
                raise self._damaged(f"its directory is no list of members, or has {name!r} twice")
            if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
                raise VectorError(f"{self._path}: member {name!r} is encrypted or packed by method {method}")
            if (total := total + unpacked) > MAX_BYTES:
                raise VectorError(f"{self._path} unpacks to more than {MAX_BYTES} bytes; vectors have a few million")
            if not name.endswith("/"):
                members[name] = _Member(method, crc, packed, unpacked, offset)
        return members, start

    def _unpack(self, layout: struct.Struct, at: int) -> tuple[Any, ...]:
        if at + layout.size > len(self._view):
            raise self._damaged(f"it ends at byte {len(self._view)}")
        return layout.unpack_from(self._view, at)

    def _damaged(self, why: str) -> VectorError:
        return VectorError(f"{self._path} is truncated or damaged: {why}")


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """The zip file at `path`. Errors: VectorError for one that is too large, damaged or of an unread kind."""
    if readable(path, "a zip file").stat().st_size > MAX_BYTES:
        raise VectorError(f"{path} has more than {MAX_BYTES} bytes; vector files have a few million")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        yield Archive(path, view)
