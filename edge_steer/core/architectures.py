"""Model architectures: their names on both sides, which llama.cpp cannot steer, and what it computes otherwise.

Takes names and a model's config, gives names and reasons. The reasons are read from the model graphs of llama.cpp;
`python benchmarks/steerable.py` holds this table against the sources of the installed version. Imports nothing.
"""

from collections.abc import Mapping

from edge_steer.core.errors import ModelError, VectorError
from edge_steer.core.vector import ModelIdentity

GGUF_NAMES = {  # where llama.cpp's name for an architecture is not Hugging Face's model_type
    "bamba": "granitehybrid",
    "cohere": "command-r",
    "cohere2_moe": "cohere2moe",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "deepseek_v32": "deepseek32",
    "deepseek_v4": "deepseek4",
    "dots3_note_text": "dots3note",
    "ernie4_5_moe": "ernie4_5-moe",
    "exaone_moe": "exaone-moe",
    "falcon_h1": "falcon-h1",
    "falcon_mamba": "mamba",
    "gemma3_text": "gemma3",
    "gemma3n_text": "gemma3n",
    "gemma4_assistant": "gemma4-assistant",
    "gemma4_text": "gemma4",
    "glm": "chatglm",
    "glm4_moe": "glm4moe",
    "glm4_moe_lite": "deepseek2",
    "glm_moe_dsa": "glm-dsa",
    "gpt_bigcode": "starcoder",
    "gpt_neox": "gptneox",
    "gpt_oss": "gpt-oss",
    "granitemoe_swa": "granite_swa",
    "granitemoehybrid": "granitehybrid",
    "granitemoeshared": "granitemoe",
    "hunyuan_v1_dense": "hunyuan-dense",
    "hunyuan_v1_moe": "hunyuan-moe",
    "internlm3": "llama",
    "iquestcoder": "llama",
    "kimi_linear": "kimi-linear",
    "lfm2_moe": "lfm2moe",
    "llama4_text": "llama4",
    "mimo_v2_flash": "mimo2",
    "minimax_m2": "minimax-m2",
    "ministral": "llama",
    "ministral3": "mistral3",
    "mistral": "llama",
    "mixtral": "llama",
    "olmo3": "olmo2",
    "phi": "phi2",
    "qwen2_5_vl_text": "qwen2vl",
    "qwen2_moe": "qwen2moe",
    "qwen2_vl_text": "qwen2vl",
    "qwen3_5_moe_text": "qwen35moe",
    "qwen3_5_text": "qwen35",
    "qwen3_moe": "qwen3moe",
    "qwen3_next": "qwen3next",
    "qwen3_vl_text": "qwen3vl",
    "qwen4_exp_text": "qwen4exp",
    "solar_open": "glm4moe",
    "youtu": "deepseek2",
}
_OWN = ("granitemoe", "mamba", "olmo2")  # names above that are a model_type as well
_NO_VECTOR = "its graph takes no control vector"
_NO_LEFT_TO_RIGHT = "it does not generate text from left to right"
_STREAMS = "each of its blocks hands on several residual streams, and a control vector would go into all of them"
_LOOPS = "it runs its blocks more than once, and llama.cpp counts every run as a layer"
_FFN_ONLY = "a control vector reaches only its feed-forward blocks, and there it comes before the residual add"
UNSTEERABLE = {  # llama.cpp's name -> why it cannot be steered there at the layers of the layer law
    "bert": _NO_LEFT_TO_RIGHT,
    "clip": _NO_LEFT_TO_RIGHT,
    "deepseek4": _STREAMS,
    "dflash": _NO_VECTOR,
    "dream": _NO_LEFT_TO_RIGHT,
    "eagle3": _NO_VECTOR,
    "eurobert": _NO_LEFT_TO_RIGHT,
    "gemma-embedding": _NO_LEFT_TO_RIGHT,
    "gemma3n": _STREAMS,
    "gemma4-assistant": _NO_VECTOR,
    "glm5-next": _STREAMS,
    "hrm_text": _LOOPS,
    "hy_v4": _NO_VECTOR,
    "jina-bert-v2": _NO_LEFT_TO_RIGHT,
    "jina-bert-v3": _NO_LEFT_TO_RIGHT,
    "kimi-k3": "its blocks mix the outputs of earlier blocks anew, so no one residual stream runs through them",
    "llada": _NO_LEFT_TO_RIGHT,
    "llada-moe": _NO_LEFT_TO_RIGHT,
    "llama-embed": _NO_LEFT_TO_RIGHT,
    "modern-bert": _NO_LEFT_TO_RIGHT,
    "nanbeige": _LOOPS,
    "nemotron_h": _FFN_ONLY,
    "nemotron_h_moe": _FFN_ONLY,
    "neo-bert": _NO_LEFT_TO_RIGHT,
    "nomic-bert": _NO_LEFT_TO_RIGHT,
    "nomic-bert-moe": _NO_LEFT_TO_RIGHT,
    "plamo2": _NO_VECTOR,
    "qwen4exp": _NO_VECTOR,
    "rnd1": _NO_LEFT_TO_RIGHT,
    "rwkv6": "llama.cpp halves the residual stream every few blocks, before it adds the control vector",
    "t5": "it is an encoder with a decoder, and a control vector goes into both",
    "t5encoder": _NO_LEFT_TO_RIGHT,
    "wavtokenizer-dec": _NO_LEFT_TO_RIGHT,
}
HALF_GELU = frozenset(  # llama.cpp's names of what has a GELU, which it reads from a table of float16 on a CPU
    (
        "bloom",
        "codeshell",
        "falcon",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma4",
        "gpt2",
        "gptneox",
        "grok",
        "mpt",
        "phi2",
        "pockettts",
        "spark2_5",
        "starcoder",
        "starcoder2",
    )
)
_TOPK_NORMALISED = {"qwen3_moe": True, "olmoe": False, "qwen2_moe": False}  # what llama.cpp does, whatever the config
_WINDOWLESS = (
    "dots1",
    "iquestcoder",
    "ministral",
    "ministral3",
    "mistral",
    "mixtral",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen2_5_vl_text",
    "qwen2_moe",
    "qwen2_vl_text",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "starcoder2",
)


def gguf_name(model_type: str) -> str:
    """llama.cpp's name of a Hugging Face model_type, or of what is its own name already."""
    return GGUF_NAMES.get(model_type, model_type)


def model_type(gguf_name: str) -> str:
    """Hugging Face's model_type of llama.cpp's name. Where several share one, the name itself, as in "llama"."""
    types = [model_type for model_type, name in GGUF_NAMES.items() if name == gguf_name]
    return types[0] if len(types) == 1 and gguf_name not in _OWN else gguf_name


def departure(config: Mapping[str, object]) -> str:
    """What llama.cpp computes otherwise than the model of this config.json at any text; "" if nothing is known.

    config: of the text model. A window of attention that llama.cpp leaves out is `window`'s matter.
    """
    kind = config.get("model_type")
    normalised = _TOPK_NORMALISED.get(str(kind))
    if normalised is not None and bool(config.get("norm_topk_prob", False)) != normalised:
        does = "always" if normalised else "never"
        return f"llama.cpp {does} normalises the weights of {kind}'s chosen experts; norm_topk_prob says otherwise"
    if kind == "phimoe":
        return "llama.cpp divides by the root mean square where phimoe has LayerNorm, and weighs its experts otherwise"
    return ""


def window(config: Mapping[str, object]) -> int | None:
    """How many tokens a text may have before llama.cpp computes otherwise than the model of this config.json.

    llama.cpp lets every token of these architectures see all before it, where the model itself has a sliding window.
    None: the same at any length.
    """
    size = config.get("sliding_window")
    if config.get("model_type") not in _WINDOWLESS or not isinstance(size, int):
        return None
    layers = config.get("layer_types")
    if isinstance(layers, (list, tuple)):
        return size if "sliding_attention" in layers else None
    return size if config.get("use_sliding_window", True) else None


def check_architecture(name: str | None) -> None:
    """Errors: ModelError for an architecture whose residual stream llama.cpp does not offer as the layer law has it."""
    if reason := UNSTEERABLE.get(name or ""):
        raise ModelError(f"llama.cpp can neither steer nor read the layers of {name}: {reason}; use another model")


def check_steerable(layers: Mapping[int, object], model: ModelIdentity) -> None:
    """Errors: ModelError for an architecture that llama.cpp cannot steer, VectorError for a layer that its native
    control vector cannot carry."""
    check_architecture(model.architecture)
    if 0 in layers:
        raise VectorError(
            f"llama.cpp's control vectors have no layer 0, only layers 1-{model.block_count - 1}; "
            "Engine steers layer 0 by rows"
        )
    if beyond := [layer for layer in layers if not 0 < layer < model.block_count]:
        raise VectorError(f"layer {beyond[0]} asked; {model} can be steered at layers 1-{model.block_count - 1}")
