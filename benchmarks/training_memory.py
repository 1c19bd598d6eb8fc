"""Whether memory is flat while training: the process's memory over hundreds of tiny steps.

The bundled model in Q4_K_M, one problem and two short answers a step, a learning rate at which nothing is learnt: what
grows is what a step leaves behind. Prints the memory at the quarters of the run and its slope over the second half.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import psutil

import edge_steer as es
from edge_steer.adapters.change import Change
from edge_steer.core.backend import EngineOptions
from edge_steer.models.exchange import Exchange
from edge_steer.models.quantize import gguf_for
from edge_steer.models.recipe import bundled_model
from edge_steer.storage.files import size_in_words
from edge_steer.terminal.progress import progress_bar
from edge_steer.training.rloo import train_rloo
from edge_steer.training.settings import KINDS, Adapter, Kind, RlooSettings
from edge_steer.training.trainee import Trainee

PROBLEM = 98  # of the training split; the model solves it in half of its answers
LONGEST = 190


@click.command(help=__doc__)
@click.option("--kind", type=click.Choice(KINDS), default="vector", show_default=True, help="What is trained.")
@click.option("--steps", default=500, show_default=True)
def main(kind: Kind, steps: int) -> None:
    options = EngineOptions(threads=1)
    file = gguf_for(bundled_model(), "Q4_K_M", threads=1)
    leaps = es.load_task("wordproblems-leaps", protocol="bias-only", split="train", limit=PROBLEM + 1)
    task = replace(leaps, samples=leaps.samples[PROBLEM:])
    settings = RlooSettings(steps=steps, prompts=1, generations=4, max_tokens=LONGEST, learning_rate=1e-6, seed=1)
    memory: list[int] = []

    def measure(_step: int, _change: Callable[[], Change]) -> None:
        memory.append(psutil.Process().memory_info().rss)

    with (
        progress_bar() as progress,
        tempfile.TemporaryDirectory() as folder,
        Exchange(file, options) as exchange,
        es.load(file, options=options) as engine,
        es.load(file, runtime="torch", options=options) as reference,
    ):
        train_rloo(
            Trainee(engine, reference, exchange), task, settings, Path(folder), adapter=Adapter(kind),
            on_step=measure, progress=progress,
        )  # fmt: skip
    for share in (0, 0.25, 0.5, 0.75, 1):
        step = max(1, round(share * steps))
        print(f"step {step}: {size_in_words(memory[step - 1])}")
    late = memory[steps // 2 :]
    print(f"slope over the second half: {np.polyfit(range(len(late)), late, 1)[0]:,.0f} bytes a step")


if __name__ == "__main__":
    main()
