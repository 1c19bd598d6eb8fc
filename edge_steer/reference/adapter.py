"""An adapter of PEFT merged into a reference's weights.

Takes a folder of PEFT and a Reference, adds scale * factor * B A to the weight of each module it names. It needs no
peft: the arithmetic is one line, and what it does not cover is refused when the folder is read.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from edge_steer.adapters import peft_folder
from edge_steer.adapters.peft_folder import WEIGHTS, PeftAdapter
from edge_steer.core.backend import Lora
from edge_steer.core.errors import ModelError
from edge_steer.reference.model import Reference

_HALF = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def merge_adapter(reference: Reference, lora: Lora) -> None:
    """Add an adapter to the reference's weights, whose revision then names it. At scale 0 nothing is added.

    Errors: ModelError for a GGUF LoRA, an adapter that cannot be honoured, or one of another model.
    """
    if not lora.path.is_dir():
        raise ModelError(f"{lora.path} is a LoRA of llama.cpp; for PyTorch give the folder of PEFT it was made from")
    adapter = peft_folder.read(lora.path)
    halves = _read(adapter)
    changes = {name: _change(reference, adapter, name, halves) for name in sorted({name for name, _ in halves})}
    if lora.scale:
        with torch.no_grad():
            for weight, change in changes.values():
                weight += lora.scale * change.to(weight.dtype)
        reference.revise(f"{reference.model.revision} with adapter {lora.digest} at {lora.scale:g}")


def _read(adapter: PeftAdapter) -> Mapping[tuple[str, str], Tensor]:
    """Module and half, "A" or "B" -> its matrix, float32."""
    path = adapter.folder / WEIGHTS
    try:
        tensors = load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(f"{path} is truncated or damaged: {error}") from None
    halves = {}
    for name, tensor in tensors.items():
        if not (match := _HALF.fullmatch(name)):
            raise ModelError(f"{path} holds {name}, which is no half of a linear module's LoRA")
        halves[match[1], match[2]] = tensor.float()
    if not halves:
        raise ModelError(f"{path} holds no weights")
    return halves


def _change(
    reference: Reference, adapter: PeftAdapter, name: str, halves: Mapping[tuple[str, str], Tensor]
) -> tuple[Tensor, Tensor]:
    """A module's weight and what is added to it at scale 1."""
    where = Path(adapter.folder) / WEIGHTS
    a, b = halves.get((name, "A")), halves.get((name, "B"))
    if a is None or b is None:
        raise ModelError(f"{where} lacks a half of the LoRA of {name}")
    try:
        weight: Tensor = reference.network.get_submodule(name).weight
    except AttributeError:
        raise ModelError(f"{where} changes {name}, which {reference.model.name} has not") from None
    if weight is reference.network.get_input_embeddings().weight:
        raise ModelError(f"{where} changes {name}, whose weight is the embedding's too; it cannot be merged")
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or weight.shape != (b.shape[0], a.shape[1]):
        raise ModelError(
            f"{where} changes {name} by {list(b.shape)} and {list(a.shape)}; the model's is {list(weight.shape)}"
        )
    return weight, adapter.factor(a.shape[0]) * (b @ a)
