"""Steering vectors as GGUF control vectors, for llama.cpp's tools and for repeng; and what a GGUF says of itself.

Takes a SteeringVector, gives a file that every llama.cpp tool loads. Beside what llama.cpp reads, the file says in
keys of its own (`edge_steer.`) which layer convention it follows, what it was made from, for which model, which
strength is baked in, and how it is meant to be used. Files are read in read.py. It knows nothing of running a model.
"""

import importlib.metadata
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import gguf
import numpy as np

from edge_steer.core.architectures import model_type
from edge_steer.core.errors import VectorError
from edge_steer.core.vector import UNKNOWN, SteeringVector, spans
from edge_steer.storage.files import replacing
from edge_steer.storage.gguf_header import CONTROL_VECTOR
from edge_steer.vectors.gguf_reader import COUNT, HINT, LAYER_CONVENTION, PREFIX, TUNING
from edge_steer.vectors.tuning import change, fields_of

Target = Literal["llama.cpp", "repeng"]
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True)
class Export:
    """What was written: `vector` as the file holds it, and the layers of the given one that it does not hold."""

    path: Path
    vector: SteeringVector
    left_out: tuple[int, ...]


def write(
    vector: SteeringVector,
    path: str | Path,
    *,
    layers: Iterable[int] | None = None,
    strength: float = 1.0,
    target: Target = "llama.cpp",
    hint: str | None = None,
) -> Export:
    """Write `vector` as a GGUF control vector whose strength 1 is `strength` times the vector.

    layers: None is all but layer 0, which llama.cpp's control vectors do not have. target: "repeng" names the model
    by its Hugging Face model_type and takes layer 0 where `layers` names it; repeng reads that, llama.cpp does not.
    hint: the model's name in the file. None is the vector's architecture as the target calls it. The same arguments
    give the same bytes. A tuning goes along: its layers that are left, its strength divided by `strength`.
    Errors: VectorError for layer 0 in llama.cpp's files, a layer the vector has not, no layer or no tuned layer left,
    strength 0 or not finite, values past float32, an unknown target; EdgeSteerError for an unwritable path.
    """
    if target not in TARGETS:
        raise VectorError(f"no target {target!r}; allowed are {', '.join(TARGETS)}")
    chosen = vector.layers if layers is None else vector.check_layers(layers)
    holds_zero = target == "repeng" and layers is not None
    if 0 in chosen and not holds_zero and (layers is not None or chosen == (0,)):
        raise VectorError(
            "llama.cpp's control vectors have no layer 0, and its loader rejects a whole file with direction.0; "
            f"choose from layers {spans(set(vector.layers) - {0}) or '1 up, of which this vector has none'}"
        )
    baked = change(vector, [layer for layer in chosen if layer or holds_zero], strength)
    architecture = vector.model.architecture or UNKNOWN
    path = Path(path)
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(None, CONTROL_VECTOR)
        writer.add_string(HINT, hint or (model_type(architecture) if target == "repeng" else architecture))
        _add_keys(writer, baked, vector.digest, strength)
        for layer, direction in baked.directions.items():
            writer.add_tensor(f"direction.{layer}", np.asarray(direction))
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Export(path, baked, left_out=(0,) if 0 in chosen and not holds_zero else ())


def _add_keys(writer: gguf.GGUFWriter, vector: SteeringVector, source_digest: str, strength: float) -> None:
    def add(key: str, value: str) -> None:
        # not add_string, which drops an empty one
        writer.add_key_value(PREFIX + key, value, gguf.GGUFValueType.STRING)

    model = vector.model
    writer.add_uint32(COUNT, len(vector.layers))
    add("layer_convention", LAYER_CONVENTION)
    add("version", _version())
    add("digest", vector.digest)
    add("source_digest", source_digest)
    writer.add_float64(PREFIX + "strength", strength)
    add("model.name", model.name)
    if model.architecture is not None:
        add("model.architecture", model.architecture)
    if model.revision is not None:
        add("model.revision", model.revision)
    writer.add_uint32(PREFIX + "model.hidden_size", model.hidden_size)
    writer.add_uint32(PREFIX + "model.block_count", model.block_count)
    add("method", vector.method)
    add("pooling", vector.pooling)
    writer.add_uint32(PREFIX + "pairs", vector.pairs)
    add("pairs_digest", vector.pairs_digest)
    writer.add_bool(PREFIX + "normalised", vector.normalised)
    add("provenance", json.dumps(vector.provenance))
    if vector.tuning:
        for name, value in fields_of(vector.tuning).items():
            if isinstance(value, float):
                writer.add_float64(PREFIX + TUNING + name, value)
            else:
                add(TUNING + name, value)


def _version() -> str:
    return importlib.metadata.version("edge-steer")
