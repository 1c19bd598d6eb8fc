"""Our own vector files: safetensors with tensors `direction.N` and a header that says what they were made from.

Takes and gives SteeringVector. It knows nothing of other tools' files.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from edge_steer.core.errors import VectorError
from edge_steer.core.vector import FORMAT, ModelIdentity, SteeringVector
from edge_steer.storage.files import readable, replacing
from edge_steer.vectors.tuning import fields_of, with_fields

MAX_HEADER = 2**20  # bytes of a safetensors header
MAX_BYTES = 2**26  # of a file of vectors, and of what it unpacks to; the largest models' vectors take 2**23
StoredTensor = tuple[str, list[int], bytes]  # dtype as safetensors names it, shape, values
_HEADER_TYPES: dict[str, Any] = {
    "model": dict,
    "method": str,
    "pooling": str,
    "pairs": int,
    "pairs_digest": str,
    "normalised": bool,
    "provenance": list,
}
_MODEL_TYPES: dict[str, Any] = {
    "name": str,
    "architecture": str | None,
    "hidden_size": int,
    "block_count": int,
    "revision": str | None,
}


def save(vector: SteeringVector, path: str | Path) -> None:
    """Write as safetensors: tensors `direction.N` and the header as metadata, with the tuning if there is one."""
    header = vector.header()
    if vector.tuning:
        header["tuning"] = fields_of(vector.tuning)
    tensors = {f"direction.{layer}": np.asarray(direction) for layer, direction in vector.directions.items()}
    with replacing(Path(path)) as temporary:
        safetensors.numpy.save_file(tensors, temporary, {"edge_steer": json.dumps(header, sort_keys=True)})


def load(path: str | Path) -> SteeringVector:
    """Read what `save` wrote. Errors: VectorError for a file that is not one of ours or is damaged."""
    path = Path(path)
    metadata, tensors = read_safetensors(path)
    try:
        header = json.loads(metadata["edge_steer"])
        if header.pop("format") != FORMAT:
            raise VectorError(f"{path} is of another format version; this edge-steer reads {FORMAT!r}")
        directions = {}
        for name, (dtype, shape, data) in tensors.items():
            if not (match := re.fullmatch(r"direction\.(0|[1-9]\d{0,4})", name)):
                raise VectorError(f"{path} holds a tensor {name!r}; only direction.N is allowed")
            if dtype != "F32":
                raise VectorError(f"{path}: {name} is {dtype}; F32 is needed")
            directions[int(match[1])] = np.frombuffer(data, "<f4").reshape(shape)
        tuning = header.pop("tuning", {})
        _check_types(header, _HEADER_TYPES)
        _check_types({"tuning": tuning}, {"tuning": dict})
        _check_types(header["model"], _MODEL_TYPES)
        _check_types(dict(enumerate(header["provenance"])), {}, other=str)
        header["model"] = ModelIdentity(**header["model"])
        header["provenance"] = tuple(header["provenance"])
        return with_fields(SteeringVector(directions, **header), tuning, path)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise VectorError(f"{path} is not a steering vector of edge-steer: {error}") from None


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    """Metadata and tensors of a safetensors file, its claims held against bounds before they are believed.

    Errors: VectorError for a file that is too large or damaged, or is no safetensors.
    """
    size = readable(path, "a steering vector (.safetensors)").stat().st_size
    if size > MAX_BYTES:
        raise VectorError(f"{path} has more than {MAX_BYTES} bytes; vector files have a few million")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_HEADER, size - 8):
            raise VectorError(f"{path} is not a steering vector: as safetensors, its header has {length} bytes")
        content = path.read_bytes()
    try:
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
        tensors = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except (safetensors.SafetensorError, ValueError, AttributeError, RecursionError) as error:
        raise VectorError(f"{path} is not a steering vector: {' '.join(str(error).split())[:200]}") from None
    return metadata, {name: (tensor["dtype"], tensor["shape"], tensor["data"]) for name, tensor in tensors}


def _check_types(values: Mapping[Any, object], types: Mapping[str, Any], other: Any = object) -> None:
    for key, value in values.items():
        if not isinstance(value, types.get(key, other)):
            raise TypeError(f"{key!r} is {value!r:.60}")
