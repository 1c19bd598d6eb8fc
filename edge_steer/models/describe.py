"""What a model file and a steering vector say of themselves, for people to read."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import gguf

from edge_steer.core.vector import SteeringVector
from edge_steer.storage.files import readable
from edge_steer.storage.gguf_header import CONTROL_VECTOR, read_header


def describe_model(path: str | Path) -> dict[str, str | int] | None:
    """What the header of a GGUF model says of it; None for a vector, of whatever kind, and for a folder.

    Errors: EdgeSteerError for a missing, empty or damaged file.
    """
    path = Path(path)
    if path.is_dir() or not _is_gguf(path):
        return None
    header = read_header(path)
    if header.architecture == CONTROL_VECTOR:
        return None
    description: dict[str, str | int] = {"file": str(path), "bytes": path.stat().st_size}
    for name, key in {
        "name": "general.name",
        "architecture": "general.architecture",
        "blocks": f"{header.architecture}.block_count",
        "hidden size": f"{header.architecture}.embedding_length",
        "context": f"{header.architecture}.context_length",
        "pre-tokenizer": "tokenizer.ggml.pre",
    }.items():
        if isinstance(value := header.metadata.get(key), str | int):
            description[name] = value
    type_names = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    types = Counter(type_names.get(tensor.type, f"type {tensor.type}") for tensor in header.tensors)
    description["tensors"] = ", ".join(f"{count} {name}" for name, count in types.most_common())
    return description


def describe_vector(vector: SteeringVector) -> dict[str, object]:
    """How a vector was made and is meant to be used, its digest, and the norm of each layer."""
    tuning = asdict(vector.tuning) if vector.tuning else None
    return {**vector.header(), "tuning": tuning, "digest": vector.digest, "norms": vector.norms}


def _is_gguf(path: Path) -> bool:
    with readable(path, "a GGUF or safetensors file").open("rb") as file:
        return file.read(4) == b"GGUF"
