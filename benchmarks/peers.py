"""One extraction, in a process and an environment of its own; started by extract.py.

    python peers.py NAME MODEL_FOLDER PAIRS.json VECTOR.npz BATCH THREADS

PAIRS.json: a list of [question, positive, negative]. Writes the vector of every layer (layer N is the output of block
N) and prints one JSON line: seconds of the extraction itself, and the process's memory before it and at its peak.
"""

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np
import torch

Pairs = list[list[str]]
Vector = dict[int, Any]
Extract = Callable[[Pairs], Vector]


def edge_steer(folder: str, batch: int) -> Extract:
    from edge_steer.extraction.extract import extract
    from edge_steer.pairs.pair import Pair
    from edge_steer.reference.model import Reference

    reference = Reference.load(folder)
    return lambda pairs: dict(extract(reference, [Pair(*pair) for pair in pairs], batch_tokens=batch).directions)


def steering_vectors(folder: str, batch: int) -> Extract:
    from steering_vectors import train_steering_vector

    model, tokenizer = load(folder)

    def extract(pairs: Pairs) -> Vector:
        samples = list(zip(*texts(pairs), strict=True))
        return train_steering_vector(model, tokenizer, samples, batch_size=batch).layer_activations

    return extract


def repeng(folder: str, batch: int) -> Extract:
    from repeng.extract import batched_get_hiddens

    model, tokenizer = load(folder)
    layers = list(range(model.config.num_hidden_layers))

    def extract(pairs: Pairs) -> Vector:
        positive, negative = texts(pairs)
        inputs = [text for pair in zip(positive, negative, strict=True) for text in pair]
        states = batched_get_hiddens(model, tokenizer, inputs, layers, batch)
        return {layer: (states[layer][::2] - states[layer][1::2]).mean(axis=0) for layer in layers}

    return extract


def load(folder: str) -> tuple[Any, Any]:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    return model, transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def texts(pairs: Pairs) -> tuple[list[str], list[str]]:
    """Every answer behind its question in the chat template of the random model (ChatML)."""
    prompts = [f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question, _, _ in pairs]
    positive = [prompt + pair[1] for prompt, pair in zip(prompts, pairs, strict=True)]
    negative = [prompt + pair[2] for prompt, pair in zip(prompts, pairs, strict=True)]
    return positive, negative


def memory(field: str) -> int:
    """Bytes of resident memory: "VmRSS" now, "VmHWM" at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main(name: str, folder: str, pairs: str, vector: str, batch: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    extract = {"edge-steer": edge_steer, "steering-vectors": steering_vectors, "repeng": repeng}[name](
        folder, int(batch)
    )
    wanted = json.loads(Path(pairs).read_text())
    with contextlib.redirect_stdout(sys.stderr):
        extract([["1", "2", "3"]])
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
        start = time.perf_counter()
        found = extract(wanted)
        seconds = time.perf_counter() - start
    np.savez(vector, **{str(layer): np.asarray(direction) for layer, direction in found.items()})
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "loaded": before, "peak": memory("VmHWM"), "ru_maxrss": whole}))


if __name__ == "__main__":
    main(*sys.argv[1:])
