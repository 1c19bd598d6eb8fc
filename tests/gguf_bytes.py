"""GGUF files by hand, from the specification and not from our writer."""

import struct

import numpy as np

STRING, ARRAY, U32, F32 = 8, 9, 4, 0


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...] = (4,), kind: int = F32, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


CONTROL = key("general.architecture", STRING, text("controlvector"))


def build(
    keys: tuple[bytes, ...] = (CONTROL,),
    tensors: tuple[bytes, ...] = (tensor("direction.1"),),
    data: bytes = bytes(32),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_keys: int | None = None,
) -> bytes:
    """A GGUF by hand, from the specification and not from our writer."""
    counts = (len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys)
    front = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return front + bytes(-len(front) % 32) + data


def floats(*values: float, kind: str = "<f4") -> bytes:
    raw = np.array(values, kind).tobytes()
    return raw + bytes(-len(raw) % 32)
