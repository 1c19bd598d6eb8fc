"""A model of Qwen2.5-0.5B's shape with random weights: as slow and as large as the real one, and free to make.

Gives a Hugging Face folder in float16 and GGUF files of it, from the cache folder. The vocabulary has Qwen2.5's size,
but only the bundled model's tokens have a text. Its answers mean nothing; use it to measure time and memory.
"""

import shutil
from pathlib import Path

from edge_steer.models import quantize
from edge_steer.storage.files import cache_folder

NAME = "random-qwen2.5-0.5b"
TOKENIZER = Path(__file__).parents[1] / "models" / "abacus"


def folder() -> Path:
    """The Hugging Face folder, made if it is not there."""
    final = cache_folder() / NAME
    if final.is_dir():
        return final
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    partial = final.with_suffix(".partial")
    transformers.Qwen2ForCausalLM(config).half().save_pretrained(partial)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / name, partial)
    return partial.rename(final)


def gguf(quant: str = "Q4_K_M") -> Path:
    """The same weights as a GGUF of the type `quant`."""
    return quantize.gguf_for(folder(), quant)
