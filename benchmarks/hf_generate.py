"""Hugging Face generate with a steering hook, at its best batch size; run by eval.py in a process of its own.

    python hf_generate.py MODEL_FOLDER PROMPTS.json [options]

PROMPTS.json: a list of token id lists. This is how steering is evaluated where it is published: a forward hook on one
decoder block adds strength * vector to its output at every position, prompts are padded on the left, decoding is
greedy under generate's own KV cache. Each batch size is tried on one batch of prompts of middling length; the fastest,
of all dtypes asked, then answers every prompt, in batches of like length. End tokens are ignored, so every prompt gets
as many new tokens. Tokens per second are new tokens over the whole time, prefill included.

Prints one JSON line: what was run, tokens/s of each dtype and batch size, and of the best one on all prompts.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
import click
import torch
import transformers

Prompts = list[list[int]]


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("prompts_file", metavar="PROMPTS", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tokens", default=256, show_default=True, help="New tokens of each prompt.")
@click.option("--trial-tokens", default=16, show_default=True, help="New tokens of each prompt in a trial.")
@click.option("--batch-size", "sizes", multiple=True, type=click.IntRange(1), default=(1, 8, 16, 32, 64))
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(["float32", "bfloat16"]), default=("float32",))
@click.option("--layer", type=int, help="Block that is steered.  [default: the middle one]")
@click.option("--strength", default=0.01, show_default=True, help="Times a random vector of variance 1; 0 is no hook.")
@click.option("--threads", type=int, help="Default: the cores this process may use.")
def main(
    folder: Path,
    prompts_file: Path,
    tokens: int,
    trial_tokens: int,
    sizes: tuple[int, ...],
    dtypes: tuple[str, ...],
    layer: int | None,
    strength: float,
    threads: int | None,
) -> None:
    threads = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    prompts: Prompts = sorted(json.loads(prompts_file.read_text()), key=len)
    sizes = tuple(sorted({min(size, len(prompts)) for size in sizes}))
    speeds: dict[str, dict[int, float]] = {}
    for dtype in dtypes:
        with steered(load(folder, dtype), layer, strength) as model:
            answer(model, prompts[:1], 2)  # warms up
            speeds[dtype] = {size: speed(model, [middle(prompts, size)], trial_tokens) for size in sizes}
            click.echo(f"{dtype}: {speeds[dtype]} tokens/s", err=True)
    dtype, size = max(((d, s) for d in speeds for s in sizes), key=lambda found: speeds[found[0]][found[1]])
    with steered(load(folder, dtype), layer, strength) as model:
        answer(model, prompts[:1], 2)
        batches = [prompts[first : first + size] for first in range(0, len(prompts), size)]
        best = {"dtype": dtype, "batch size": size, "tokens/s": speed(model, batches, tokens)}
    run = {"model": folder.name, "prompts": len(prompts), "tokens": tokens, "threads": threads, "strength": strength}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    click.echo(json.dumps({**run, **versions, "tokens/s": speeds, "best": best}))


def load(folder: Path, dtype: str) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    # Nothing ends an answer early: not an end token, nor what the model's own settings would sample.
    model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=0)
    return model


@contextmanager
def steered(model: Any, layer: int | None, strength: float) -> Iterator[Any]:
    """The model with the hook on one block."""
    blocks = model.get_decoder().layers
    width = model.config.hidden_size
    added = strength * torch.randn(width, generator=torch.Generator().manual_seed(0)).to(model.dtype)

    def add(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        return (output[0] + added, *output[1:]) if isinstance(output, tuple) else output + added

    if not strength:
        yield model
        return
    handle = blocks[len(blocks) // 2 if layer is None else layer].register_forward_hook(add)
    try:
        yield model
    finally:
        handle.remove()


def middle(prompts: Prompts, size: int) -> Prompts:
    """`size` prompts of middling length, from a list in the order of length."""
    first = (len(prompts) - size) // 2
    return prompts[first : first + size]


def speed(model: Any, batches: list[Prompts], tokens: int) -> float:
    start = time.perf_counter()
    for batch in batches:
        answer(model, batch, tokens)
    return round(sum(map(len, batches)) * tokens / (time.perf_counter() - start), 2)


@torch.inference_mode()
def answer(model: Any, prompts: Prompts, tokens: int) -> Prompts:
    """The new tokens of each prompt."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    found = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=tokens)[:, width:]
    if found.shape[1] != tokens:
        raise RuntimeError(f"{found.shape[1]} new tokens instead of {tokens}: an answer ended early")
    answers: Prompts = found.tolist()
    return answers


if __name__ == "__main__":
    main()
