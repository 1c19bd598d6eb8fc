"""A LoRA of llama.cpp, held against the model it is to run in, before llama.cpp sees either.

Takes headers of GGUF files, gives nothing or an error. It reads no weights.
"""

from collections.abc import Mapping
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError, ModelError
from edge_steer.storage.gguf_header import BF16, F16, F32, Header, TensorInfo, read_header

A, B = ".lora_a", ".lora_b"
Q8_0 = 8  # enum ggml_type
TYPES = (F32, F16, BF16, Q8_0)  # by whole numbers llama.cpp cannot multiply: it crashes


def read(path: str | Path) -> Header:
    """The header of a GGUF LoRA. Errors: ModelError for any other file."""
    try:
        header = read_header(path)
    except EdgeSteerError as error:
        raise ModelError(str(error)) from None
    kinds = (header.metadata.get("general.type"), header.metadata.get("adapter.type"))
    if kinds != ("adapter", "lora"):
        raise ModelError(f"{path} is no LoRA of llama.cpp; give one, or a folder of PEFT")
    if header.metadata.get("adapter.alora.invocation_tokens"):
        raise ModelError(f"{path} begins at invocation tokens (aLoRA); only an adapter of every token can be run")
    return header


def check_fits(path: str | Path, model: str | Path) -> None:
    """Errors: ModelError for a LoRA of another architecture, of tensors the model lacks, or of other shapes."""
    lora, base = read(path), read_header(model)
    if lora.architecture != base.architecture:
        raise ModelError(f"{path} is a LoRA for {lora.architecture!r}; {model} is of {base.architecture!r}")
    known = {tensor.name: tensor for tensor in base.tensors}
    halves = {tensor.name: tensor for tensor in lora.tensors}
    if odd := [name for name in halves if not name.endswith((A, B))]:
        raise ModelError(f"{path} holds {odd[0]}, which is no part of a LoRA that llama.cpp applies")
    if numbers := [tensor.name for tensor in lora.tensors if tensor.type not in TYPES]:
        raise ModelError(f"{path} holds {numbers[0]} in another type than llama.cpp's converter writes")
    names = {name.removesuffix(A).removesuffix(B) for name in halves}
    if not names:
        raise ModelError(f"{path} holds no weights")
    for name in sorted(names):
        _check_pair(path, name, halves, known)
    _check_whole(path, lora)


def _check_pair(path: str | Path, name: str, halves: Mapping[str, TensorInfo], known: Mapping[str, TensorInfo]) -> None:
    a, b, weight = halves.get(name + A), halves.get(name + B), known.get(name)
    if a is None or b is None:
        raise ModelError(f"{path} lacks {name + (A if a is None else B)}")
    if weight is None:
        raise ModelError(f"{path} changes {name}, which the model has not; use the adapter of that very model")
    if name == "token_embd.weight":
        raise ModelError(f"{path} changes {name}; an adapter of the embeddings cannot be run")
    inputs, outputs = weight.shape[:2]
    flat = len(a.shape) < 2 or len(b.shape) < 2
    if flat or a.shape[0] != inputs or b.shape[1] != outputs or a.shape[1] != b.shape[0]:
        raise ModelError(
            f"{path} changes {name} by {list(a.shape)} and {list(b.shape)}; the model's is {list(weight.shape)}"
        )


def _check_whole(path: str | Path, header: Header) -> None:
    if not header.metadata.get("adapter.lora.alpha"):
        raise ModelError(f"{path} says no alpha; convert it again")
    last = max(tensor.offset for tensor in header.tensors)
    if header.data + last >= Path(path).stat().st_size:
        raise ModelError(f"{path} is truncated or damaged: it ends before its tensors")
