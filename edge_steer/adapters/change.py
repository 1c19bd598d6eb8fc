"""What a training makes of a model's weights, as values with their files: low-rank matrices, or all weights anew.

Takes numpy arrays under PyTorch's names, gives files of PEFT and of llama.cpp. llama.cpp's names come from gguf's own
table. It knows no gradient and runs nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

from edge_steer.adapters.gguf_lora import A, B
from edge_steer.adapters.peft_folder import CONFIG, WEIGHTS
from edge_steer.core.errors import ModelError
from edge_steer.core.vector import Array, ModelIdentity, SteeringVector
from edge_steer.storage import gguf_append
from edge_steer.storage.files import replacing, write_json
from edge_steer.storage.gguf_header import F32, Header, read_header

QUANTISING = 0.3  # relative; more than the coarsest types cost, and far less than another order of rows
PERMUTED = ("attn_q.weight", "attn_k.weight")  # of the architecture "llama", whose rotary halves lie interleaved


@dataclass(frozen=True)
class LowRank:
    """A low-rank adapter (LoRA): each module's weight gains alpha / rank * B A.

    matrices: name of a linear module -> A (rank, inputs) and B (outputs, rank), float32. base: the folder or id of
    the model, as the files say it.
    """

    matrices: Mapping[str, tuple[Array, Array]]
    alpha: float
    model: ModelIdentity
    base: str | None = None

    @property
    def rank(self) -> int:
        return len(next(iter(self.matrices.values()))[0])

    def write_peft(self, folder: str | Path) -> Path:
        """As PEFT keeps it: a folder with its settings and matrices; the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"base_model.model.{name}.lora_{half}.weight": np.ascontiguousarray(matrix)
            for name, pair in self.matrices.items()
            for half, matrix in zip("AB", pair, strict=True)
        }
        with replacing(folder / WEIGHTS) as temporary:
            save_file(tensors, temporary)
        settings = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": self.rank, "lora_alpha": self.alpha,
            "target_modules": sorted({name.rpartition(".")[2] for name in self.matrices}), "lora_dropout": 0.0,
            "use_rslora": False, "bias": "none", "init_lora_weights": True, "base_model_name_or_path": self.base,
        }  # fmt: skip
        write_json(folder / CONFIG, settings)
        return folder

    def write_gguf(self, path: str | Path) -> Path:
        """As a LoRA of llama.cpp in float32, whole or not at all; its path. Errors: ModelError for an unknown name."""
        architecture = str(self.model.architecture)
        with replacing(path) as temporary:
            writer = gguf.GGUFWriter(None, architecture)
            writer.add_type("adapter")
            writer.add_string("adapter.type", "lora")
            writer.add_float32("adapter.lora.alpha", self.alpha)
            for name, (a, b) in self.matrices.items():
                tensor = tensor_name(f"{name}.weight", architecture, self.model.block_count)
                writer.add_tensor(tensor + A, np.ascontiguousarray(a))
                writer.add_tensor(tensor + B, np.ascontiguousarray(b))
            writer.write_header_to_file(temporary)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
        return Path(path)


@dataclass(frozen=True)
class Weights:
    """All weights of a network, float32, under their names in PyTorch; a tied one stands there once."""

    values: Mapping[str, Array]
    model: ModelIdentity

    def write_gguf(self, template: str | Path, path: str | Path) -> Path:
        """As `path`, which is else the GGUF model `template`, whose weights are float32.

        Errors: ModelError for a template of another model; EdgeSteerError for one that is not float32.
        """
        return gguf_append.append(template, path, {}, self._tensors(read_header(template)))

    def check_layout(self, template: str | Path) -> None:
        """That these are the weights of a GGUF model in float32, up to quantising.

        Errors: ModelError where they are not, or where llama.cpp's converter lays them out in a way that is not known
        here.
        """
        header = read_header(template)
        listed = {tensor.name: tensor for tensor in header.tensors}
        for name, values in self._tensors(header).items():
            info = listed[name]
            if info.type != F32:
                raise ModelError(f"{template}: {name} is not float32")
            there = np.fromfile(template, "<f4", prod(info.shape), offset=header.data + info.offset)
            if np.linalg.norm(there - values.ravel()) > QUANTISING * np.linalg.norm(there):
                raise ModelError(
                    f"{name} of {template} is not what PyTorch has of {self.model.name}: other weights, or laid out "
                    f"otherwise, as llama.cpp does for some architectures; train a vector or a low-rank adapter"
                )

    def _tensors(self, header: Header) -> dict[str, Array]:
        """llama.cpp's name -> the values as they lie in its files."""
        shapes = {tensor.name: tensor.shape[::-1] for tensor in header.tensors}
        tensors = {}
        for name, values in self.values.items():
            tensor = tensor_name(name, header.architecture, self.model.block_count)
            if shapes.get(tensor) != values.shape:
                raise ModelError(f"the model has no {tensor} of shape {list(values.shape)}; it is another model")
            tensors[tensor] = _laid_out(tensor, values, header)
        if rest := [name for name in shapes if name not in tensors and not name.startswith("rope_")]:
            raise ModelError(f"the model has {rest[0]}, which PyTorch has not; it cannot be trained whole")
        return tensors


Change = SteeringVector | LowRank | Weights


def tensor_name(name: str, architecture: str, blocks: int) -> str:
    """llama.cpp's name of a parameter that PyTorch calls `name`. Errors: ModelError for one it has not."""
    tensor: str | None = _names(architecture, blocks).get_name(name, try_suffixes=(".weight", ".bias"))
    if tensor is None:
        raise ModelError(f"llama.cpp has no name for {name} of {architecture!r}")
    return tensor


@cache
def _names(architecture: str, blocks: int) -> gguf.TensorNameMap:
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        raise ModelError(f"gguf does not know the architecture {architecture!r}")
    return gguf.get_tensor_name_map(known[architecture], blocks)


def _laid_out(tensor: str, values: Array, header: Header) -> Array:
    if header.architecture != "llama" or not tensor.endswith(PERMUTED):
        return values
    heads = header.metadata["llama.attention.head_count"]
    if tensor.endswith(PERMUTED[1]):
        heads = header.metadata.get("llama.attention.head_count_kv", heads)
    if not isinstance(heads, int):
        raise ModelError(f"blocks of unlike heads cannot be trained whole ({tensor})")
    return values.reshape(heads, 2, len(values) // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)
