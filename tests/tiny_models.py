"""Small random-weight models of many architectures, made by transformers and converted by llama.cpp's own converter.

Takes names of FAMILIES, gives Hugging Face folders and F32 GGUF files. All have the bundled model's vocabulary, since
the check is of what a network computes and not of its tokens. The norms are random too, so that none is left out
unseen. Models with a GELU are wide (see WIDE). Used by tests and by benchmarks/architectures.py.
"""

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from paths import ABACUS

from edge_steer.core.backend import EngineOptions
from edge_steer.core.steering import Offsets, Steering
from edge_steer.core.vector import Array, SteeringVector
from edge_steer.llama.context import LlamaContext
from edge_steer.llama.engine import Engine
from edge_steer.llama.model import LlamaModel
from edge_steer.models import convert_driver
from edge_steer.models.convert import converter_folder
from edge_steer.parity.mechanism import MechanismRow, mechanism
from edge_steer.parity.texts import TokenisedText
from edge_steer.reference.model import Reference

VOCABULARY = ABACUS
BLOCKS = 4
TOLERANCE = 1e-4  # of logits, whose standard deviation is about 1
VOCABULARY_SIZE = 495

_ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.8, 2.0, 2.2],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
}
_GEMMA3 = {
    "sliding_attention": _ROPE,
    "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
}
_WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
_MOE = {"num_experts": 8, "num_experts_per_tok": 2}
_LINEAR_ATTENTION = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_GRANITE = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.2,
    "logits_scaling": 0.5,
}

# name -> transformers' name of the architecture, and what its config says beyond `_SIZES`
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "llama": ("Llama", {}),
    "llama, llama3 rope": ("Llama", {"rope_parameters": _LLAMA3}),
    "llama, linear rope": ("Llama", {"rope_parameters": _LINEAR}),
    "llama, yarn": ("Llama", {"rope_parameters": _YARN}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "gemma": ("Gemma", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2", {"tie_word_embeddings": True, "head_dim": 32, "query_pre_attn_scalar": 32, **_WINDOWS}),
    "gemma3": (
        "Gemma3Text",
        {
            "num_hidden_layers": 6,  # llama.cpp makes every sixth block see all
            "layer_types": [*["sliding_attention"] * 5, "full_attention"],
            "sliding_window": 8,
            "tie_word_embeddings": True,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "rope_parameters": _GEMMA3,
        },
    ),
    "phi3": ("Phi3", {"rope_parameters": {**_ROPE, "original_max_position_embeddings": 256}}),
    "phi3, short factors": (
        "Phi3",
        {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 256, "max_position_embeddings": 1024},
    ),
    "phi3, long factors": ("Phi3", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 32}),
    "smollm2": ("Llama", {"tie_word_embeddings": True, "num_attention_heads": 4, "num_key_value_heads": 4}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 1, 1, 0], "no_rope_layer_interval": 4}),
    "granite": ("Granite", _GRANITE),
    "qwen3moe": ("Qwen3Moe", {"moe_intermediate_size": 64, "norm_topk_prob": True, **_MOE}),
    "olmoe": ("Olmoe", {"norm_topk_prob": False, "num_key_value_heads": 4, **_MOE}),
}
# ggml reads GELU on the CPU from a table of float16, but beyond +-10, where it is 0 or its argument. Before it values
# are made so much larger, and after it so much smaller, that nearly nothing is left to the table.
WIDE = 1000.0
GELU = ("gemma", "gemma2", "gemma3")  # of FAMILIES; these and the next are made wide
MORE_GELU = ("bloom", "falcon", "gemma4", "gpt2", "gpt-neox", "phi2", "starcoder2")
_AROUND_GELU = (  # names of the linear layers before and after it
    ("gate_proj", "up_proj"),
    ("per_layer_input_gate", "per_layer_projection"),
    ("c_fc", "c_proj"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("fc1", "fc2"),
)

# more of them, for benchmarks/architectures.py
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "apertus": ("Apertus", {}),
    "arcee": ("Arcee", {}),
    "bloom": ("Bloom", {"n_layer": BLOCKS, "n_head": 4}),
    "cohere": ("Cohere", {"logit_scale": 0.5, "tie_word_embeddings": True}),
    "cohere2": (
        "Cohere2",
        {
            "logit_scale": 0.5,
            "tie_word_embeddings": True,
            "sliding_window": 8,
            "layer_types": [*["sliding_attention"] * 3, "full_attention"],
        },
    ),
    "deepseek2": (
        "DeepseekV2",
        {
            "first_k_dense_replace": 1,
            "kv_lora_rank": 32,
            "q_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 16,
            "v_head_dim": 16,
            "moe_intermediate_size": 64,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "num_key_value_heads": 4,
            "norm_topk_prob": False,
        },
    ),
    "ernie4.5": ("Ernie4_5", {}),
    "exaone4": ("Exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * BLOCKS}),
    "falcon": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}),
    "falcon-h1": (
        "FalconH1",
        {
            "head_dim": 16,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_n_groups": 1,
            "mamba_d_state": 16,
        },
    ),
    "gemma4": (
        "Gemma4Text",
        {
            "head_dim": 32,
            "global_head_dim": 32,
            "vocab_size_per_layer_input": VOCABULARY_SIZE,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 0,
            "final_logit_softcapping": 30.0,
            **_WINDOWS,
            "rope_parameters": None,
        },
    ),
    "glm4": ("Glm4", {"head_dim": 16}),
    "gpt2": ("GPT2", {"n_layer": BLOCKS, "n_head": 4, "n_embd": 64, "n_positions": 256, "n_ctx": 256}),
    "gpt-neox": ("GPTNeoX", {}),
    "gpt-oss": ("GptOss", {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 16, **_WINDOWS}),
    "granitemoe": ("GraniteMoe", {"num_local_experts": 8, "num_experts_per_tok": 2, **_GRANITE}),
    "hunyuan": ("HunYuanDenseV1", {"head_dim": 16}),
    "lfm2": ("Lfm2", {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False}),
    "llama, attention biases": ("Llama", {"attention_bias": True}),
    "mixtral": ("Mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None}),
    "nemotron": ("Nemotron", {"partial_rotary_factor": 0.5}),
    "olmo": ("Olmo", {"clip_qkv": None}),
    "olmo2": ("Olmo2", {}),
    "phi2": ("Phi", {"num_key_value_heads": 4, "intermediate_size": 256}),
    "phimoe": (
        "Phimoe",
        {
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "sliding_window": None,
            "rope_parameters": {**_ROPE, "original_max_position_embeddings": 256},
            "attention_bias": True,
            "lm_head_bias": True,
        },
    ),
    "qwen2moe": (
        "Qwen2Moe",
        {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64, "norm_topk_prob": False, **_MOE},
    ),
    "qwen3next": (
        "Qwen3Next",
        {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64, **_LINEAR_ATTENTION, **_MOE},
    ),
    "qwen3.5": (
        "Qwen3_5Text",
        {
            **_LINEAR_ATTENTION,
            "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]},
        },
    ),
    "seed-oss": ("SeedOss", {"head_dim": 16}),
    "stablelm": ("StableLm", {}),
    "starcoder2": ("Starcoder2", {"sliding_window": None}),
}

# what the converter asks for and published config.json files say, other than transformers writes it
_WRITTEN: dict[str, dict[str, Any]] = {
    "cohere2": {"rotary_pct": 1.0},
    "gemma4": {"global_head_dim": 32},
    "gpt-neox": {"rotary_pct": 0.25},
    "phimoe": {"architectures": ["PhiMoEForCausalLM"]},
}

_SIZES = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "rope_parameters": _ROPE,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
}


def make(name: str, folder: Path, changes: Mapping[str, Any] | None = None, *, wide: bool | None = None) -> Path:
    """A Hugging Face folder `folder` of the family, with some settings changed. wide: None is as the family is."""
    import torch
    import transformers

    kind, settings = {**FAMILIES, **MORE}[name]
    known = copy.deepcopy({**_SIZES, **settings, **(changes or {})})  # transformers writes into its arguments
    config = getattr(transformers, f"{kind}Config")(**known)
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
        if (name in GELU + MORE_GELU) if wide is None else wide:
            _widen(network)
    network.save_pretrained(folder)
    if name in _WRITTEN:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **_WRITTEN[name]}))
    for vocabulary in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(VOCABULARY / vocabulary, folder)
    return folder


def convert(folders: Iterable[Path]) -> list[Path]:
    """An F32 GGUF beside each folder, all by one process."""
    folders = list(folders)
    script = Path(__file__).with_name("convert_many.py")
    command = [sys.executable, "-P", script, converter_folder(), convert_driver.__file__, *folders]
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return [Path(f"{folder}.gguf") for folder in folders]


def rename(source: Path, target: Path, architecture: str, numbers: Mapping[str, float] | None = None) -> None:
    """The same model under another name of its architecture. numbers: keys of that architecture to add, float32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, architecture)
    old = str(reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kinds = field.types
            key = name.replace(f"{old}.", f"{architecture}.", 1) if name.startswith(f"{old}.") else name
            writer.add_key_value(key, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for key, number in (numbers or {}).items():
        writer.add_float32(f"{architecture}.{key}", number)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def with_half_gelu(reference: Reference) -> Reference:
    """The reference with GELU as ggml has it on the CPU: within +-10 a table of float16 (GGML_GELU_FP16)."""
    import torch

    class HalfGelu(torch.nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            tabled = torch.nn.functional.gelu(values.half().float(), approximate="tanh").half().float()
            return torch.where(values.abs() < 10, tabled, values.clamp(min=0))

    for module in list(reference._network.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ in ("GELUTanh", "GELUActivation", "NewGELUActivation"):
                setattr(module, name, HalfGelu())
    return reference


def vector(reference: Reference) -> SteeringVector:
    """A random direction for every layer, half as long as the residual stream is there."""
    random = np.random.default_rng(0)
    states = reference.record(text(reference).tokens, range(reference.model.block_count))
    directions = {}
    for layer, found in states.items():
        direction = random.standard_normal(reference.model.hidden_size)
        size = np.linalg.norm(found, axis=1).mean() / 2
        directions[layer] = (direction / np.linalg.norm(direction) * size).astype(np.float32)
    return SteeringVector(directions, reference.model, method="random")


def text(reference: Reference) -> TokenisedText:
    """64 tokens that mean nothing, a quarter of them prompt."""
    tokens = np.random.default_rng(1).integers(3, VOCABULARY_SIZE, 64)
    return TokenisedText(tuple(map(int, tokens)), 16)


def logits_apart(reference: Reference, gguf: Path) -> list[MechanismRow]:
    """The mechanism at every layer, 0 included, in both phases, at both signs."""
    with Engine.load(gguf, EngineOptions(kv_type="f32", flash_attention="off", threads=1)) as engine:
        assert engine.model.architecture == reference.model.architecture
        layers = range(reference.model.block_count)
        return mechanism(
            reference, engine, vector(reference), [text(reference)], layers=layers, strengths=(0.0, 1.0, -1.0)
        )


def residuals_apart(reference: Reference, gguf: Path) -> Iterator[tuple[int, int, float, float]]:
    """Steered after `at`, read after `layer`: both with how far the residual stream is off, the median over positions.

    The fourth is how far it is off from the next layer's. Both are relative to the length of the residual stream;
    `at` -1 is unsteered.
    """
    asked, layers = text(reference), range(reference.model.block_count)
    steerings: list[tuple[Steering, ...]] = [(), *((Steering(vector(reference), 1.0, (at,)),) for at in layers)]
    with (
        LlamaModel(gguf) as model,
        LlamaContext(model, length=256, threads=1, kv_type="f32", flash_attention="off", hooked=True) as context,
    ):
        for at, steering in enumerate(steerings, -1):
            expected = reference.record(asked.tokens, layers, steering=steering, prompt=asked.prompt)
            offsets = Offsets.of(steering, model.identity)
            context.add({layer: row[None] for layer, row in offsets.by_layer.items()} if offsets else {})
            context.forget(0)
            context.read(layers)
            context.decode(asked.tokens, np.arange(len(asked.tokens)), 0, 1)
            found = context.states()
            for layer in layers:
                other = layer + 1 if layer + 1 in layers else layer - 1
                yield at, layer, _apart(found[layer], expected[layer]), _apart(found[layer], expected[other])


def _widen(network: Any) -> None:
    for module in network.modules():
        for before, after in _AROUND_GELU:
            if hasattr(module, before) and hasattr(module, after):
                for parameter in getattr(module, before).parameters():
                    parameter *= WIDE
                getattr(module, after).weight /= WIDE


def _apart(found: Array, expected: Array) -> float:
    return float(np.median(np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)))
