"""An adapter of PEFT: a folder with adapter_config.json and adapter_model.safetensors.

Takes a folder, gives its settings. What llama.cpp's LoRA cannot represent is refused by name, so that nothing of an
adapter is left out in silence. It reads no weights but to hash them.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_steer.core.errors import EdgeSteerError, ModelError
from edge_steer.storage.digests import digest
from edge_steer.storage.files import readable

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva", None)  # the others change the model's own weights
_MUST_BE_EMPTY = {  # settings that change more than B A, or the factor of some modules alone
    "alora_invocation_tokens": "it begins at invocation tokens",
    "alpha_pattern": "it scales some modules otherwise",
    "fan_in_fan_out": "its matrices are transposed",
    "layer_replication": "it repeats blocks",
    "lora_bias": "it adds biases",
    "modules_to_save": "it replaces whole modules",
    "target_parameters": "it changes parameters that are no module's weight",
    "trainable_token_indices": "it changes embeddings",
    "use_dora": "it rescales the weights themselves",
    "use_qalora": "it pools the inputs",
}


@dataclass(frozen=True)
class PeftAdapter:
    """What a folder says. base: the model it was trained on, a folder or a hub id, if it says so."""

    folder: Path
    rank: int
    alpha: float
    rank_stabilised: bool
    base: str | None
    settings: Mapping[str, Any]

    def factor(self, rank: int) -> float:
        """What B A of a module of this rank is multiplied by: alpha / r, or with rank stabilisation alpha / sqrt(r)."""
        return self.alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    @property
    def digest(self) -> str:
        """One SHA-256 over the settings that change numbers and over the weights, in hex."""
        numbers = json.dumps([self.rank, self.alpha, self.rank_stabilised])
        return hashlib.sha256(f"{numbers} {digest(self.folder / WEIGHTS)}".encode()).hexdigest()

    def plain_settings(self) -> dict[str, Any]:
        """The settings of the same adapter without rank stabilisation, which llama.cpp's converter does not read."""
        return {**self.settings, "use_rslora": False, "lora_alpha": self.factor(self.rank) * self.rank}


def read(folder: str | Path) -> PeftAdapter:
    """An adapter's settings. Errors: ModelError for a folder that is none, or an adapter that cannot be honoured."""
    folder = Path(folder)
    try:
        readable(folder / WEIGHTS, "the weights of an adapter of PEFT")
        settings = json.loads(readable(folder / CONFIG, "the settings of an adapter of PEFT").read_text("utf-8"))
        rank, alpha, kind = int(settings["r"]), float(settings["lora_alpha"]), settings.get("peft_type")
    except EdgeSteerError as error:
        raise ModelError(str(error)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / CONFIG} is no adapter's settings: {error!r}") from None
    if kind != "LORA":
        raise ModelError(f"{folder} is an adapter of type {kind!r}; only LORA can be run")
    if rank < 1 or not math.isfinite(alpha):
        raise ModelError(f"{folder} has rank {rank} and alpha {alpha:g}; a rank of at least 1 and a number are needed")
    if settings.get("rank_pattern") and settings.get("use_rslora"):
        raise ModelError(f"{folder} cannot be honoured: it stabilises modules of different ranks (rank_pattern)")
    for name, why in _MUST_BE_EMPTY.items():
        if settings.get(name):
            raise ModelError(f"{folder} cannot be honoured: {why} ({name})")
    if (start := settings.get("init_lora_weights")) not in _PLAIN_STARTS:
        raise ModelError(f"{folder} cannot be honoured: it began with {start}, which changed the model's own weights")
    if (bias := settings.get("bias", "none")) != "none":
        raise ModelError(f"{folder} cannot be honoured: it trained biases (bias {bias!r})")
    base = settings.get("base_model_name_or_path") or None
    return PeftAdapter(folder, rank, alpha, bool(settings.get("use_rslora")), base, settings)
