"""Steering vectors as llama.cpp's control vectors: a GGUF writer and a strict reader.

Takes a SteeringVector, gives a file that every llama.cpp tool loads, and the other way round. Beside what
llama.cpp reads, the file says in keys of its own (`edge_steer.`) which layer convention it follows, what it
was made from, for which model, and which strength is baked in. It knows nothing of running a model.
"""

import importlib.metadata
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import gguf
import numpy as np

from edge_steer.errors import EdgeSteerError, VectorError
from edge_steer.files import readable, replacing
from edge_steer.gguf_header import BF16, F16, F32, Header, TensorInfo, read_header
from edge_steer.vector import Array, ModelIdentity, SteeringVector, spans

ARCHITECTURE = "controlvector"
LAYER_CONVENTION = "block-output"  # direction.N is added to the output of 0-based decoder block N (the layer law)
MAX_BYTES = 2**30

T = TypeVar("T")
_PREFIX = "edge_steer."
_ITEM_SIZES = {F32: 4, F16: 2, BF16: 2}


@dataclass(frozen=True)
class Export:
    """What was written: `vector` as the file holds it, and the layers of the given one that it cannot hold."""

    path: Path
    vector: SteeringVector
    left_out: tuple[int, ...]


def write(vector: SteeringVector, path: Path, *, layers: Iterable[int] | None = None, strength: float = 1.0) -> Export:
    """Write `vector` as a GGUF control vector whose strength 1 is `strength` times the vector.

    layers: None is all but layer 0, which llama.cpp's control vectors do not have. The same arguments give the
    same bytes. Errors: VectorError for layer 0, a layer the vector has not, no layers left, strength 0 or not
    finite, values past float32; EdgeSteerError for an unwritable path.
    """
    if not math.isfinite(strength) or strength == 0:
        raise VectorError(f"strength is {strength}; a file needs a finite strength other than 0")
    chosen = vector.layers if layers is None else vector.check_layers(layers)
    if 0 in chosen and (layers is not None or chosen == (0,)):
        raise VectorError(
            "llama.cpp's control vectors have no layer 0, and its loader rejects a whole file with direction.0; "
            f"choose from layers {spans(set(vector.layers) - {0}) or '1 up, of which this vector has none'}"
        )
    kept = vector.restrict(layer for layer in chosen if layer)
    baked = kept if strength == 1 else kept * strength
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(None, ARCHITECTURE)
        _add_keys(writer, baked, vector.digest, strength)
        for layer, direction in baked.directions.items():
            writer.add_tensor(f"direction.{layer}", np.asarray(direction))
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Export(path, baked, left_out=(0,) if 0 in chosen else ())


def load(path: Path) -> SteeringVector:
    """A vector file of either kind, told apart by content: a GGUF control vector or our safetensors.

    Errors: EdgeSteerError as of `read` and `SteeringVector.load`.
    """
    return read(path) if _is_gguf(path) else SteeringVector.load(path)


def read(path: Path) -> SteeringVector:
    """The vector a GGUF control vector holds, strength baked in. F32, F16 and BF16 tensors are read.

    A file without our keys is taken to follow the layer law; its model is "unknown" but for architecture and width.
    Errors: VectorError for whatever llama.cpp's loader would reject, and for a file that contradicts itself.
    """
    try:
        header = read_header(path, only=ARCHITECTURE)
    except EdgeSteerError as error:
        raise VectorError(str(error)) from None
    if path.stat().st_size > MAX_BYTES:
        raise VectorError(f"{path} has more than {MAX_BYTES} bytes; control vectors have a few million")
    directions = _read_directions(path, header)
    keys = {key.removeprefix(_PREFIX): value for key, value in header.metadata.items() if key.startswith(_PREFIX)}
    if not keys:
        hint = header.metadata.get("controlvector.model_hint")
        width = len(next(iter(directions.values())))
        model = ModelIdentity("unknown", hint if isinstance(hint, str) else None, hidden_size=width, block_count=0)
        return SteeringVector(directions, model)
    if (convention := keys.get("layer_convention")) != LAYER_CONVENTION:
        raise VectorError(f"{path} counts layers by {convention!r}; this edge-steer reads {LAYER_CONVENTION!r}")
    vector = _of_keys(path, keys, directions)
    if vector.digest != keys.get("digest"):
        raise VectorError(f"{path} does not match its own digest; it was changed after edge-steer wrote it")
    return vector


def describe_model(path: Path) -> dict[str, str | int] | None:
    """What the header of a GGUF model says of it; None for a vector, of whatever kind.

    Errors: EdgeSteerError for a missing, empty or damaged file.
    """
    if not _is_gguf(path):
        return None
    header = read_header(path)
    if header.architecture == ARCHITECTURE:
        return None
    facts: dict[str, str | int] = {"file": str(path), "bytes": path.stat().st_size}
    for name, key in {
        "name": "general.name",
        "architecture": "general.architecture",
        "blocks": f"{header.architecture}.block_count",
        "hidden size": f"{header.architecture}.embedding_length",
        "context": f"{header.architecture}.context_length",
        "pre-tokenizer": "tokenizer.ggml.pre",
    }.items():
        if isinstance(value := header.metadata.get(key), str | int):
            facts[name] = value
    known = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    counted = Counter(known.get(tensor.type, f"type {tensor.type}") for tensor in header.tensors)
    facts["tensors"] = ", ".join(f"{count} {name}" for name, count in counted.most_common())
    return facts


def _is_gguf(path: Path) -> bool:
    with readable(path, "a GGUF or safetensors file").open("rb") as file:
        return file.read(4) == b"GGUF"


def _add_keys(writer: gguf.GGUFWriter, vector: SteeringVector, source_digest: str, strength: float) -> None:
    def add(key: str, value: str) -> None:
        # not add_string, which drops an empty one
        writer.add_key_value(_PREFIX + key, value, gguf.GGUFValueType.STRING)

    model = vector.model
    writer.add_string("controlvector.model_hint", model.architecture or "unknown")
    writer.add_uint32("controlvector.layer_count", len(vector.layers))
    add("layer_convention", LAYER_CONVENTION)
    add("version", _version())
    add("digest", vector.digest)
    add("source_digest", source_digest)
    writer.add_float64(_PREFIX + "strength", strength)
    add("model.name", model.name)
    if model.architecture is not None:
        add("model.architecture", model.architecture)
    if model.revision is not None:
        add("model.revision", model.revision)
    writer.add_uint32(_PREFIX + "model.hidden_size", model.hidden_size)
    writer.add_uint32(_PREFIX + "model.block_count", model.block_count)
    add("method", vector.method)
    add("pooling", vector.pooling)
    writer.add_uint32(_PREFIX + "pairs", vector.pairs)
    add("pairs_digest", vector.pairs_digest)
    writer.add_bool(_PREFIX + "normalised", vector.normalised)
    add("provenance", json.dumps(vector.provenance))


def _of_keys(path: Path, keys: Mapping[str, object], directions: dict[int, Array]) -> SteeringVector:
    def get(key: str, kind: type[T]) -> T:
        value = keys.get(key)
        if not isinstance(value, kind):
            raise VectorError(f"{path}: key {_PREFIX}{key} is {value!r}; a value of type {kind.__name__} is needed")
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
        raise VectorError(f"{path}: key {_PREFIX}provenance is not a JSON list") from None
    return SteeringVector(
        directions,
        model,
        method=get("method", str),
        pooling=get("pooling", str),
        pairs=get("pairs", int),
        pairs_digest=get("pairs_digest", str),
        normalised=get("normalised", bool),
        provenance=provenance,
    )


def _read_directions(path: Path, header: Header) -> dict[int, Array]:
    """Every tensor as float32, after checking that they fill the file one after the other, as llama.cpp asks."""
    if not header.tensors:
        raise VectorError(f"{path} holds no directions")
    widths = {tensor.shape for tensor in header.tensors}
    if len(widths) > 1 or len(header.tensors[0].shape) != 1 or header.tensors[0].shape[0] < 1:
        raise VectorError(f"{path} holds tensors of shapes {sorted(widths)[:3]}; all need one and the same length")
    layers = [_layer(path, tensor) for tensor in header.tensors]
    end = 0
    for tensor in header.tensors:
        if tensor.type not in _ITEM_SIZES:
            raise VectorError(f"{path}: {tensor.name} is of ggml type {tensor.type}; F32, F16 or BF16 is needed")
        if tensor.offset != end:
            raise VectorError(f"{path} is damaged: {tensor.name} is at offset {tensor.offset}, expected {end}")
        end += -(-tensor.shape[0] * _ITEM_SIZES[tensor.type] // header.alignment) * header.alignment
    if (size := path.stat().st_size) != header.data + end:
        raise VectorError(f"{path} is truncated or damaged: it has {size} bytes, its header says {header.data + end}")
    directions = {}
    for layer, tensor in zip(layers, header.tensors, strict=True):
        directions[layer] = _values(path, tensor, header.data)
        if not np.isfinite(directions[layer]).all():
            raise VectorError(f"{path}: {tensor.name} holds NaN or Inf; every value must be finite")
    return directions


def _layer(path: Path, tensor: TensorInfo) -> int:
    match = re.fullmatch(r"direction\.(0|[1-9][0-9]{0,4})", tensor.name)
    if not match:
        raise VectorError(f"{path} holds a tensor {tensor.name!r}; only direction.N is allowed")
    if tensor.name == "direction.0":
        raise VectorError(f"{path} holds direction.0; llama.cpp has no layer 0 and would reject the whole file")
    return int(match[1])


def _values(path: Path, tensor: TensorInfo, data: int) -> Array:
    kind = {F32: "<f4", F16: "<f2", BF16: "<u2"}[tensor.type]
    values = np.fromfile(path, dtype=kind, count=tensor.shape[0], offset=data + tensor.offset)
    if tensor.type == BF16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _version() -> str:
    return importlib.metadata.version("edge-steer")
