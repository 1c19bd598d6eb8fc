"""llama.cpp's quantiser."""

import ctypes
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from edge_steer.core.backend import available_cores
from edge_steer.core.errors import ModelError
from edge_steer.core.quants import NEED_IMPORTANCE, QUANTS
from edge_steer.core.vector import Array
from edge_steer.llama.library import complaining
from edge_steer.storage.files import readable, replacing
from edge_steer.storage.gguf_header import read_header


def quantize_file(
    source: Path,
    target: Path,
    quant: str,
    threads: int | None = None,
    importance: Mapping[str, Array] | None = None,
    *,
    dequantise: bool = False,
) -> None:
    """Write `source` (an F32, F16 or BF16 GGUF) as `target` in the type `quant`, by llama.cpp's quantiser.

    importance: what counts in each tensor, as importance.read gives it. dequantise: let the source be of a quantised
    type, which is refused otherwise. Errors: ModelError for an unknown quant, one that needs an importance it is not
    given, one of another model, or a file llama.cpp cannot quantise. Nothing half written is left.
    """
    if quant not in QUANTS:
        raise ModelError(f"no quant {quant!r}; allowed are {', '.join(QUANTS)}")
    if quant in NEED_IMPORTANCE and not importance:
        raise ModelError(f"{quant} needs an importance matrix; make one with llama-imatrix")
    readable(source, "a GGUF model")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = QUANTS[quant]
    params.nthread = available_cores() if threads is None else threads
    params.allow_requantize = dequantise
    if importance:
        params.imatrix = _importance_of(source, importance)
    with replacing(target) as temporary, complaining(f"llama.cpp cannot quantise {source} to {quant}"):
        if llama_cpp.llama_model_quantize(str(source).encode(), str(temporary).encode(), ctypes.byref(params)):
            raise ModelError


def _importance_of(source: Path, importance: Mapping[str, Array]) -> "ctypes.Array[llama_cpp.llama_model_imatrix_data]":
    """The importance as llama.cpp takes it. Errors: ModelError if it is not of this model."""
    shapes = {tensor.name: tensor.shape for tensor in read_header(source).tensors}
    for name, values in importance.items():
        columns = math.prod(shapes[name][i] for i in (0, 2) if i < len(shapes[name])) if name in shapes else 0
        if len(values) != columns:
            what = f"{len(values)} values for {name}, which has {columns} there" if columns else f"an unknown {name}"
            raise ModelError(f"the importance matrix is not of {source}: it has {what}")
    # struct llama_model_imatrix_data { const char * name; const float * data; size_t size; }, ended by a null name
    entries: ctypes.Array[Any] = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name, entry.size = name.encode(), len(values)
        entry.data = np.ascontiguousarray(values).ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries
