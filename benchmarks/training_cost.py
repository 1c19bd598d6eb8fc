"""What a step of training costs: numbers trained, Adam's memory, peak memory, answers, gradient, and handing it over.

A vector of all layers, which llama.cpp adds by rows; one of layers 1 and up, which its own control vector can do; LoRA
of rank 1 and 4, written as a file and loaded; all weights, written, quantised and loaded. The hand-over is what the
next answer takes longer for changed parameters than for the same again. Medians. The bundled model, or any
other. Also prints the paper's own table, recomputed; and a JSON line.
"""

import json
import statistics
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import edge_steer as es
from edge_steer.core.backend import EngineOptions, Request
from edge_steer.models.exchange import Exchange
from edge_steer.models.quantize import gguf_for
from edge_steer.models.recipe import bundled_model
from edge_steer.storage.files import size_in_words
from edge_steer.tasks.grading import Graders
from edge_steer.training.advantages import advantages
from edge_steer.training.optimiser import Optimiser
from edge_steer.training.policy import GradientOptions, Policy
from edge_steer.training.rollouts import Sampler, training_task
from edge_steer.training.settings import Adapter, RlooSettings
from edge_steer.training.trainables import Trainable, trainable
from edge_steer.training.trainee import Trainee

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
    """adam: measured bytes of its moments. peak: most bytes of the process in the step. handover, answers, gradient,
    update: seconds."""

    parameters: int
    adam: int
    peak: int
    handover: float
    answers: float
    tokens_per_second: float
    gradient: float
    update: float

    @property
    def share(self) -> float:
        """Of the hand-over in the step."""
        return self.handover / (self.handover + self.answers + self.gradient + self.update)


@click.command(help=__doc__)
@click.option("--model", type=click.Path(path_type=Path), help="A folder or a GGUF.  [default: the bundled model]")
@click.option("--quant", default="Q4_K_M", show_default=True)
@click.option("--task", "task_name", default="wordproblems-leaps", show_default=True)
@click.option("--prompts", default=8, show_default=True)
@click.option("--generations", default=8, show_default=True)
@click.option("--max-tokens", default=320, show_default=True)
@click.option("--batch-tokens", default=2048, show_default=True, help="Positions of a gradient computed at once.")
@click.option("--repeats", default=7, show_default=True, help="Of the hand-over.")
@click.option("--threads", default=1, show_default=True)
def main(
    model: Path | None,
    quant: str,
    task_name: str,
    prompts: int,
    generations: int,
    max_tokens: int,
    batch_tokens: int,
    repeats: int,
    threads: int,
) -> None:
    source = model or bundled_model()
    options = EngineOptions(threads=threads, parallel=prompts * generations)
    settings = RlooSettings(prompts=prompts, generations=generations, max_tokens=max_tokens)
    file = gguf_for(source, quant, threads=threads)
    costs = {}
    with es.load(file, options=options) as engine, Exchange(file, options) as exchange, Graders() as graders:
        sampler = Sampler(graders, training_task(task_name), settings)
        kinds = {
            "vector, all layers, by rows": Adapter(),
            "vector, layers 1-, native": Adapter(layers=tuple(range(1, engine.model.block_count))),
            "LoRA-1": Adapter("lora", rank=1),
            "LoRA-4": Adapter("lora", rank=4),
            "all weights": Adapter("full"),
        }
        for name, adapter in kinds.items():
            with es.load(file, runtime="torch", options=options) as reference:
                trainee = Trainee(engine, reference, exchange)
                trained = trainable(adapter, reference)
                handover = handover_seconds(trainee, trained, repeats)
                policy = Policy(reference, trained, GradientOptions(batch_tokens))
                costs[name] = step_cost(trainee, trained, policy, sampler, settings, handover)
    show_published()
    show(f"{source.name} {quant}, {prompts} x {generations} answers, {threads} threads", costs)
    print(json.dumps({name: asdict(cost) | {"share": cost.share} for name, cost in costs.items()}))


def step_cost(
    trainee: Trainee, trained: Trainable, policy: Policy, sampler: Sampler, settings: RlooSettings, handover: float
) -> StepCost:
    """Of one step, of which every answer has a part in the gradient."""
    optimiser = Optimiser(trained.parameters, settings)
    forget_peak()
    batch = sampler.batch(0, *trainee.answering(trained.change()))
    began = time.perf_counter()
    chances = np.random.default_rng(0).random(batch.rewards.shape)
    policy.gradient(batch.rollouts, advantages(chances).ravel(), settings)
    derived = time.perf_counter()
    optimiser.update()
    return StepCost(
        parameters=sum(parameter.numel() for parameter in trained.parameters),
        adam=optimiser.moment_bytes,
        peak=peak_bytes(),
        handover=handover,
        answers=batch.decoding_seconds,
        tokens_per_second=batch.tokens / batch.decoding_seconds,
        gradient=derived - began,
        update=time.perf_counter() - derived,
    )


def handover_seconds(trainee: Trainee, trained: Trainable, repeats: int) -> float:
    """What the next answer takes longer after the parameters have changed a little."""
    prompt = trainee.engine.encode("Tom has 3 cups.")
    differences = []
    for _ in range(repeats):
        with torch.no_grad():
            for parameter in trained.parameters:
                parameter.add_(torch.randn_like(parameter), alpha=1e-4)
        began = time.perf_counter()
        engine, steering = trainee.answering(trained.change())
        engine.generate([Request(prompt, 1, steering)])
        new = time.perf_counter()
        engine.generate([Request(prompt, 1, steering)])
        differences.append((new - began) - (time.perf_counter() - new))
    return max(0.0, statistics.median(differences))


def forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory of this process since `forget_peak`, as Linux counts it."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def show_published() -> None:
    columns = ("", "parameters", "Adam on a GPU", "sending, s a step", f"{STEPS} steps, min")
    table = Table(*columns, title="The paper's tables of cost, recomputed")
    for row in PUBLISHED:
        memory = size_in_words(row.memory)
        table.add_row(row.model, f"{row.parameters:,}", memory, f"{row.seconds:.2f}", f"{row.overall / 60:.2f}")
    Console(width=None if Console().is_terminal else 120).print(table)


def show(title: str, costs: Mapping[str, StepCost]) -> None:
    columns = (
        "", "parameters", "Adam", "peak memory", "hand-over, s", "answers, s", "tokens/s", "gradient, s", "update, s",
        "share of hand-over",
    )  # fmt: skip
    table = Table(*columns, title=title)
    for name, cost in costs.items():
        table.add_row(
            name,
            f"{cost.parameters:,}",
            size_in_words(cost.adam),
            size_in_words(cost.peak),
            f"{cost.handover:.4f}",
            f"{cost.answers:.2f}",
            f"{cost.tokens_per_second:.0f}",
            f"{cost.gradient:.2f}",
            f"{cost.update:.4f}",
            f"{cost.share:.2%}",
        )
    Console(width=None if Console().is_terminal else 150).print(table)


if __name__ == "__main__":
    main()
