"""GGUF control vectors of any tool, strictly read; and the marks by which a tool's counting of layers is known.

Takes a path, gives a SteeringVector for a file with our keys (`edge_steer.`), else an UncountedVector. Whatever
llama.cpp's loader would reject is refused, but for direction.0 and narrower or wider floats, which other tools write.
It knows nothing of other formats.
"""

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from edge_steer.core.errors import EdgeSteerError, VectorError
from edge_steer.core.vector import Array, ModelIdentity, SteeringVector
from edge_steer.storage.gguf_header import (
    BF16,
    CONTROL_VECTOR,
    F16,
    F32,
    F64,
    INT32,
    UINT32,
    Header,
    TensorInfo,
    read_header,
)
from edge_steer.vectors.layer_counting import Convention, UncountedVector
from edge_steer.vectors.native import MAX_BYTES
from edge_steer.vectors.pickled import widened
from edge_steer.vectors.tuning import with_fields

LAYER_CONVENTION = "block-output"  # direction.N is added to the output of 0-based decoder block N (the layer law)
PREFIX = "edge_steer."
TUNING = "tuning."  # of the keys that say how the vector is meant to be used
HINT, COUNT, METHOD = (f"{CONTROL_VECTOR}.{name}" for name in ("model_hint", "layer_count", "method"))
T = TypeVar("T")
_KINDS = {F32: "<f4", F16: "<f2", BF16: "<u2", F64: "<f8"}


def read(path: str | Path) -> SteeringVector | UncountedVector:
    """A GGUF control vector: a SteeringVector if edge-steer wrote it, strength baked in, else an UncountedVector.

    Errors: VectorError for a damaged file, one that contradicts itself, and tensors that are no directions.
    """
    path = Path(path)
    try:
        header = read_header(path, only=CONTROL_VECTOR)
    except EdgeSteerError as error:
        raise VectorError(str(error)) from None
    if path.stat().st_size > MAX_BYTES:
        raise VectorError(f"{path} has more than {MAX_BYTES} bytes; control vectors have a few million")
    directions = _read_directions(path, header)
    keys = {key.removeprefix(PREFIX): value for key, value in header.metadata.items() if key.startswith(PREFIX)}
    if not keys:
        return _of_marks(header, directions)
    if (convention := keys.get("layer_convention")) != LAYER_CONVENTION:
        raise VectorError(f"{path} counts layers by {convention!r}; this edge-steer reads {LAYER_CONVENTION!r}")
    vector = _of_keys(path, keys, directions)
    if vector.digest != keys.get("digest"):
        raise VectorError(f"{path} does not match its own digest; it was changed after edge-steer wrote it")
    return vector


def _of_marks(header: Header, directions: Mapping[int, Array]) -> UncountedVector:
    """The first tool whose mark the file bears."""
    indices = [int(tensor.name.rpartition(".")[2]) for tensor in header.tensors]
    hint, method = header.metadata.get(HINT), header.metadata.get(METHOD)
    origin, convention = next(
        ((origin, convention) for origin, (convention, bears) in _MARKS.items() if bears(header, indices)),
        ("a GGUF control vector without the mark of a known tool", None),
    )
    return UncountedVector(
        directions,
        origin,
        convention,
        hint if isinstance(hint, str) else None,
        method if isinstance(method, str) and method else "unknown",
    )


def _has_method(header: Header, _indices: Sequence[int]) -> bool:
    return METHOD in header.types


def _has_zero(_header: Header, indices: Sequence[int]) -> bool:
    return 0 in indices


def _falls(header: Header, indices: Sequence[int]) -> bool:
    falling = all(following < index for index, following in itertools.pairwise(indices))
    return len(indices) > 1 and falling and _count(header, UINT32) == len(indices)


def _is_signed(header: Header, indices: Sequence[int]) -> bool:
    return list(indices) == list(range(1, len(indices) + 1)) and _count(header, INT32) == len(indices)


def _counts_more(header: Header, indices: Sequence[int]) -> bool:
    return _count(header, UINT32) > max(indices)


def _count(header: Header, kind: int) -> int:
    """The layer_count of a file with the three keys that repeng began with and no others; -1 of any other."""
    count = header.metadata.get(COUNT)
    plain = list(header.types) == ["general.architecture", HINT, COUNT] and header.types[COUNT] == kind
    return count if plain and isinstance(count, int) else -1


# a mark that a tool leaves in its files -> how that tool counts, None where others may leave it too; the first is taken
_MARKS: dict[str, tuple[Convention | None, Callable[[Header, Sequence[int]], bool]]] = {
    "EasySteer, by its key controlvector.method": ("block", _has_method),
    "repeng or EasySteer, by direction.0": ("block", _has_zero),
    "repeng, by its falling order of layers": ("block", _falls),
    "llama-cvector-generator, by its signed layer_count": ("block+1", _is_signed),
    "a layer_count of all blocks, as jukofyork/control-vectors writes it with block+1": (None, _counts_more),
}


def _of_keys(path: Path, keys: Mapping[str, object], directions: dict[int, Array]) -> SteeringVector:
    def get(key: str, kind: type[T]) -> T:
        value = keys.get(key)
        if not isinstance(value, kind):
            raise VectorError(f"{path}: key {PREFIX}{key} is {value!r}; a value of type {kind.__name__} is needed")
        return value

    model = ModelIdentity(
        name=get("model.name", str),
        architecture=get("model.architecture", str) if "model.architecture" in keys else None,
        hidden_size=get("model.hidden_size", int),
        block_count=get("model.block_count", int),
        revision=get("model.revision", str) if "model.revision" in keys else None,
    )
    try:
        provenance = tuple(json.loads(get("provenance", str)))
    except (TypeError, ValueError, RecursionError):
        raise VectorError(f"{path}: key {PREFIX}provenance is not a JSON list") from None
    vector = SteeringVector(
        directions,
        model,
        method=get("method", str),
        pooling=get("pooling", str),
        pairs=get("pairs", int),
        pairs_digest=get("pairs_digest", str),
        normalised=get("normalised", bool),
        provenance=provenance,
    )
    tuning = {key.removeprefix(TUNING): value for key, value in keys.items() if key.startswith(TUNING)}
    return with_fields(vector, tuning, path)


def _read_directions(path: Path, header: Header) -> dict[int, Array]:
    """Every tensor as float32, after checking that they fill the file one after the other, as llama.cpp asks."""
    if not header.tensors:
        raise VectorError(f"{path} holds no directions")
    widths = {_width(tensor) for tensor in header.tensors}
    if len(widths) > 1 or min(widths) < 1:
        shapes = sorted({tensor.shape for tensor in header.tensors})[:3]
        raise VectorError(f"{path} holds tensors of shapes {shapes}; all need one and the same length")
    layers = [_layer(path, tensor) for tensor in header.tensors]
    end = 0
    for tensor in header.tensors:
        if tensor.type not in _KINDS:
            raise VectorError(f"{path}: {tensor.name} is of ggml type {tensor.type}; F32, F16, BF16 or F64 is needed")
        if tensor.offset != end:
            raise VectorError(f"{path} is damaged: {tensor.name} is at offset {tensor.offset}, expected {end}")
        size = tensor.shape[0] * np.dtype(_KINDS[tensor.type]).itemsize
        end += -(-size // header.alignment) * header.alignment
    if (size := path.stat().st_size) != header.data + end:
        raise VectorError(f"{path} is truncated or damaged: it has {size} bytes, its header says {header.data + end}")
    directions = {}
    for layer, tensor in zip(layers, header.tensors, strict=True):
        offset = header.data + tensor.offset
        values = np.fromfile(path, dtype=_KINDS[tensor.type], count=tensor.shape[0], offset=offset)
        directions[layer] = widened(values, bfloat16=tensor.type == BF16)
        if not np.isfinite(directions[layer]).all():
            raise VectorError(f"{path}: {tensor.name} holds NaN or Inf; every value must be finite")
    return directions


def _width(tensor: TensorInfo) -> int:
    """The length of a tensor of one axis, which further axes of length 1 do not change; 0 of any other."""
    return tensor.shape[0] if all(length == 1 for length in tensor.shape[1:]) else 0


def _layer(path: Path, tensor: TensorInfo) -> int:
    match = re.fullmatch(r"direction\.(0|[1-9][0-9]{0,4})", tensor.name)
    if not match:
        raise VectorError(f"{path} holds a tensor {tensor.name!r}; only direction.N is allowed")
    return int(match[1])
