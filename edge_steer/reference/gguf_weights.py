"""A GGUF's weights in PyTorch: dequantised by transformers, run in float32.

Takes a GGUF file, gives a Reference that computes with the very weights llama.cpp has, so that a comparison of the two
shows what the engine does to them, and nothing of what quantising did. What transformers cannot represent is refused by
name. It knows nothing of llama.cpp.
"""

import contextlib
import io
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from transformers.integrations import GGUF_CONFIG_MAPPING

from edge_steer.core.architectures import model_type
from edge_steer.core.errors import ModelError, first_line
from edge_steer.reference.model import Reference
from edge_steer.reference.precision import use_threads
from edge_steer.reference.vocabulary import Vocabulary
from edge_steer.storage.digests import digest
from edge_steer.storage.gguf_header import Header, read_header

# Keys of an architecture that transformers passes over, which the shapes of the tensors say as well.
_IN_SHAPES = {
    "attention.key_length",
    "attention.value_length",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "feed_forward_length",
    "vocab_size",
}


def load_dequantised(path: str | Path, vocabulary: Vocabulary, threads: int | None = None) -> Reference:
    """The model of a GGUF file in PyTorch. Its identity's revision is "dequantised from" the file's SHA-256.

    vocabulary: that of the file, for transformers does not read every one as llama.cpp does. Errors: ModelError,
    before any weight is read, for an architecture, a setting or a type of tensor that transformers does not know;
    ModelError for weights it passes over.
    """
    path = Path(path)
    header = read_header(path)
    check_representable(path, header)
    use_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar of its own, which no setting turns off
            network, loading = transformers.AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
    except Exception as error:  # the file is the user's, and its readers raise what they like
        raise ModelError(f"transformers cannot dequantise {path}: {first_line(error)}") from error
    if lacking := [*loading["missing_keys"], *loading["mismatched_keys"]]:
        raise ModelError(f"{path} lacks weights that transformers asks for: {lacking[0]} and {len(lacking) - 1} more")
    taken = sum(parameter.numel() for parameter in network.parameters())
    if taken != header.parameters:
        raise ModelError(f"transformers takes {taken} weights of {path}, which holds {header.parameters}")
    name = str(header.metadata.get("general.name") or path.stem)
    return Reference(network, vocabulary, name, f"dequantised from {digest(path)}")


def check_representable(path: str | Path, header: Header) -> None:
    """Errors: ModelError for what transformers does not read of this GGUF: its architecture, a setting, a type."""
    architecture = header.architecture
    settings = GGUF_CONFIG_MAPPING.get(model_type(architecture)) or GGUF_CONFIG_MAPPING.get(architecture)
    if settings is None:
        raise ModelError(f"transformers cannot dequantise {path}: it does not read the architecture {architecture!r}")
    own = [key.removeprefix(f"{architecture}.") for key in header.metadata if key.startswith(f"{architecture}.")]
    if unread := [key for key in own if key not in settings and key not in _IN_SHAPES]:
        raise ModelError(f"transformers cannot dequantise {path}: it does not read {architecture}.{unread[0]}")
    if ropes := [tensor.name for tensor in header.tensors if tensor.name.startswith("rope_")]:
        raise ModelError(f"transformers cannot dequantise {path}: it does not read the tensor {ropes[0]}")
    for number in {tensor.type for tensor in header.tensors}:
        if not _readable_type(number):
            names = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
            raise ModelError(
                f"transformers cannot dequantise {path}: it does not read tensors of type {names.get(number, number)}"
            )


def _readable_type(number: int) -> bool:
    """Whether one block of a type of tensor, all zeros, can be dequantised."""
    try:
        kind = gguf.GGMLQuantizationType(number)
        _, size = gguf.GGML_QUANT_SIZES[kind]
        gguf.dequantize(np.zeros(size, dtype=np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        return False
    return True
