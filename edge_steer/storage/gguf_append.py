"""A GGUF file with more keys and tensors; all it holds already is copied byte for byte.

Takes a file and what to add, gives another file. It knows nothing of what keys and tensors mean.
"""

import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_steer.core.errors import EdgeSteerError
from edge_steer.storage.files import replacing
from edge_steer.storage.gguf_header import F32, FLOAT64, STRING, Header, TensorInfo, read_header

Array = npt.NDArray[np.float32]
_COUNTS = struct.Struct("<QQ")  # of tensors and of keys, behind the magic and the version
_COUNTS_AT, _KEYS_AT = 8, 24


def append(
    source: str | Path, target: str | Path, keys: Mapping[str, str | float], tensors: Mapping[str, Array]
) -> Path:
    """`source` with more keys and float32 tensors, as `target`, whole or not at all; its path.

    A tensor that is there already, float32 and of the same shape, takes the new values; every other byte of keys and
    tensors is as before. Errors: EdgeSteerError for a key that is there already, a tensor of another shape or type, a
    damaged file, or a target that is the source or cannot be written.
    """
    source, target = Path(source), Path(target)
    header = read_header(source)
    if target.exists() and target.samefile(source):
        raise EdgeSteerError(f"{target} is the file to add to; name another file to write")
    if there := header.types.keys() & keys.keys():
        raise EdgeSteerError(f"{source} has the key {min(there)} already")
    listed = {tensor.name: tensor for tensor in header.tensors}
    changed = {name: values for name, values in tensors.items() if name in listed}
    for name, values in changed.items():
        _check_same(source, listed[name], values)
    added = {name: values for name, values in tensors.items() if name not in listed}
    size = _data_size(source, header)
    with replacing(target) as temporary, source.open("rb") as old, temporary.open("wb") as new:
        new.write(old.read(_COUNTS_AT))
        new.write(_COUNTS.pack(len(listed) + len(added), len(header.types) + len(keys)))
        first, last = header.listing
        old.seek(_KEYS_AT)
        new.write(old.read(first - _KEYS_AT))
        new.write(b"".join(_string(name) + _value(value) for name, value in keys.items()))
        new.write(old.read(last - first))
        offset = size
        for name, values in added.items():
            new.write(_info(name, values, offset))
            offset += _padded(values.nbytes, header.alignment)
        new.write(bytes(_padded(new.tell(), header.alignment) - new.tell()))
        data = new.tell()
        old.seek(header.data)
        shutil.copyfileobj(old, new, length=2**24)
        new.write(bytes(max(0, data + size - new.tell())))
        new.truncate(data + size)
        new.seek(data + size)
        for values in added.values():
            new.write(_padded_bytes(values, header.alignment))
        for name, values in changed.items():
            new.seek(data + listed[name].offset)
            new.write(values.astype("<f4").tobytes())
    return target


def _check_same(path: Path, there: TensorInfo, values: Array) -> None:
    if there.type != F32 or there.shape != values.shape[::-1]:
        raise EdgeSteerError(f"{path}: {there.name} is there already, of another type or shape {there.shape}")


def _data_size(path: Path, header: Header) -> int:
    """Bytes of the tensors' part of a file, the padding behind the last of them included."""
    held = path.stat().st_size - header.data
    last = max((tensor.offset for tensor in header.tensors), default=0)
    if held <= last:
        raise EdgeSteerError(f"{path} is truncated or damaged: it ends before its tensors")
    return _padded(held, header.alignment)


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _padded_bytes(values: Array, alignment: int) -> bytes:
    content = values.astype("<f4").tobytes()
    return content.ljust(_padded(len(content), alignment), b"\0")


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: str | float) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    return struct.pack("<Id", FLOAT64, value)


def _info(name: str, values: Array, offset: int) -> bytes:
    shape = values.shape[::-1]
    return _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, F32, offset)
