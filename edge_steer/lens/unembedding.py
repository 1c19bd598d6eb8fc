"""A model's unembedding and final norm, which make logits of the residual stream, with the text of each token.

Takes a GGUF file or a Hugging Face folder, gives an Unembedding, which reads its rows when they are asked for. It needs
no torch and runs no model.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_steer.core.architectures import gguf_name
from edge_steer.core.errors import ModelError
from edge_steer.core.vector import Array, ModelIdentity
from edge_steer.lens import vocabulary
from edge_steer.lens.vocabulary import Vocabulary
from edge_steer.lens.weights import Tensor, gguf_tensors, safetensors_tensors
from edge_steer.storage.files import readable
from edge_steer.storage.gguf_header import Header, read_header
from edge_steer.storage.hub import Snapshot

HEAD, HEAD_BIAS, EMBEDDING = "output.weight", "output.bias", "token_embd.weight"
NORM, NORM_BIAS = "output_norm.weight", "output_norm.bias"
# The converter adds 1 to the norms of these; their Hugging Face files hold what is added to 1.
_NORM_FROM_ONE = frozenset(
    ("gemma", "gemma2", "gemma3", "minimax-m3", "nemotron", "qwen35", "qwen35moe", "qwen3next", "qwen4exp")
)
_HF_RMS = ("rms_norm_eps",)
_HF_LAYER_NORM = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")


@dataclass(frozen=True)
class FinalNorm:
    """The norm before the unembedding: gain and bias float32 (hidden,), RMSNorm or, centred, LayerNorm."""

    gain: Array
    bias: Array
    epsilon: float
    centred: bool

    def direction(self, states: Array) -> Array:
        """`states` (n, hidden) as the norm scales them, without the division by their length."""
        return self._centred(states) * self.gain

    def apply(self, states: Array) -> Array:
        """The norm of `states` (n, hidden)."""
        centred = self._centred(states)
        length = np.sqrt(np.mean(centred.astype(np.float64) ** 2, axis=1, keepdims=True) + self.epsilon)
        normed: Array = (centred / length).astype(np.float32) * self.gain + self.bias
        return normed

    def _centred(self, states: Array) -> Array:
        return np.subtract(states, states.mean(axis=1, keepdims=True)) if self.centred else states


@dataclass(frozen=True)
class Unembedding:
    """What makes logits of the last residual stream. tensor: the matrix (vocabulary, hidden); name: its name.

    bias: of the logits, (vocabulary,). tied: whether the matrix is the embedding as well. softcap: of the logits, 0 for
    none. scaled: whether the model scales its logits by a factor of its own, which is left out here.
    """

    model: ModelIdentity
    tensor: Tensor
    bias: Array
    tied: bool
    norm: FinalNorm
    vocabulary: Vocabulary
    softcap: float = 0.0
    scaled: bool = False

    @property
    def name(self) -> str:
        """llama.cpp's name of the tensor."""
        return EMBEDDING if self.tied else HEAD

    def blocks(self) -> Iterator[Array]:
        """Consecutive rows, one a token: float32 (rows, hidden)."""
        return self.tensor.blocks()

    def logits(self, states: Array, matrix: Array) -> Array:
        """The logits of residual streams (n, hidden), as if the last block had given them: float32 (n, vocabulary).

        matrix: `tensor.whole()`, which a caller keeps. Errors: ModelError for a model that scales its logits.
        """
        if self.scaled:
            raise ModelError(f"{self.model.architecture} scales its logits, which the lens leaves out; read by cosine")
        logits: Array = self.norm.apply(states) @ matrix.T + self.bias
        return self.softcap * np.tanh(logits / np.float32(self.softcap)) if self.softcap else logits


def read_unembedding(files: str | Path | Snapshot) -> Unembedding:
    """The unembedding of a GGUF file, or of a folder or snapshot of Hugging Face files.

    Errors: ModelError for files that hold none or are damaged, or an architecture that llama.cpp does not name.
    """
    if isinstance(files, Snapshot):
        return _of_folder(files.folder, files.name)
    path = Path(files)
    return _of_folder(path, path.resolve().name) if path.is_dir() else _of_gguf(path)


def _of_gguf(path: Path) -> Unembedding:
    header = read_header(path, whole=vocabulary.WHOLE)
    tensors = gguf_tensors(path, header)
    if HEAD not in tensors and EMBEDDING not in tensors:
        raise ModelError(f"{path} holds neither {HEAD} nor {EMBEDDING}; give a GGUF model")
    tied = HEAD not in tensors
    tensor = tensors[EMBEDDING if tied else HEAD]
    rms = _number(header, "attention.layer_norm_rms_epsilon")
    name = str(header.metadata.get("general.name") or path.stem)
    hidden, blocks = _number(header, "embedding_length"), _number(header, "block_count")
    return Unembedding(
        ModelIdentity(name, header.architecture, int(hidden or 0), int(blocks or 0)),
        tensor,
        _row(tensors, HEAD_BIAS) if HEAD_BIAS in tensors else np.zeros(tensor.rows, dtype=np.float32),
        tied,
        _norm(tensors, rms, _number(header, "attention.layer_norm_epsilon"), int(hidden or 0)),
        vocabulary.of_gguf(path, header).padded(tensor.rows),
        softcap=_number(header, "final_logit_softcapping") or 0.0,
        scaled=bool(_number(header, "logit_scale")),
    )


def _of_folder(folder: Path, name: str) -> Unembedding:
    config = _config(folder)
    architecture = gguf_name(str(config.get("model_type")))
    hidden, blocks = (int(config.get(key) or 0) for key in ("hidden_size", "num_hidden_layers"))
    tensors = safetensors_tensors(folder, architecture, blocks)
    tied = HEAD not in tensors or bool(config.get("tie_word_embeddings"))
    if (EMBEDDING if tied else HEAD) not in tensors:
        raise ModelError(f"{folder} holds neither {HEAD} nor {EMBEDDING} by any name that llama.cpp knows")
    tensor = tensors[EMBEDDING if tied else HEAD]
    rms, layer_norm = (next((config[key] for key in keys if key in config), None) for keys in (_HF_RMS, _HF_LAYER_NORM))
    norm = _norm(tensors, rms, layer_norm, hidden)
    if architecture in _NORM_FROM_ONE:
        norm = FinalNorm(norm.gain + 1, norm.bias, norm.epsilon, norm.centred)
    return Unembedding(
        ModelIdentity(name, architecture, hidden, blocks),
        tensor,
        _row(tensors, HEAD_BIAS) if HEAD_BIAS in tensors else np.zeros(tensor.rows, dtype=np.float32),
        tied,
        norm,
        vocabulary.of_tokenizer_json(folder).padded(tensor.rows),
        softcap=float(config.get("final_logit_softcapping") or 0),
        scaled=config.get("logit_scale", config.get("logits_scaling")) not in (None, 1.0),
    )


def _norm(tensors: Mapping[str, Tensor], rms: float | None, layer_norm: float | None, hidden: int) -> FinalNorm:
    """The final norm; a model without a gain or a bias has ones or zeros."""
    gain = _row(tensors, NORM) if NORM in tensors else np.ones(hidden, dtype=np.float32)
    bias = _row(tensors, NORM_BIAS) if NORM_BIAS in tensors else np.zeros(hidden, dtype=np.float32)
    epsilon = rms if rms is not None else layer_norm
    if epsilon is None:
        raise ModelError("the model says no epsilon of its final norm; give a GGUF made of it")
    return FinalNorm(gain, bias, float(epsilon), centred=rms is None)


def _row(tensors: Mapping[str, Tensor], name: str) -> Array:
    """A tensor of one axis, float32."""
    row: Array = tensors[name].whole()[0]
    return row


def _number(header: Header, key: str) -> float | None:
    value = header.metadata.get(f"{header.architecture}.{key}")
    return value if isinstance(value, int | float) else None


def _config(folder: Path) -> dict[str, Any]:
    """config.json, of the text model where there are several."""
    path = readable(folder / "config.json", "a model's config.json")
    try:
        config = json.loads(path.read_text("utf-8"))
        if not isinstance(config, dict):
            raise TypeError(f"it is a {type(config).__name__}")
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path} is no model's config: {error}") from None
    text: dict[str, Any] = config.get("text_config") or config
    return text
