"""What a step of training costs: the trained numbers, Adam's memory, answers, gradient, and handing the update over.

Three ways: a vector of all layers, which llama.cpp adds by rows; one of layers 1 and up, which its own control vector
can do; and all weights, of which only memory and the hand-over are measured: files written, converted, quantised and
loaded. The hand-over of a vector is the time to make a Steering of the parameters, and what the engine's next answer
takes longer for a new one than for the same again. Medians. The bundled model, or any with a Hugging Face folder. Also
prints the paper's own table, recomputed. Prints tables and a JSON line.
"""

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import edge_steer as es
from edge_steer.core.backend import EngineOptions, Request
from edge_steer.core.steering import Steering
from edge_steer.models.convert import convert
from edge_steer.models.quantize import quantize
from edge_steer.models.recipe import bundled_model
from edge_steer.reference.model import Reference
from edge_steer.storage.files import size_in_words
from edge_steer.storage.provenance import RunningModel
from edge_steer.tasks.grading import Graders
from edge_steer.training.adapter import VectorAdapter
from edge_steer.training.advantages import advantages
from edge_steer.training.optimiser import Optimiser
from edge_steer.training.policy import Policy
from edge_steer.training.rollouts import Sampler, training_task
from edge_steer.training.settings import RlooSettings

REPEATS = 40
GPUS, STEPS = 8, 314  # of the paper: Adam's two float32 moments lie on so many, and a run has so many steps
MOMENTS = 8  # bytes of a parameter


@dataclass(frozen=True)
class PublishedCost:
    """A row of the paper's tables of cost: parameters trained, and seconds in which they are sent to the sampler."""

    model: str
    parameters: int
    seconds: float

    @property
    def memory(self) -> float:
        """Bytes of Adam's moments on one GPU."""
        return MOMENTS * self.parameters / GPUS

    @property
    def overall(self) -> float:
        """Seconds of sending in a whole run."""
        return STEPS * self.seconds


PUBLISHED = (
    PublishedCost("Qwen2.5-14B, all weights", 14_770_033_664, 9.94),
    PublishedCost("Qwen2.5-14B, vector", 48 * 5120, 0.11),
    PublishedCost("Qwen2.5-7B, all weights", 7_615_616_512, 5.30),
    PublishedCost("Qwen2.5-7B, vector", 28 * 3584, 0.06),
    PublishedCost("Llama-3.1-8B, all weights", 8_030_261_248, 5.32),
    PublishedCost("Llama-3.1-8B, vector", 32 * 4096, 0.07),
)


@dataclass(frozen=True)
class StepCost:
    """memory: bytes of Adam's moments. seconds: to hand the update over, to answer, for the gradient."""

    parameters: int
    memory: int
    update: float
    answers: float | None = None
    gradient: float | None = None
    tokens_per_second: float | None = None

    @property
    def share(self) -> float | None:
        """Of the hand-over in the step."""
        if self.answers is None or self.gradient is None:
            return None
        return self.update / (self.update + self.answers + self.gradient)


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
    with (
        es.load(source, quant, options=options) as engine,
        es.load(source, runtime="torch", options=options) as reference,
        Graders() as graders,
    ):
        sampler = Sampler(engine, graders, training_task(task_name), settings)
        costs = {
            name: vector_cost(sampler, engine, VectorAdapter(reference.model, layers), reference, settings)
            for name, layers in {
                "vector, all layers, by rows": range(reference.model.block_count),
                "vector, layers 1-, native": range(1, reference.model.block_count),
            }.items()
        }
        costs["all weights"] = full_cost(reference, source, quant, options)
    title = f"{source.name} {quant}, {prompts} x {generations} answers, {threads} threads"
    show_published()
    show(title, costs)
    print(json.dumps({name: asdict(cost) | {"share": cost.share} for name, cost in costs.items()}))


def vector_cost(
    sampler: Sampler, engine: RunningModel, adapter: VectorAdapter, reference: Reference, settings: RlooSettings
) -> StepCost:
    """One step, of which every answer has a part in the gradient."""
    making, longer = swap_seconds(engine, adapter)
    batch = sampler.batch(0, nudged(adapter))
    began = time.perf_counter()
    chances = np.random.default_rng(0).random(batch.rewards.shape)
    Policy(reference, adapter).gradient(batch.rollouts, advantages(chances).ravel(), settings)
    gradient = time.perf_counter() - began
    Optimiser(adapter, settings).update()
    speed = batch.tokens / batch.decoding_seconds
    count = adapter.values.numel()
    return StepCost(count, MOMENTS * count, making + longer, batch.decoding_seconds, gradient, speed)


def full_cost(reference: Reference, source: Path, quant: str, options: EngineOptions) -> StepCost:
    """All weights: written, converted, quantised and loaded, as llama.cpp needs them after each step."""
    count = sum(parameter.numel() for parameter in reference.network.parameters())
    with tempfile.TemporaryDirectory() as name:
        began = time.perf_counter()
        folder = Path(
            shutil.copytree(source, Path(name) / "model", ignore=shutil.ignore_patterns("*.gguf", "*.safetensors"))
        )
        reference.network.save_pretrained(folder)
        whole = convert(folder, Path(name) / "model.gguf")
        small = quantize(whole, quant, Path(name) / "small.gguf", threads=options.threads)
        es.load(small, options=options).close()
        return StepCost(count, MOMENTS * count, time.perf_counter() - began)


def show_published() -> None:
    columns = ("", "parameters", "Adam on a GPU", "sending, s a step", f"{STEPS} steps, min")
    table = Table(*columns, title="The paper's tables of cost, recomputed")
    for row in PUBLISHED:
        memory = size_in_words(row.memory)
        table.add_row(row.model, f"{row.parameters:,}", memory, f"{row.seconds:.2f}", f"{row.overall / 60:.2f}")
    Console(width=None if Console().is_terminal else 120).print(table)


def show(title: str, costs: Mapping[str, StepCost]) -> None:
    columns = ("", "parameters", "Adam", "hand-over, s", "answers, s", "tokens/s", "gradient, s", "share of hand-over")
    table = Table(*columns, title=title)
    for name, cost in costs.items():
        measured = (cost.answers, cost.tokens_per_second, cost.gradient)
        table.add_row(
            name,
            f"{cost.parameters:,}",
            size_in_words(cost.memory),
            f"{cost.update:.4f}",
            *("" if value is None else f"{value:.4g}" for value in measured),
            "" if cost.share is None else f"{cost.share:.3%}",
        )
    Console(width=None if Console().is_terminal else 130).print(table)


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


if __name__ == "__main__":
    main()
