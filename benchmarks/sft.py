"""Distillation on the bundled model: a longer teacher, a denser one, and mixtures of them by shares.

The teachers are the generator of word problems itself: both solve problems of five events, which the model was not
made for; one takes many small steps ("long"), one few dense ones ("short"). All weights are trained on each, and on 1
long to 4 short ("mix-long"). Before, how likely the model holds solutions of each teacher: learnability. Then each
answers held-out problems greedily, beside the untrained model and that model under its own dense vector (DenseSteer).
Prints tables and a JSON line; what it writes is kept in --out.
"""

import json
import random
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

import edge_steer as es
from edge_steer.core.backend import EngineOptions
from edge_steer.core.steering import Steer
from edge_steer.evaluation.figures import compare, figure_text, summarise
from edge_steer.models.recipe import bundled_model
from edge_steer.tasks.rows import Row
from edge_steer.tasks.wordproblems import DIFFICULTIES, problems, solution
from edge_steer.terminal.progress import progress_bar
from edge_steer.training.sft import mix, read_demonstrations, read_learnability

TASK = "wordproblems-long"
TEACHERS = {"long": 0.0, "short": 1.0}  # the density of their solutions
ROWS = {"long": {"long": 1.0}, "short": {"short": 1.0}, "mix-long": {"long": 0.2, "short": 0.8}}
FIGURES = ("accuracy", "steps", "tokens", "density")
BASE, DENSE = "untrained", "dense vector"
VECTOR = Path(bundled_model()).parent.parent / "export" / "abacus" / "dense"


@click.command(help=__doc__)
@click.option("--out", default="results/sft", type=click.Path(path_type=Path), show_default=True)
@click.option("--solutions", default=1000, show_default=True, help="Of each teacher.")
@click.option("--epochs", default=2, show_default=True)
@click.option("--lr", default=3e-4, show_default=True)
@click.option("--problems", "count", default=100, show_default=True, help="Held-out problems.")
@click.option("--threads", default=1, show_default=True)
def main(out: Path, solutions: int, epochs: int, lr: float, count: int, threads: int) -> None:
    options = EngineOptions(threads=threads, parallel=50)
    settings = es.SftSettings(epochs=epochs, learning_rate=lr)
    out.mkdir(parents=True, exist_ok=True)
    by_teacher = {name: read_demonstrations(name, write(out, name, solutions)) for name in TEACHERS}
    files = {BASE: Path(bundled_model())}
    with progress_bar() as progress:
        for name, shares in ROWS.items():
            progress.note(name)
            chosen = mix({teacher: by_teacher[teacher] for teacher in shares}, shares, settings.seed)
            files[name] = es.train_sft(
                bundled_model(), chosen, out / name, settings, options=options, progress=progress
            )
        rows: dict[str, list[Row]] = {}
        task = es.load_task(TASK, split="test", limit=count)
        for name, file in files.items():
            steers: dict[str, Steer] = {name: None}
            if name == BASE:
                steers[DENSE] = es.load_vector(VECTOR)
            with es.load(file, options=options) as model:
                rows |= es.evaluate(model, task, steers, folder=out / "held-out" / name, progress=progress)
    show_learnability({name: read_learnability(out / name) for name in ROWS})
    show(f"{TASK}: {count} held-out problems, greedy, F16 and float32", rows)
    summaries = {name: {f: asdict(summarise(of).figures[f]) for f in FIGURES} for name, of in rows.items()}
    print(json.dumps({"settings": asdict(settings), "rows": summaries}))


def write(folder: Path, teacher: str, count: int) -> Path:
    """A teacher's solutions of problems of the training split, a line each."""
    path, generator = folder / f"{teacher}.jsonl", random.Random(teacher)
    lines = []
    for problem in islice(problems("train", difficulty=DIFFICULTIES[TASK]), count):
        told = solution(problem, TEACHERS[teacher], generator)
        lines.append(json.dumps({"question": problem.question, "solution": told, "answer": str(problem.answer)}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def show_learnability(measured: "dict[str, tuple[dict[str, float], dict[str, float]]]") -> None:
    table = Table("trained on", "teacher", "NLL before", "after", title="held-out solutions, nats a token")
    for name, (before, after) in measured.items():
        for teacher in before:
            table.add_row(name, teacher, f"{before[teacher]:.3f}", f"{after[teacher]:.3f}")
    Console(width=None if Console().is_terminal else 120).print(table)


def show(title: str, rows: "dict[str, list[Row]]") -> None:
    table = Table("", *FIGURES, "gain in accuracy", title=title)
    for name, of_method in rows.items():
        known = summarise(of_method).figures
        gain = compare(rows[BASE], of_method).differences["accuracy"]
        gained = figure_text("accuracy", gain, signed=True) if name != BASE else ""
        table.add_row(name, *(figure_text(figure, known[figure]) for figure in FIGURES), gained)
    Console(width=None if Console().is_terminal else 150).print(table)


if __name__ == "__main__":
    main()
