"""What training gains on problems that were not trained on, beside controls that must gain nothing.

The bundled model in Q4_K_M learns harder word problems than it was made for. Trained, once a seed each: a vector a
block, LoRA of rank 1 and 4 on down_proj, all weights. Controls of the vector: rewards dealt out at random, and a random
vector of the same norms. With --ablate also where the vector's gradient comes from: the full weights with importance
weights, and without. Each then answers held-out problems several times at temperature 1; "vote" is the commonest answer
of a problem. Prints a table for each task and a JSON line. All of it is kept in --out: a stopped run goes on, and one
with more of anything too. The folders under held-out are what `edge-steer table cross` reads.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from training_vote import majority

import edge_steer as es
from edge_steer.adapters.choice import choose_lora
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
from edge_steer.training.settings import Adapter, RlooSettings

QUANT = "Q4_K_M"
LONGEST = 320  # tokens of an answer; the longest right ones have 280
BASE = "untrained"
FIGURES = ("accuracy", "tokens", "steps", "density")


@dataclass(frozen=True)
class Kind:
    """rate: the learning rate, chosen by the training reward of a few steps."""

    adapter: Adapter
    rate: float


KINDS = {
    "vector": Kind(Adapter(), 0.15),
    "LoRA-1": Kind(Adapter("lora", rank=1), 0.01),
    "LoRA-4": Kind(Adapter("lora", rank=4), 0.01),
    "full": Kind(Adapter("full"), 1e-3),
}


@dataclass(frozen=True)
class Trained:
    """What answers: a file in place of the model, an adapter beside it, or a vector."""

    model: Path
    lora: Path | None = None
    steer: Steer = None

    @contextmanager
    def running(self, options: EngineOptions) -> Iterator[RunningModel]:
        lora = choose_lora(self.lora) if self.lora else None
        with es.load(self.model, QUANT, options=replace(options, lora=lora)) as model:
            yield model


@click.command(help=__doc__)
@click.option("--out", default="results/training", type=click.Path(path_type=Path), show_default=True)
@click.option("--task", "task_name", default="wordproblems-leaps", show_default=True, help="To train on.")
@click.option("--held-out", default="wordproblems-leaps,wordproblems-sums,wordproblems", show_default=True)
@click.option("--kinds", default=",".join(KINDS), show_default=True, help="What is trained.")
@click.option("--steps", default=20, show_default=True)
@click.option("--seeds", default="0,1,2", show_default=True, help="Of the trainings.")
@click.option("--problems", default=40, show_default=True, help="Held-out problems of each task.")
@click.option("--samples", default=8, show_default=True, help="Answers to each of them.")
@click.option("--controls/--no-controls", default=True, show_default=True)
@click.option("--ablate", is_flag=True, help="Where the gradient's weights come from, too.")
@click.option("--threads", default=1, show_default=True)
def main(
    out: Path,
    task_name: str,
    held_out: str,
    kinds: str,
    steps: int,
    seeds: str,
    problems: int,
    samples: int,
    controls: bool,
    ablate: bool,
    threads: int,
) -> None:
    recipe = ModelRecipe.load(bundled_model())
    options = EngineOptions(threads=threads, parallel=64)
    quantised = quantize.gguf_for(recipe.gguf or recipe.folder, QUANT, threads=threads)
    settings = RlooSettings(steps=steps, max_tokens=LONGEST)
    numbers = [int(seed) for seed in seeds.split(",")]
    rows: dict[str, Trained] = {BASE: Trained(quantised)}

    with progress_bar() as progress:

        def trained(name: str, kind: Kind, changed: RlooSettings, model: Path = quantised) -> Trained:
            progress.note(name)
            path = es.train_adapter(
                model, task_name, out / task_name / name.replace(" ", "-"), kind.adapter,
                replace(changed, learning_rate=kind.rate), gguf=quantised, options=options, progress=progress,
            )  # fmt: skip
            if kind.adapter.kind == "full":
                return Trained(path)
            if kind.adapter.kind == "lora":
                return Trained(quantised, lora=path)
            return Trained(quantised, steer=es.load_vector(path))

        for number in numbers:
            for name in kinds.split(","):
                rows[f"{name}, seed {number}"] = trained(
                    f"{name} {number}", KINDS[name], replace(settings, seed=number)
                )
        first, vector = replace(settings, seed=numbers[0]), KINDS["vector"]
        if controls:
            known = trained(f"vector {numbers[0]}", vector, first).steer
            assert isinstance(known, SteeringVector)
            rows["vector without layer 0"] = Trained(quantised, steer=Steering(known, layers=known.layers[1:]))
            rows["random, same norms"] = Trained(quantised, steer=random_vector(known))
            rows["rewards shuffled"] = trained("shuffled", vector, replace(first, shuffle_rewards=True))
        for number in numbers if ablate else ():
            one = replace(settings, seed=number)
            rows[f"full weights corrected, seed {number}"] = trained(f"corrected {number}", vector, one, recipe.folder)
            plain = replace(one, importance_cap=0.0)
            rows[f"full weights, seed {number}"] = trained(f"uncorrected {number}", vector, plain, recipe.folder)
        result = {}
        for name in held_out.split(","):
            task = es.load_task(name, protocol="bias-only", split="test", limit=problems)
            task = task.with_settings(samples=samples, max_tokens=LONGEST, sampling=Sampling(temperature=1.0))
            result[name] = evaluated(rows, task, out / task_name / "held-out" / name, options, progress)
    for name, of_task in result.items():
        title = f"{name}, trained on {task_name}: {problems} held-out problems, {samples} answers each, {QUANT}"
        show(title, of_task)
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
    trained: Mapping[str, Trained], task: Task, folder: Path, options: EngineOptions, progress: es.Progress
) -> dict[str, list[Row]]:
    """Each in a folder of its own, so that one more does not ask the others again."""
    rows: dict[str, list[Row]] = {}
    for name, one in trained.items():
        own = folder / name.replace(",", "").replace(" ", "-")
        with one.running(options) as model:
            rows |= es.evaluate(model, task, {name: one.steer}, folder=own, nll=False, progress=progress)
    return rows


def over_seeds(rows: Mapping[str, list[Row]]) -> dict[str, list[Row]]:
    """Of each kind that was trained with several seeds, the answers of all of them."""
    by_kind: dict[str, list[list[Row]]] = {}
    for name, of_seed in rows.items():
        kind, seeded, _ = name.rpartition(", seed ")
        if seeded:
            by_kind.setdefault(kind, []).append(of_seed)
    joined = {}
    for kind, seeds in by_kind.items():
        if len(seeds) > 1:
            accuracies = [summarise(of_seed).figures["accuracy"].mean for of_seed in seeds]
            name = f"{kind}, {len(seeds)} seeds ± {100 * statistics.stdev(accuracies):.1f}"
            joined[name] = [row for of_seed in seeds for row in of_seed]
    return joined


def show(title: str, rows: Mapping[str, list[Row]]) -> None:
    table = Table(
        "", "accuracy", "95% interval", "gain", "95% interval", "vote", "box", "ended", "tokens", "steps", "density",
        title=title,
    )  # fmt: skip
    for name, of_method in (dict(rows) | over_seeds(rows)).items():
        summary = summarise(of_method)
        accuracy = summary.figures["accuracy"]
        gain = compare(rows[BASE], of_method).differences["accuracy"]
        table.add_row(
            name,
            mean_text("accuracy", accuracy),
            interval_text("accuracy", accuracy),
            mean_text("accuracy", gain, signed=True) if name != BASE else "",
            interval_text("accuracy", gain, signed=True) if name != BASE else "",
            f"{majority(of_method):.1%}",
            f"{share(of_method, boxed):.1%}",
            f"{share(of_method, ended):.1%}",
            *(mean_text(figure, summary.figures[figure]) for figure in FIGURES[1:]),
        )
    Console(width=None if Console().is_terminal else 150).print(table)


def figures(rows: Mapping[str, list[Row]]) -> dict[str, object]:
    """By method, for the JSON line."""
    result: dict[str, object] = {}
    for name, of_method in rows.items():
        known = summarise(of_method).figures
        gain = compare(rows[BASE], of_method).differences["accuracy"]
        result[name] = {figure: asdict(known[figure]) for figure in FIGURES} | {"gain": asdict(gain)}
    return result


def boxed(row: Row) -> bool:
    return "\\boxed{" in row.text


def ended(row: Row) -> bool:
    return row.finish == "stop"


def share(rows: Sequence[Row], of: Callable[[Row], bool]) -> float:
    return statistics.fmean(map(of, rows))


if __name__ == "__main__":
    main()
