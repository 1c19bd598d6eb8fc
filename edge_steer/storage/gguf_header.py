"""The front of a GGUF file, read within bounds: its keys and where its tensors lie, never the tensors themselves.

Takes a path, gives a Header; whatever the bytes say, it costs little time and memory or ends in one line.
The rules are those of llama.cpp's own loader (ggml/src/gguf.cpp). It knows nothing of vectors or models.
"""

import math
import mmap
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError
from edge_steer.storage.files import readable

Scalar = str | int | float | bool
F32, F16, F64, BF16 = 0, 1, 28, 30  # enum ggml_type
CONTROL_VECTOR = "controlvector"  # general.architecture of a control vector
UINT32, INT32, STRING, FLOAT64 = 4, 5, 8, 12  # enum gguf_type
MAX_KEYS = 65_536
MAX_TENSORS = 65_536
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_NAME = 63  # GGML_MAX_NAME less its terminator
MAX_TEXT = 2**26  # bytes of all strings that are read
MAX_ITEMS = 2**21  # strings in all arrays that are passed over; the largest vocabularies have 800,000
KEPT_ITEMS = 1024
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ARRAY = 9
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # enum gguf_type
_SCALARS = {kind: struct.Struct("<" + code) for kind, code in _CODES.items()}
_U32, _U64 = _SCALARS[4], _SCALARS[10]


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's name, shape (fastest axis first), ggml type and offset in bytes from `Header.data`."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class Header:
    """`metadata` leaves out arrays of more than 1024 items that were not asked for. `data`: where the tensors begin.

    types: each key's type, of enum gguf_type. listing: where the list of the tensors begins and ends.
    """

    metadata: dict[str, Scalar | tuple[Scalar, ...]]
    types: dict[str, int]
    tensors: tuple[TensorInfo, ...]
    data: int
    alignment: int
    listing: tuple[int, int]

    @property
    def architecture(self) -> str:
        """What `general.architecture` says; "unknown" without it."""
        return str(self.metadata.get("general.architecture", "unknown"))

    @property
    def parameters(self) -> int:
        """How many weights the tensors hold."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


def read_header(path: str | Path, only: str | None = None, *, whole: Collection[str] = ()) -> Header:
    """The keys and tensor list of a GGUF file. only: stop at the keys of any other architecture.

    whole: keys whose arrays are read however long they are, as a vocabulary's texts.
    Errors: EdgeSteerError for a missing, empty, truncated or damaged file, or one of another architecture.
    """
    path = readable(path, "a GGUF file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        return _Reader(path, view, whole).header(only)


class _Reader:
    """A position in the mapped bytes; every step checks that they go on far enough."""

    def __init__(self, path: Path, view: mmap.mmap, whole: Collection[str]) -> None:
        self.path, self.view, self.size, self.at = path, view, len(view), 0
        self.whole = whole
        self.text_left, self.items_left = MAX_TEXT, MAX_ITEMS

    def header(self, only: str | None) -> Header:
        if self.take(min(4, self.size)) != _MAGIC:
            raise EdgeSteerError(f"{self.path} is not a GGUF file: it does not begin with {_MAGIC.decode()!r}")
        if (version := self.number(_U32)) not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            order = ", big-endian" if swapped else ""
            raise EdgeSteerError(f"{self.path} is GGUF version {version}{order}; versions 2 and 3 can be read")
        tensor_count = self.count("tensors", MAX_TENSORS, least=8 + 4 + 4 + 8)
        key_count = self.count("keys", MAX_KEYS, least=8 + 4 + 1)
        metadata: dict[str, Scalar | tuple[Scalar, ...]] = {}
        types: dict[str, int] = {}
        for _ in range(key_count):
            if (key := self.string()) in types or not key:
                raise self.damaged(f"key {key!r} is empty or stands there twice")
            types[key] = self.number(_U32)
            if (value := self.value(types[key], whole=key in self.whole)) is not None:
                metadata[key] = value
            if only and key == "general.architecture" and value != only:
                raise EdgeSteerError(f"{self.path} is a GGUF of architecture {value!r}, not {only!r}")
        if only and "general.architecture" not in types:
            raise EdgeSteerError(f"{self.path} is a GGUF without general.architecture, not {only!r}")
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self.damaged(f"general.alignment is {alignment!r}; it must be a power of two")
        first = self.at
        tensors = tuple(self.tensor() for _ in range(tensor_count))
        if len({tensor.name for tensor in tensors}) < tensor_count:
            raise self.damaged("two tensors have the same name")
        data = -(-self.at // alignment) * alignment
        return Header(metadata, types, tensors, data, alignment, (first, self.at))

    def tensor(self) -> TensorInfo:
        name = self.string()
        if not name or len(name.encode()) > MAX_NAME:
            raise self.damaged(f"a tensor's name has {len(name)} characters; 1-{MAX_NAME} are allowed")
        if not 1 <= (dimensions := self.number(_U32)) <= MAX_DIMENSIONS:
            raise self.damaged(f"tensor {name!r} has {dimensions} dimensions; 1-{MAX_DIMENSIONS} are allowed")
        shape = tuple(self.number(_U64) for _ in range(dimensions))
        return TensorInfo(name, shape, type=self.number(_U32), offset=self.number(_U64))

    def value(self, kind: int, *, whole: bool) -> Scalar | tuple[Scalar, ...] | None:
        """The value of type `kind` at this position; None for an array too long to keep, unless it is read whole."""
        if kind != _ARRAY:
            return self.scalar(kind)
        kind = self.number(_U32)
        if kind != STRING and kind not in _SCALARS:
            raise self.damaged(f"an array holds items of unknown type {kind}")
        item_size = _SCALARS[kind].size if kind in _SCALARS else 8
        items = self.count("array items", self.size, least=item_size)
        if items <= KEPT_ITEMS or whole:
            return tuple(self.scalar(kind) for _ in range(items))
        if kind in _SCALARS:
            self.skip(items * item_size)
        else:
            self.skip_strings(items)
        return None

    def scalar(self, kind: int) -> Scalar:
        if kind == STRING:
            return self.string()
        if kind not in _SCALARS:
            raise self.damaged(f"a key has a value of unknown type {kind}")
        (value,) = _SCALARS[kind].unpack(self.take(_SCALARS[kind].size))
        return value  # type: ignore[no-any-return]

    def string(self) -> str:
        length = self.number(_U64)
        if length > self.text_left:
            raise self.damaged(f"a string of {length} bytes takes its keys past {MAX_TEXT} bytes of text")
        self.text_left -= length
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise self.damaged("a string is not UTF-8") from None

    def number(self, layout: struct.Struct) -> int:
        return int(layout.unpack(self.take(layout.size))[0])

    def count(self, what: str, most: int, least: int) -> int:
        """A count of things of at least `least` bytes each, of which the rest of the file must hold that many."""
        number = self.number(_U64)
        if number > min(most, (self.size - self.at) // least):
            raise self.damaged(f"it claims {number} {what}, more than it can hold")
        return number

    def take(self, length: int) -> bytes:
        start = self.at
        self.skip(length)
        return self.view[start : self.at]

    def skip_strings(self, items: int) -> None:
        self.items_left -= items
        if self.items_left < 0:
            raise self.damaged(f"its arrays hold more than {MAX_ITEMS} strings")
        at = self.at
        try:
            for _ in range(items):  # half a million turns for a large vocabulary
                at += _U64.size + _U64.unpack_from(self.view, at)[0]
        except (struct.error, OverflowError):
            raise self.damaged(f"it ends at byte {self.size}, within an array of {items} strings") from None
        self.skip(at - self.at)

    def skip(self, length: int) -> None:
        if length > self.size - self.at:
            raise self.damaged(f"it ends at byte {self.size}, {length} bytes are needed from byte {self.at} on")
        self.at += length

    def damaged(self, why: str) -> EdgeSteerError:
        return EdgeSteerError(f"{self.path} is truncated or damaged: {why}")
