"""Vector files of every kind that is read: GGUF, safetensors, torch's `.pt`, npz; and export folders.

Takes a path, gives a SteeringVector by our layer law with where it came from and how it is meant to be used. The
kind is told by content, not by name. Nothing that a file holds is run, and its claims are held against bounds before
memory is taken. It knows nothing of writing files or of running a model.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_steer.core.errors import VectorError
from edge_steer.core.vector import Array, SteeringVector
from edge_steer.storage.digests import digest
from edge_steer.storage.files import readable
from edge_steer.vectors import gguf_reader, native, pickled, zipped
from edge_steer.vectors.layer_counting import CONVENTIONS, Convention, UncountedVector, VectorFile, count_layers
from edge_steer.vectors.native import read_safetensors
from edge_steer.vectors.recipe_file import is_recipe, read_recipe

OURS = "edge-steer"  # origin of a file that this package wrote
MAX_LAYERS = 1024
_DTYPES = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}
_NAME = re.compile(r"([^0-9]*)(0|[1-9][0-9]{0,4})([^0-9]*)")
_NPY = re.compile(
    rb"\{'descr': '<(f[248])', 'fortran_order': (False|True), 'shape': \(((?:[0-9]{1,9}, ?)*[0-9]{0,9}),?\), \} *\n"
)


def read(
    path: str | Path,
    *,
    convention: Convention | None = None,
    model: str | None = None,
    architecture: str | None = None,
) -> VectorFile:
    """The vector of a file of any kind; or of an export folder or its recipe.toml, whose tuning it then has.

    convention: how the file counts layers, where it does not tell or errs.
    model, architecture: the model's name and its architecture (llama.cpp's name or a Hugging Face model_type), for
    files that do not say. Errors: VectorError for a damaged or hostile file, one that is no vector, or a convention
    that is needed and not given, or given against a file of edge-steer.
    """
    path = Path(path)
    if is_recipe(path):
        file, tuning = read_recipe(path)
        of_recipe = read(file, convention=convention, model=model, architecture=architecture)
        return replace(of_recipe, vector=of_recipe.vector.tuned(tuning.layers, tuning.strength, tuning.phase))
    try:
        vector = FORMATS[_kind(path)](path)
        if isinstance(vector, UncountedVector):
            return count_layers(vector, path, digest(path), convention, model, architecture)
    except VectorError as error:
        raise error if str(path) in str(error) else VectorError(f"{path}: {error}") from None
    if convention not in (None, CONVENTIONS[0]) or model or architecture:
        raise VectorError(f"{path} is of edge-steer and says itself which model it is of and how it counts layers")
    return VectorFile(vector, OURS, CONVENTIONS[0])


def load(path: str | Path) -> SteeringVector:
    """The vector of a file or export folder that needs no question; errors as of `read`."""
    return read(path).vector


def _kind(path: Path) -> str:
    with readable(path, "a vector (GGUF, safetensors, .pt or .npz)").open("rb") as file:
        front = file.read(9)
    if front[:4] == b"GGUF":
        return "gguf"
    if front[:4] == zipped.MAGIC:
        with zipped.opened(path) as archive:
            return "pt" if _pickle_of(archive) else "npz"
    if front[:1] == b"\x80" and front[1:2] < b"\x06" and front[8:9] != b"{":
        raise VectorError(
            f"{path} is a bare pickle; only the zip files of torch 1.6 and later are read, from which no code can run"
        )
    return "safetensors"


def _read_safetensors(path: Path) -> SteeringVector | UncountedVector:
    """Ours, or a dict of tensors."""
    metadata, tensors = read_safetensors(path)
    if "edge_steer" in metadata:
        return native.load(path)
    arrays = {}
    for name, (dtype, shape, data) in tensors.items():
        if dtype not in _DTYPES:
            raise VectorError(f"{path}: {name!r} is {dtype}; {', '.join(_DTYPES)} are read")
        arrays[name] = pickled.widened(np.frombuffer(data, _DTYPES[dtype]).reshape(shape), bfloat16=dtype == "BF16")
    return UncountedVector(_by_layer(path, arrays), "a safetensors dict of tensors")


def _read_torch(path: Path) -> UncountedVector:
    """A `.pt` of steering-vectors, a dict of tensors, or one tensor with a row for each layer."""
    with zipped.opened(path) as archive:
        name = _pickle_of(archive)
        folder = name.rpartition("/")[0]
        order = f"{folder}/byteorder"
        if order in archive.names and archive.read(order) != b"little":
            raise VectorError(f"{path} is big-endian; save it again on a little-endian machine")
        content = pickled.load(archive.read(name), lambda key: archive.read(f"{folder}/data/{key}"))
    if isinstance(content, pickled.Instance):
        if (where := content.attributes.get("layer_type")) != "decoder_block":
            named = repr(where[:40]) if isinstance(where, str) else "an unnamed place"
            raise VectorError(
                f"{path} steers {named} inside the blocks; only the output of whole blocks ('decoder_block') can be "
                "steered here"
            )
        directions = _by_layer(path, content.attributes.get("layer_activations"))
        return UncountedVector(directions, "steering-vectors, by its class", "block")
    return UncountedVector(_by_layer(path, content), "a torch file of tensors")


def _read_npz(path: Path) -> UncountedVector:
    """Arrays of numpy.savez, never objects: a name with a number for each layer, or one with a row for each."""
    arrays = {}
    with zipped.opened(path) as archive:
        for name in archive.names:
            arrays[name.removesuffix(".npy")] = _array(path, name, archive.read(name))
    only = next(iter(arrays.values())) if len(arrays) == 1 else None
    has_rows = only is not None and len(only.shape) == 2 and len(only) > 1
    return UncountedVector(_by_layer(path, only if has_rows else arrays), "an npz of arrays")


FORMATS: dict[str, Callable[[Path], SteeringVector | UncountedVector]] = {
    "gguf": gguf_reader.read,
    "safetensors": _read_safetensors,
    "pt": _read_torch,
    "npz": _read_npz,
}


def _pickle_of(archive: zipped.Archive) -> str:
    """The name of a torch file's pickle, which lies in its one folder; "" of any other zip file."""
    return next((name for name in archive.names if re.fullmatch(r"[^/]+/data\.pkl", name)), "")


def _array(path: Path, name: str, data: bytes) -> Array:
    """One .npy. Its header is a Python literal; it is matched, not evaluated."""
    version, width = data[6:8], 2 if data[6:7] == b"\x01" else 4
    start = 8 + width
    end = start + int.from_bytes(data[8:start], "little")
    match = _NPY.fullmatch(data[start:end])
    if data[:6] != b"\x93NUMPY" or version not in (b"\x01\x00", b"\x02\x00", b"\x03\x00") or not match:
        raise VectorError(f"{path}: {name} is no array of little-endian floats; objects and others are not read")
    shape = tuple(int(number) for number in match[3].replace(b" ", b"").split(b",") if number)
    if len(shape) > 4 or math.prod(shape) * int(match[1][1:]) != len(data) - end:
        raise VectorError(f"{path}: {name} has {len(data) - end} bytes, which are no array of shape {shape}")
    values = np.frombuffer(data, "<" + match[1].decode(), offset=end)
    ordered = values.reshape(shape[::-1]).T if match[2] == b"True" else values.reshape(shape)
    return pickled.widened(ordered, bfloat16=False)


def _by_layer(path: Path, content: object) -> dict[int, Array]:
    """Index -> direction, from a dict by number, a dict by names with one number each, or rows."""
    if isinstance(content, np.ndarray) and content.ndim == 2:
        content = dict(enumerate(content[: MAX_LAYERS + 1]))
    if not isinstance(content, Mapping) or not content:
        raise VectorError(f"{path} holds neither a dict of tensors by layer nor a tensor with a row for each layer")
    if len(content) > MAX_LAYERS:
        raise VectorError(f"{path} holds more than {MAX_LAYERS} tensors; no model has so many layers")
    directions: dict[int, Array] = {}
    frames = set()
    for key, value in content.items():
        match = _NAME.fullmatch(str(key)[:200])
        if not match:
            raise VectorError(f"{path} holds {str(key)[:60]!r}; names with one number, the layer's, are read")
        frames.add((match[1], match[3]))
        if not isinstance(value, np.ndarray) or value.ndim < 1 or value.size != value.shape[-1]:
            raise VectorError(f"{path}: {str(key)[:60]!r} is no tensor of one direction")
        directions[int(match[2])] = value.reshape(-1)
    if len(frames) > 1 or len(directions) < len(content):
        raise VectorError(f"{path} holds names that differ in more than the layer's number; give it one direction each")
    if len(widths := {direction.size for direction in directions.values()}) > 1 or 0 in widths:
        raise VectorError(f"{path} holds directions of {sorted(widths)[:3]} values; all need one and the same length")
    return dict(sorted(directions.items()))
