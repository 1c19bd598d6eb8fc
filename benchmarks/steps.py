"""What it costs a step of a generation that every sequence is steered its own way.

Three contexts take each step in turns, on the same tokens: steered by llama.cpp's own control vector, asked about every
node and steered nowhere, and steered by a row for each sequence. Of each the median of all steps, and the median of the
ratios within a step, which what else the machine does hardly moves. No time is asserted.
"""

import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np

from edge_steer.core.backend import available_cores
from edge_steer.llama.context import LlamaContext
from edge_steer.llama.model import LlamaModel

MODEL = Path(__file__).parents[1] / "models" / "abacus" / "abacus-F16.gguf"
PROMPT = list(range(5, 25))


@click.command(help=__doc__)
@click.argument("model", default=MODEL, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--sequences", "counts", multiple=True, type=int, default=(8, 32), show_default=True)
@click.option("--steps", default=300, show_default=True)
@click.option("--threads", default=available_cores, type=int, help="Default: the cores this process may use.")
def main(model: Path, counts: tuple[int, ...], steps: int, threads: int) -> None:
    with LlamaModel(model) as loaded:
        for count in counts:
            seconds = measure(loaded, count, steps, threads)
            native = seconds["control vector"]
            for name, own in seconds.items():
                ratio = statistics.median(theirs / ours for theirs, ours in zip(native, own, strict=True))
                row = {"contest": name, "model": model.name, "sequences": count, "threads": threads}
                print(json.dumps({**row, "ms": 1e3 * statistics.median(own), "speed of the control vector's": ratio}))


def measure(model: LlamaModel, count: int, steps: int, threads: int) -> dict[str, list[float]]:
    """Seconds of each step of each contest."""
    layer, offset = model.block_count // 2, np.full(model.hidden_size, 0.001, dtype=np.float32)
    strengths = np.linspace(0.5, 1.5, count, dtype=np.float32)[:, None]
    begin: dict[str, Callable[[LlamaContext], None]] = {
        "control vector": lambda context: context.steer({layer: offset}),
        "asked": lambda context: None,
        "rows": lambda context: context.add({layer: strengths * offset}),
    }
    seconds: dict[str, list[float]] = {name: [] for name in begin}
    with ExitStack() as stack:
        contexts = {}
        for name, steer in begin.items():
            contexts[name] = stack.enter_context(
                context_of(model, count, steps, threads, hooked=name != "control vector")
            )
            for sequence in range(count):
                contexts[name].prefill(PROMPT, 0, sequence)
            steer(contexts[name])
        for position in range(len(PROMPT), len(PROMPT) + steps):
            for name, context in contexts.items():
                start = time.perf_counter()
                context.decode_next([PROMPT[0]] * count, [position] * count)
                seconds[name].append(time.perf_counter() - start)
    return seconds


def context_of(model: LlamaModel, count: int, steps: int, threads: int, *, hooked: bool) -> LlamaContext:
    length = len(PROMPT) + steps
    return LlamaContext(
        model, length=length, sequences=count, threads=threads, kv_type="f16", flash_attention="auto", hooked=hooked
    )


if __name__ == "__main__":
    main()
