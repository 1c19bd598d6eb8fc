"""What a GGUF file says of itself."""

from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import gguf

from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError, ModelError
from edge_steer.core.quants import QUANTS
from edge_steer.llama.library import system_info
from edge_steer.storage.files import digest, readable
from edge_steer.storage.gguf_header import Header, read_header
from edge_steer.vectors.gguf_reader import ARCHITECTURE


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


def quant_of(path: Path) -> str:
    """The type a GGUF model says it was written in; "unknown" if it says none of QUANTS. Errors: ModelError."""
    file_type = model_header(path).metadata.get("general.file_type")
    return next((quant for quant, known in QUANTS.items() if known == file_type), "unknown")


def model_header(path: Path) -> Header:
    try:
        return read_header(path)
    except EdgeSteerError as error:
        raise ModelError(str(error)) from None


def facts(model: Path, engine: EngineOptions) -> dict[str, object]:
    """What rows depend on besides the settings of a sweep: the model file, the engine's options, versions.

    Errors: EdgeSteerError for a file that is no GGUF model.
    """
    described = describe_model(model)
    if described is None:
        raise EdgeSteerError(f"{model} is a vector, not a model; name a GGUF model")
    return {
        "model": {
            "name": described.get("name", model.stem),
            "quant": quant_of(model) or "",
            "digest": digest(model),
            "parameters": read_header(model).parameters,
        },
        "engine": asdict(engine),
        "versions": {**{name: version(name) for name in ("edge-steer", "math-verify")}, **system_info()},
    }
