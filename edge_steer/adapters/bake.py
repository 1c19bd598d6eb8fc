"""A steering baked into a model file, as the bias of each block's last matrix: any llama.cpp runs it with no flag.

Takes a steering and a GGUF model, gives a GGUF model that is steered at every position, layer 0 included. Every other
tensor and key is copied byte for byte. It runs nothing.
"""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

import gguf
import numpy as np

from edge_steer.core.errors import ModelError, VectorError
from edge_steer.core.steering import Offsets, Steer, described, steerings
from edge_steer.core.vector import Array, ModelIdentity
from edge_steer.storage import gguf_append
from edge_steer.storage.digests import digest
from edge_steer.storage.gguf_header import Header, read_header

KEY = "edge_steer.baked"
SCALE = "residual_scale"  # key of an architecture, by which Granite multiplies what a block adds
# llama.cpp's names of architectures whose block ends in "residual + matrix * x + bias", tried by benchmarks/bake.py
READS_BIAS = frozenset(("bloom", "falcon-h1", "gpt2", "gptneox", "granite", "llama", "nemotron", "phi2", "starcoder2"))


def bake(steer: Steer, model: str | Path, target: str | Path) -> Path:
    """Write the GGUF `model` with the steering in it, as `blk.N.ffn_down.bias`; the path of the new file.

    steer: a vector (used as its tuning says), a Steering, or several, which add up. Whatever their phase, the file is
    steered at every position, the prompt included. It says in `edge_steer.baked` what it holds, with digests.
    Errors: ModelError for an architecture that does not read the bias, a mixture of experts, a file that is damaged or
    baked already; VectorError for a vector of another model or one that is zero; EdgeSteerError for a target that
    cannot be written.
    """
    everywhere = [replace(one, phase="all") for one in steerings(steer)]
    path = Path(model)
    header = read_header(path)
    _check_readable(path, header)
    offsets = Offsets.of(everywhere, _identity(path, header))
    if offsets is None:
        raise VectorError("the steering is zero; there is nothing to bake")
    scale = _number(header, SCALE) or 1.0
    before = _biases(path, header)
    tensors = {
        _name(layer): np.asarray(before.get(_name(layer), 0) + offset / scale, dtype=np.float32)
        for layer, offset in sorted(offsets.by_layer.items())
    }
    keys = {
        KEY: json.dumps(described(everywhere)),
        f"{KEY}.source": digest(path),
        f"{KEY}.version": importlib.metadata.version("edge-steer"),
    }
    return gguf_append.append(path, target, keys, tensors)


def _check_readable(path: Path, header: Header) -> None:
    architecture = header.architecture
    if KEY in header.types:
        raise ModelError(f"{path} has a steering baked in already; bake into the file it was made from")
    if architecture not in READS_BIAS:
        raise ModelError(
            f"llama.cpp reads no bias at the end of a block of {architecture!r}, so nothing can be baked into {path}; "
            f"it does for {', '.join(sorted(READS_BIAS))}. Export a control vector instead"
        )
    if header.metadata.get(f"{architecture}.expert_count"):
        raise ModelError(f"{path} is a mixture of experts, whose blocks have no such bias; export a control vector")
    if scaled := [tensor.name for tensor in header.tensors if tensor.name.endswith("ffn_down.scale")]:
        raise ModelError(f"{path} scales the end of its blocks by {scaled[0]}; export a control vector")
    _check_whole(path, header)


def _check_whole(path: Path, header: Header) -> None:
    """That the tensors end where the file ends, so that what is added stands where llama.cpp looks for it."""
    last = max(header.tensors, key=lambda tensor: tensor.offset)
    try:
        values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(last.type)]
    except (ValueError, KeyError):
        raise ModelError(f"{path}: {last.name} is of an unknown type, {last.type}") from None
    end = header.data + last.offset + prod(last.shape) // values * size
    if not end <= path.stat().st_size < end + header.alignment:
        raise ModelError(f"{path} is truncated or damaged: its tensors end at byte {end}")


def _identity(path: Path, header: Header) -> ModelIdentity:
    return ModelIdentity(
        str(header.metadata.get("general.name") or path.stem),
        header.architecture,
        int(_number(header, "embedding_length")),
        int(_number(header, "block_count")),
    )


def _number(header: Header, key: str) -> float:
    """What a key of the architecture says, 0 where it is not there."""
    number = header.metadata.get(f"{header.architecture}.{key}", 0)
    return number if isinstance(number, int | float) else 0


def _biases(path: Path, header: Header) -> Mapping[str, Array]:
    """The biases that the file has already, float32; another type is refused where it is written."""
    biases: dict[str, Array] = {}
    for tensor in header.tensors:
        if tensor.name.endswith(".ffn_down.bias") and tensor.type == gguf.GGMLQuantizationType.F32:
            biases[tensor.name] = np.fromfile(
                path, dtype="<f4", count=prod(tensor.shape), offset=header.data + tensor.offset
            )
    return biases


def _name(layer: int) -> str:
    return f"blk.{layer}.ffn_down.bias"
