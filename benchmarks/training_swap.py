"""What handing a new vector to llama.cpp costs, beside the step of a training that it belongs to.

For all layers, which llama.cpp adds by rows, and for layers 1 and up, which its own control vector can do: the time to
make a Steering of the parameters; what a one-token answer takes longer with a new vector than with the same again; the
answers and the gradient of one step; and the share of the swap in all of it. Medians. The bundled model, or any with a
Hugging Face folder. Prints a table and a JSON line.
"""

import json
import statistics
import time
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import edge_steer as es
from edge_steer.core.backend import EngineOptions, Request
from edge_steer.core.stats import Floats
from edge_steer.core.steering import Steering
from edge_steer.models.recipe import bundled_model
from edge_steer.storage.provenance import RunningModel
from edge_steer.tasks.grading import Graders
from edge_steer.training.adapter import VectorAdapter
from edge_steer.training.advantages import advantages
from edge_steer.training.policy import Policy
from edge_steer.training.rollouts import Sampler, training_task
from edge_steer.training.settings import RlooSettings

REPEATS = 40


@click.command(help=__doc__)
@click.option("--model", type=click.Path(path_type=Path), help="A Hugging Face folder.  [default: the bundled model]")
@click.option("--quant", default="Q4_K_M", show_default=True)
@click.option("--task", "task_name", default="wordproblems-long", show_default=True)
@click.option("--prompts", default=8, show_default=True)
@click.option("--generations", default=8, show_default=True)
@click.option("--max-tokens", default=320, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(
    model: Path | None, quant: str, task_name: str, prompts: int, generations: int, max_tokens: int, threads: int
) -> None:
    source = model or bundled_model()
    options = EngineOptions(threads=threads, parallel=prompts * generations)
    settings = RlooSettings(prompts=prompts, generations=generations, max_tokens=max_tokens)
    result = {}
    with (
        es.load(source, quant, options=options) as engine,
        es.load(source, runtime="torch", options=options) as reference,
        Graders() as graders,
    ):
        sampler = Sampler(engine, graders, training_task(task_name), settings)
        for name, first in (("rows, all layers", 0), ("control vector, layers 1-", 1)):
            adapter = VectorAdapter(reference.model, range(first, reference.model.block_count))
            policy = Policy(reference, adapter)
            making, longer = swap_seconds(engine, adapter)
            batch = sampler.batch(0, nudged(adapter))
            began = time.perf_counter()
            policy.gradient(
                batch.rollouts, advantages(batch.rewards + 0.1 * noise(batch.rewards.shape)).ravel(), settings
            )
            gradient = time.perf_counter() - began
            step = making + longer + batch.decoding_seconds + batch.grading_seconds + gradient
            result[name] = {
                "steering": making,
                "engine": longer,
                "answers": batch.decoding_seconds,
                "tokens a second": batch.tokens / batch.decoding_seconds,
                "gradient": gradient,
                "share": (making + longer) / step,
            }
    table = Table(
        "", *next(iter(result.values())), title=f"{source.name} {quant}, {prompts} x {generations} answers; seconds"
    )
    for name, values in result.items():
        table.add_row(name, *(f"{value:.2%}" if key == "share" else f"{value:.4g}" for key, value in values.items()))
    Console(width=None if Console().is_terminal else 120).print(table)
    print(json.dumps(result))


def swap_seconds(engine: RunningModel, adapter: VectorAdapter) -> tuple[float, float]:
    """To make a steering of changed parameters, and what the engine's next answer takes longer for it."""
    prompt = engine.encode("Tom has 3 cups.")
    making, new, same = [], [], []
    for _ in range(REPEATS):
        began = time.perf_counter()
        steering = nudged(adapter)
        making.append(time.perf_counter() - began)
        new.append(answer_seconds(engine, prompt, steering))
        same.append(answer_seconds(engine, prompt, steering))
    return statistics.median(making), max(0.0, statistics.median(new) - statistics.median(same))


def nudged(adapter: VectorAdapter) -> tuple[Steering, ...]:
    """The adapter's steering after its values have changed a little."""
    with torch.no_grad():
        adapter.values.add_(torch.randn_like(adapter.values), alpha=0.01)
    return adapter.steering()


def answer_seconds(engine: RunningModel, prompt: tuple[int, ...], steering: tuple[Steering, ...]) -> float:
    began = time.perf_counter()
    engine.generate([Request(prompt, 1, steering)])
    return time.perf_counter() - began


def noise(shape: tuple[int, ...]) -> Floats:
    """Rewards of which no two are alike, so that the step has its full cost."""
    return np.random.default_rng(0).random(shape)


if __name__ == "__main__":
    main()
