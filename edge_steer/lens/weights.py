"""Tensors of a GGUF or of safetensors files as float32 rows, read where they are asked for.

Takes paths, gives tensors under llama.cpp's names for them, whichever kind of file holds them. It needs no torch: gguf
dequantises, and knows the names.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from edge_steer.core.errors import ModelError
from edge_steer.core.vector import Array
from edge_steer.storage.gguf_header import Header, TensorInfo

ROWS = 8192  # dequantised at once
SAFETENSORS = "*.safetensors"
_KINDS = {"F32": "F32", "F16": "F16", "BF16": "BF16"}  # safetensors' name -> ggml's


@dataclass(frozen=True)
class Tensor:
    """A matrix in a file. raw: uint8 (rows, bytes of a row). kind: ggml's name of its type, as Q8_0."""

    raw: npt.NDArray[np.uint8]
    kind: str

    @property
    def rows(self) -> int:
        return len(self.raw)

    def blocks(self) -> Iterator[Array]:
        """Consecutive rows, float32 (at most ROWS, width)."""
        for first in range(0, self.rows, ROWS):
            block = gguf.dequantize(self.raw[first : first + ROWS], gguf.GGMLQuantizationType[self.kind])
            yield np.asarray(block, dtype=np.float32)

    def whole(self) -> Array:
        """All rows, float32 (rows, width)."""
        return np.concatenate(list(self.blocks()))


def gguf_tensors(path: Path, header: Header) -> dict[str, Tensor]:
    """The matrices and vectors of a GGUF file outside its blocks, by name.

    Errors: ModelError for a file that ends before its tensors, or a type that gguf cannot dequantise.
    """
    outside = [tensor for tensor in header.tensors if not tensor.name.startswith("blk.") and len(tensor.shape) <= 2]
    return {tensor.name: _in_gguf(path, header, tensor) for tensor in outside}


def safetensors_tensors(folder: Path, architecture: str, blocks: int) -> dict[str, Tensor]:
    """The matrices and vectors of a Hugging Face folder outside its blocks, under llama.cpp's names.

    architecture: llama.cpp's name. Errors: ModelError for an unknown one, or files that are missing or damaged.
    """
    names = _name_map(architecture, blocks)
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob(SAFETENSORS)):
        for name, tensor in _read_safetensors(path).items():
            known = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if known and not known.startswith("blk.") and len(tensor.shape) in (1, 2):
                tensors[known] = _in_safetensors(path, name, tensor)
    if not tensors:
        raise ModelError(f"{folder} holds no safetensors with weights that llama.cpp has names for")
    return tensors


def _in_gguf(path: Path, header: Header, tensor: TensorInfo) -> Tensor:
    try:
        kind = gguf.GGMLQuantizationType(tensor.type)
        per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise ModelError(f"{path}: {tensor.name} is of type {tensor.type}, which gguf cannot dequantise") from None
    width, rows = tensor.shape[0], int(np.prod(tensor.shape[1:], dtype=np.int64))
    if width % per_block:
        raise ModelError(f"{path}: {tensor.name} has rows of {width} values; {kind.name} holds {per_block} at a time")
    shape = (rows, width // per_block * block_bytes)
    return Tensor(_mapped(path, header.data + tensor.offset, shape, tensor.name), kind.name)


def _in_safetensors(path: Path, name: str, tensor: gguf.utility.LocalTensor) -> Tensor:
    if tensor.dtype not in _KINDS:
        allowed = ", ".join(_KINDS)
        raise ModelError(f"{path}: {name} is of type {tensor.dtype}; the lens reads {allowed}")
    kind = _KINDS[tensor.dtype]
    _, value_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rows, width = tensor.shape if len(tensor.shape) == 2 else (1, tensor.shape[0])
    return Tensor(_mapped(path, tensor.data_range.offset, (rows, width * value_bytes), name), kind)


def _mapped(path: Path, offset: int, shape: tuple[int, int], name: str) -> npt.NDArray[np.uint8]:
    if offset + shape[0] * shape[1] > path.stat().st_size:
        raise ModelError(f"{path} is truncated or damaged: it ends within {name}")
    return np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=shape)


def _read_safetensors(path: Path) -> Mapping[str, gguf.utility.LocalTensor]:
    try:
        tensors: Mapping[str, gguf.utility.LocalTensor] = gguf.utility.SafetensorsLocal(path).tensors
    except (ValueError, KeyError, TypeError, OSError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} is truncated or damaged: {error}") from None
    return tensors


def _name_map(architecture: str, blocks: int) -> gguf.TensorNameMap:
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in kinds:
        raise ModelError(
            f"llama.cpp has no names for the tensors of {architecture!r}; convert the model, or use a GGUF"
        )
    return gguf.get_tensor_name_map(kinds[architecture], blocks)
