"""A low-rank adapter put to use: which file or folder, at which scale.

Takes what a user names, gives a Lora, whose digest says what results depend on.
"""

from pathlib import Path

from edge_steer.adapters import gguf_lora, peft_folder
from edge_steer.core.backend import Lora
from edge_steer.storage.digests import digest


def choose_lora(source: str | Path, scale: float = 1.0) -> Lora:
    """A GGUF LoRA or a folder of PEFT, at a scale; 0 leaves the model as it is.

    Errors: ModelError for what is neither, an adapter that cannot be honoured, or a scale that is not finite.
    """
    path = Path(source)
    if path.is_dir():
        return Lora(path, peft_folder.read(path).digest, scale)
    gguf_lora.read(path)
    return Lora(path, digest(path), scale)
