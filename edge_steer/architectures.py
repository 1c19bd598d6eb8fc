"""Model architectures: their names on both sides, which llama.cpp cannot steer, and what it computes otherwise.

Takes names and a model's config, gives names and reasons. The reasons are read from the model graphs of llama.cpp;
`python benchmarks/steerable.py` holds this table against the sources of the installed version. Imports nothing.
"""

from collections.abc import Mapping

GGUF_NAMES = {  # where llama.cpp's name for an architecture is not Hugging Face's model_type
    "cohere": "command-r",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "falcon_h1": "falcon-h1",
    "gemma3_text": "gemma3",
    "gemma3n_text": "gemma3n",
    "glm": "chatglm",
    "gpt_bigcode": "starcoder",
    "gpt_neox": "gptneox",
    "gpt_oss": "gpt-oss",
    "granitemoehybrid": "granitehybrid",
    "hunyuan_v1_dense": "hunyuan-dense",
    "ministral": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "phi": "phi2",
    "qwen2_5_vl_text": "qwen2vl",
    "qwen2_moe": "qwen2moe",
    "qwen2_vl_text": "qwen2vl",
    "qwen3_moe": "qwen3moe",
    "qwen3_vl_text": "qwen3vl",
}

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

_TOPK_NORMALISED = {"qwen3_moe": True, "olmoe": False, "qwen2_moe": False}  # what llama.cpp does, whatever the config
_WINDOWLESS = ("mistral", "phi3", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "starcoder2")


def gguf_name(model_type: str) -> str:
    """llama.cpp's name of a Hugging Face model_type, or of what is its own name already."""
    return GGUF_NAMES.get(model_type, model_type)


def model_type(gguf_name: str) -> str:
    """Hugging Face's model_type of llama.cpp's name. Where several share one, the name itself, as in "llama"."""
    types = [model_type for model_type, name in GGUF_NAMES.items() if name == gguf_name]
    return types[0] if len(types) == 1 else gguf_name


def departure(config: Mapping[str, object]) -> str:
    """What llama.cpp computes otherwise than the model of this config.json at any text; "" if nothing is known.

    config: of the text model. A window of attention that llama.cpp leaves out is `window`'s matter.
    """
    kind = config.get("model_type")
    normalised = _TOPK_NORMALISED.get(str(kind))
    if normalised is not None and bool(config.get("norm_topk_prob", False)) != normalised:
        does = "always" if normalised else "never"
        return f"llama.cpp {does} normalises the weights of {kind}'s chosen experts; norm_topk_prob says otherwise"
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
