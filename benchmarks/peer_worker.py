"""A vector made and used by another package, in a process and an environment of its own; started by peer_vectors.py.

    python peer_worker.py NAME MODEL_FOLDER INPUT.json VECTOR_FILE LOGITS.npy

INPUT.json: `pairs`, a list of [positive, negative] texts; `tokens`, what is decoded; `strength`. The package extracts
a vector in its own way and writes its own file, and then steers its own model with it: logits (tokens, vocabulary).
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np
import torch


def repeng(model: Any, tokenizer: Any, given: dict[str, Any], file: str) -> torch.Tensor:
    from repeng import ControlVector, DatasetEntry

    dataset = [DatasetEntry(positive=positive, negative=negative) for positive, negative in given["pairs"]]
    ControlVector.train(model, tokenizer, dataset, batch_size=1).export_gguf(file)
    return repeng_reads(model, tokenizer, given, file)


def repeng_reads(model: Any, _tokenizer: Any, given: dict[str, Any], file: str) -> torch.Tensor:
    """Steered by a file that is there already."""
    from repeng import ControlModel, ControlVector

    vector = ControlVector.import_gguf(file)
    steered = ControlModel(model, list(vector.directions))
    steered.set_control(vector, given["strength"])
    return steered(torch.tensor([given["tokens"]])).logits


def steering_vectors(model: Any, tokenizer: Any, given: dict[str, Any], file: str) -> torch.Tensor:
    from steering_vectors import train_steering_vector

    vector = train_steering_vector(model, tokenizer, [tuple(pair) for pair in given["pairs"]], batch_size=1)
    torch.save(vector, file)
    vector = torch.load(file, weights_only=False)
    with vector.apply(model, multiplier=given["strength"]):
        return model(torch.tensor([given["tokens"]])).logits


def main(name: str, folder: str, given: str, file: str, logits: str) -> None:
    import transformers

    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    use = {"repeng": repeng, "repeng-reads": repeng_reads, "steering-vectors": steering_vectors}[name]
    with torch.inference_mode():
        found = use(model, tokenizer, json.loads(Path(given).read_text()), file)
    np.save(logits, found[0].float().numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
