"""What a trained vector gains on problems it was not trained on, beside controls that must gain nothing.

The bundled model in Q4_K_M learns harder word problems than it was made for. Trained: one vector a training seed. Its
controls: rewards dealt out at random, and a random vector of the same norms. With --ablate also where the gradient's
weights come from: the GGUF itself, the full weights with importance weights, the full weights without. Each is then
asked held-out problems several times at temperature 1. Prints a table for each task and a JSON line. All of it is kept
in --out: a stopped run goes on.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

import edge_steer as es
from edge_steer.core.backend import EngineOptions
from edge_steer.core.sampling import Sampling
from edge_steer.core.steering import Steer, Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.evaluation.figures import compare, interval_text, mean_text, summarise
from edge_steer.models import quantize
from edge_steer.models.recipe import ModelRecipe, bundled_model
from edge_steer.storage.provenance import RunningModel
from edge_steer.tasks.rows import Row
from edge_steer.tasks.task import Task
from edge_steer.terminal.progress import progress_bar
from edge_steer.training.settings import RlooSettings

QUANT = "Q4_K_M"
LONGEST = 320  # tokens of an answer; the longest right ones have 280
BASE = "untrained"
FIGURES = ("accuracy", "tokens", "steps", "density")


@click.command(help=__doc__)
@click.option("--out", default="results/training", type=click.Path(path_type=Path), show_default=True)
@click.option("--task", "task_name", default="wordproblems-long", show_default=True, help="To train on.")
@click.option("--held-out", default="wordproblems-long,wordproblems-large,wordproblems", show_default=True)
@click.option("--steps", default=40, show_default=True)
@click.option("--lr", default=0.5, show_default=True)
@click.option("--seeds", default="0,1,2", show_default=True, help="Of the trainings.")
@click.option("--problems", default=60, show_default=True, help="Held-out problems of each task.")
@click.option("--samples", default=8, show_default=True, help="Answers to each of them.")
@click.option("--ablate", is_flag=True, help="Where the gradient's weights come from, too.")
@click.option("--threads", default=1, show_default=True)
def main(
    out: Path,
    task_name: str,
    held_out: str,
    steps: int,
    lr: float,
    seeds: str,
    problems: int,
    samples: int,
    ablate: bool,
    threads: int,
) -> None:
    recipe = ModelRecipe.load(bundled_model())
    options = EngineOptions(threads=threads, parallel=64)
    quantised = quantize.gguf_for(recipe.gguf or recipe.folder, QUANT, threads=threads)
    settings = RlooSettings(steps=steps, learning_rate=lr, max_tokens=LONGEST)
    numbers = [int(seed) for seed in seeds.split(",")]
    steers: dict[str, Steer] = {BASE: None}

    with progress_bar() as progress:

        def trained(name: str, changed: RlooSettings, model: Path = quantised) -> SteeringVector:
            progress.note(name)
            return es.train(
                model, task_name, out / name.replace(" ", "-"), changed, gguf=quantised, options=options,
                progress=progress,
            )  # fmt: skip

        for number in numbers:
            steers[f"trained, seed {number}"] = trained(f"trained {number}", replace(settings, seed=number))
        first = steers[f"trained, seed {numbers[0]}"]
        assert isinstance(first, SteeringVector)
        steers["trained, without layer 0"] = Steering(first, layers=first.layers[1:])
        steers["random, same norms"] = random_vector(first)
        shuffled = replace(settings, seed=numbers[0], shuffle_rewards=True)
        steers["rewards shuffled"] = trained("shuffled", shuffled)
        if ablate:
            full = replace(settings, seed=numbers[0])
            steers["full weights, corrected"] = trained("corrected", full, recipe.folder)
            steers["full weights"] = trained("uncorrected", replace(full, importance_cap=0.0), recipe.folder)
        with es.load(quantised, options=options) as model:
            result = {}
            for name in held_out.split(","):
                task = es.load_task(name, protocol="bias-only", split="test", limit=problems)
                task = task.with_settings(samples=samples, max_tokens=LONGEST, sampling=Sampling(temperature=1.0))
                result[name] = evaluated(model, task, steers, out / "held-out" / name, progress)
    for name, rows in result.items():
        show(f"{name}: {problems} held-out problems, {samples} answers each at temperature 1, {QUANT}", rows)
    print(json.dumps({"settings": asdict(settings), "tasks": {name: figures(rows) for name, rows in result.items()}}))


def random_vector(vector: SteeringVector) -> SteeringVector:
    """Random directions of the vector's norms."""
    random = np.random.default_rng(0)
    directions = {}
    for layer, norm in vector.norms.items():
        direction = random.standard_normal(vector.model.hidden_size)
        directions[layer] = (direction * norm / np.linalg.norm(direction)).astype(np.float32)
    return SteeringVector(directions, vector.model, "random")


def evaluated(
    model: RunningModel, task: Task, steers: Mapping[str, Steer], folder: Path, progress: es.Progress
) -> dict[str, list[Row]]:
    """Each in a folder of its own, so that one more does not ask the others again."""
    rows = {}
    for name, steer in steers.items():
        own = folder / name.replace(",", "").replace(" ", "-")
        rows |= es.evaluate(model, task, {name: steer}, folder=own, nll=False, progress=progress)
    return rows


def show(title: str, rows: Mapping[str, list[Row]]) -> None:
    table = Table(
        "", "accuracy", "95% interval", "gain", "95% interval", "box", "tokens", "steps", "density", title=title
    )
    for name, of_method in rows.items():
        summary = summarise(of_method)
        accuracy = summary.figures["accuracy"]
        gain = compare(rows[BASE], of_method).differences["accuracy"]
        table.add_row(
            name,
            mean_text("accuracy", accuracy),
            interval_text("accuracy", accuracy),
            mean_text("accuracy", gain, signed=True) if name != BASE else "",
            interval_text("accuracy", gain, signed=True) if name != BASE else "",
            f"{boxed(of_method):.1%}",
            *(mean_text(figure, summary.figures[figure]) for figure in FIGURES[1:]),
        )
    Console(width=None if Console().is_terminal else 130).print(table)


def figures(rows: Mapping[str, list[Row]]) -> dict[str, object]:
    """By method, for the JSON line."""
    result: dict[str, object] = {}
    for name, of_method in rows.items():
        known = summarise(of_method).figures
        gain = compare(rows[BASE], of_method).differences["accuracy"]
        result[name] = {figure: asdict(known[figure]) for figure in FIGURES} | {"gain": asdict(gain)}
    return result


def boxed(rows: list[Row]) -> float:
    """The share of answers with a box."""
    return sum("\\boxed{" in row.text for row in rows) / len(rows)


if __name__ == "__main__":
    main()
