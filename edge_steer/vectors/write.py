"""A vector to a file whose kind its suffix says: safetensors, ours, or GGUF, a control vector for llama.cpp.

Takes a SteeringVector and a path, gives the path. `read.py` reads both. Options of one kind are in its own writer.
"""

from collections.abc import Iterable
from pathlib import Path

from edge_steer.core.errors import VectorError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.vector import SteeringVector
from edge_steer.vectors import native
from edge_steer.vectors.tuning import change


def save(
    vector: SteeringVector,
    path: str | Path,
    *,
    layers: int | Iterable[int] | None = None,
    strength: float = 1.0,
    progress: Progress = SILENT,
) -> Path:
    """Write `vector` as .safetensors or .gguf, its tuning included; strength 1 of the file is `strength` times it.

    layers: None is all, in a GGUF all but layer 0, which llama.cpp's control vectors do not have. progress: hears that.
    Errors: VectorError for another suffix, a layer the vector has not, strength 0; EdgeSteerError if it cannot write.
    """
    path = Path(path)
    wanted = [layers] if isinstance(layers, int) else layers
    if path.suffix == ".safetensors":
        native.save(change(vector, wanted, strength), path)
    elif path.suffix == ".gguf":
        from edge_steer.vectors import gguf_writer

        if gguf_writer.write(vector, path, layers=wanted, strength=strength).left_out:
            progress.note("layer 0 left out: llama.cpp's control vectors have none")
    else:
        raise VectorError(f"cannot write {path}: vectors are written as .safetensors or .gguf; name it so")
    return path
