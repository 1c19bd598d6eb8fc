"""An adapter by PEFT itself, by our PyTorch and by llama.cpp: how far apart are they? Needs peft (pip install peft).

    python benchmarks/lora.py

Random adapters of rank 4 on q_proj, v_proj and down_proj of the bundled model, 55 tokens. Prints the largest difference
of logits at each position, its median and its maximum, llama.cpp's F32 against PEFT; that of our PyTorch; what the
adapter itself changes; and the KL divergence of Q4_K_M from PyTorch, with the adapter and without.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from edge_steer.adapters.choice import choose_lora
from edge_steer.core.backend import EngineOptions
from edge_steer.core.stats import log_softmax
from edge_steer.core.vector import Array
from edge_steer.models.load import Runtime, load

MODEL = Path(__file__).parent.parent / "models" / "abacus"
EXACT = EngineOptions(threads=1, kv_type="f32", flash_attention="off", gpu_layers=0)
TOKENS = tuple(range(5, 60))
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "one module of another rank": {"rank_pattern": {"layers.2.mlp.down_proj": 2}},
}


def main() -> None:
    torch.set_num_threads(1)
    plain, quantised = logits(EXACT, "torch"), logits(EXACT, quant="Q4_K_M")
    print(f"{'adapter':28}{'median':>10}{'largest':>10}{'torch':>10}{'effect':>8}{'KL Q4_K_M':>11}{'without':>9}")
    for name, settings in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            by_peft = adapter(Path(folder), **settings)
            options = replace(EXACT, lora=choose_lora(folder))
            ours, torchs, quants = logits(options), logits(options, "torch"), logits(options, quant="Q4_K_M")
        apart = np.abs(ours - by_peft).max(axis=1)
        print(
            f"{name:28}{np.median(apart):10.1e}{apart.max():10.1e}{np.abs(torchs - by_peft).max():10.1e}"
            f"{np.abs(by_peft - plain).max():8.1f}{kl(by_peft, quants):11.3f}{kl(plain, quantised):9.3f}"
        )


def adapter(folder: Path, **settings: Any) -> Array:
    """Write a random adapter by PEFT; the logits that PEFT computes with it."""
    network = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    targets = ["down_proj", "q_proj", "v_proj"]
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules=targets, **settings)
    torch.manual_seed(0)
    adapted = get_peft_model(network, config).eval()
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    adapted.save_pretrained(folder)
    with torch.no_grad():
        computed: Array = adapted(torch.tensor([TOKENS])).logits[0].numpy()
    return computed


def logits(options: EngineOptions, runtime: Runtime = "llama", quant: str = "F32") -> Array:
    with load(MODEL, None if runtime == "torch" else quant, runtime=runtime, options=options) as model:
        return model.logits(TOKENS, 1)


def kl(reference: Array, other: Array) -> float:
    ours, theirs = log_softmax(reference), log_softmax(other)
    return float((np.exp(ours) * (ours - theirs)).sum(axis=1).mean())


if __name__ == "__main__":
    main()
