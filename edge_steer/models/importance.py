"""Importance matrices: how much each column of a weight counts when it is quantised, as llama-imatrix measures it.

Takes a GGUF file of `llama-imatrix`, strictly read; gives the mean squared input of every column, by tensor name.
It quantises nothing and knows no model.
"""

import math
from pathlib import Path

import numpy as np

from edge_steer.core.errors import EdgeSteerError, ModelError
from edge_steer.core.vector import Array
from edge_steer.storage.files import readable
from edge_steer.storage.gguf_header import F32, Header, TensorInfo, read_header

_SUMS, _COUNTS = ".in_sum2", ".counts"  # tools/imatrix/imatrix.cpp, IMatrixCollector::save_imatrix
_MAGIC = b"GGUF"


def read(path: str | Path) -> dict[str, Array]:
    """Tensor name -> float32 (experts * columns,): one expert's columns after the other's, one expert if it is dense.

    An expert that no text came to counts 1 everywhere, as in llama-quantize. Errors: ModelError for a file that is
    damaged or no importance matrix.
    """
    path = readable(path, "an importance matrix")
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            raise ModelError(f"{path} is no GGUF file; make one with: llama-imatrix --output-format gguf")
    try:
        header = read_header(path)
    except EdgeSteerError as error:
        raise ModelError(str(error)) from None
    if header.metadata.get("general.type") != "imatrix":
        raise ModelError(f"{path} is a GGUF but no importance matrix; llama-imatrix makes one")
    tensors = {tensor.name: tensor for tensor in header.tensors}
    importance = {
        name.removesuffix(_SUMS): _mean(path, header, tensors, name.removesuffix(_SUMS))
        for name in tensors
        if name.endswith(_SUMS)
    }
    if not importance:
        raise ModelError(f"{path} holds no importance of any tensor")
    return importance


def _mean(path: Path, header: Header, tensors: dict[str, TensorInfo], name: str) -> Array:
    if name + _COUNTS not in tensors:
        raise ModelError(f"{path} is damaged: {name}{_SUMS} has no {name}{_COUNTS}")
    sums, counts = (_values(path, header, tensors[name + part]) for part in (_SUMS, _COUNTS))
    if not counts.size or sums.size % counts.size:
        raise ModelError(f"{path} is damaged: {name} has {sums.size} sums and {counts.size} counts")
    sums, counts = sums.reshape(counts.size, -1), counts[:, None]
    return np.where(counts > 0, sums / np.maximum(counts, 1), 1).astype(np.float32).ravel()


def _values(path: Path, header: Header, tensor: TensorInfo) -> Array:
    count, start = math.prod(tensor.shape), header.data + tensor.offset
    if tensor.type != F32 or start + 4 * count > path.stat().st_size:
        raise ModelError(f"{path} is truncated or damaged: {tensor.name} is not {count} floats within the file")
    values: Array = np.fromfile(path, dtype="<f4", count=count, offset=start)
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ModelError(f"{path} is damaged: {tensor.name} holds a value that is negative or not finite")
    return values
