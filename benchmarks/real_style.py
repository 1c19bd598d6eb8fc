"""A vector of a style for a real model, to be shipped: the layer and strength chosen on dev, the effect on test.

    python benchmarks/real_style.py benchmarks/settings/NAME.toml --train gsm8k=FILE --test gsm8k=FILE --rewrites FILE

uses the solutions and pairs that real_experiment.py left, and makes in results/real/NAME what is not there yet. A
stopped run goes on. docs/real/NAME.json has the figures. The kinds:

    plain   the model's own right solutions without their LaTeX and Markdown against themselves; marks are counted
    terse   short solutions written by hand against the model's own; tokens are counted

Every layer is swept on a few problems of train, the best layers finer on others, and the chosen cell is confirmed on
others again. The test is beside random vectors, and its first problems are asked of the model's own file too; all else
is asked of its dequantised twin, which has the same weights and is faster.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from plain_text import count_marks, plain
from real_experiment import POOLING
from real_report import DOCS, markdown, result_table
from real_settings import Problems, read_problems
from style_settings import Stage, Style, read_style

from edge_steer.core.backend import EngineOptions
from edge_steer.core.progress import Progress
from edge_steer.core.stats import bootstrap
from edge_steer.core.vector import SteeringVector
from edge_steer.evaluation.figures import compare, summarise
from edge_steer.evaluation.sweep_cells import EQUAL, UNSTEERED_CELL, SweepCell, parse_strengths, sweep_cells
from edge_steer.evaluation.units import Plan, in_process, make_rows
from edge_steer.extraction.extract import extract
from edge_steer.llama.engine import Engine
from edge_steer.models.load import load
from edge_steer.models.quantize import quantize
from edge_steer.pairs.pair import Pair, read_pairs, write_pairs
from edge_steer.pairs.solutions import read_chosen_solutions
from edge_steer.storage.files import write_json
from edge_steer.storage.provenance import versions
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.rows import UNSTEERED, Method, Row
from edge_steer.tasks.task import Task
from edge_steer.terminal.progress import progress_bar
from edge_steer.vectors.read import load as load_vector
from edge_steer.vectors.write import save

FORMAT = "edge-steer real style 1"  # of the rows


@dataclass(frozen=True)
class Run:
    """What is asked, the problems, and where rows lie."""

    style: Style
    problems: Problems
    results: Path
    progress: Progress

    @property
    def folder(self) -> Path:
        return self.results / self.style.name

    @property
    def pairs(self) -> Path:
        return self.folder / "pairs.jsonl"

    def measure(self, row: Row) -> float:
        """What the vector is to lower."""
        return float(count_marks(row.text) if self.style.kind == "plain" else row.tokens)

    def rows(self, model: Engine, name: str, task: Task, methods: Sequence[Method]) -> dict[str, list[Row]]:
        """The rows of each method; NAME.jsonl keeps them."""
        plan = Plan.of(task, methods, model.parallel, nll=False)
        header = {
            "format": FORMAT,
            "model": {**model.provenance.model},
            "backend": {**model.provenance.backend},
            "task": task.described(),
            "methods": {method.name: method.described() for method in methods},
            "versions": {**model.provenance.versions, **versions("math-verify")},
        }
        path = self.folder / f"{name}.jsonl"
        with Graders() as graders:
            rows = make_rows(
                plan, in_process(model, graders), path=path, header=header, progress=self.progress, doing=name
            )
        return {method.name: rows.of(method.name) for method in methods}


def make_vector(run: Run, model: Engine) -> SteeringVector:
    """The pairs and their vector in residual units; what is there is read."""
    path = run.folder / "vector.safetensors"
    if path.is_file():
        return load_vector(path)
    experiment = run.results / run.style.experiment.name
    if run.style.kind == "plain":
        own = read_chosen_solutions(experiment / "own.jsonl")
        pairs = [Pair(s.prompt, plain(s.text), s.text, s.answer, s.id) for s in own if count_marks(s.text)]
    else:
        pairs = [*read_pairs(experiment / "pairs-terse.jsonl")]
    run.folder.mkdir(parents=True, exist_ok=True)
    write_pairs(pairs, run.pairs)
    vector = extract(model, pairs, pooling=POOLING["terse"], normalise="residual", progress=run.progress)
    save(vector, path)
    return vector


def sweep_stage(
    run: Run, model: Engine, vector: SteeringVector, stage: Stage, layers: Sequence[int], task: Task
) -> dict[SweepCell, list[Row]]:
    """Every cell of a stage."""
    cells = sweep_cells(layers, parse_strengths(stage.strengths))
    rows = run.rows(model, stage.name, task, [cell.method(vector, "generated") for cell in cells])
    return {cell: rows[cell.name] for cell in cells}


def ranked(run: Run, cells: Mapping[SweepCell, Sequence[Row]], margin: float) -> list[SweepCell]:
    """The cells that lose at most the margin of accuracy, the lowest measure first."""
    mean = {cell: float(np.mean([run.measure(row) for row in rows])) for cell, rows in cells.items()}
    right = {cell: float(np.mean([row.correct for row in rows])) for cell, rows in cells.items()}
    floor = right[UNSTEERED_CELL] - margin - EQUAL
    return sorted((cell for cell in cells if right[cell] >= floor), key=lambda cell: (mean[cell], cell.mildness))


def choose_cell(run: Run, model: Engine, vector: SteeringVector) -> tuple[SweepCell, dict[str, Any]]:
    """The cell that the dev problems choose, and what each stage measured."""
    style = run.style
    figures: dict[str, Any] = {}
    rest = run.problems.dev
    layers: Sequence[int] = vector.layers
    chosen = UNSTEERED_CELL
    for stage in (style.coarse, style.fine):
        task, rest = (
            replace(rest, samples=some) for some in (rest.samples[: stage.problems], rest.samples[stage.problems :])
        )
        cells = sweep_stage(run, model, vector, stage, layers, task)
        order = ranked(run, cells, stage.margin)
        chosen = order[0]
        best = dict.fromkeys(cell.layer for cell in order if cell.layer is not None)
        layers = sorted([*best][: style.finalists])
        figures[stage.name] = [figures_of(run, cell, rows) for cell, rows in cells.items()]
    task = replace(rest, samples=rest.samples[: style.confirm])
    methods = [cell.method(vector, "generated") for cell in dict.fromkeys((UNSTEERED_CELL, chosen))]
    confirmed = run.rows(model, "confirm", task, methods)
    figures["confirm"] = compared(run, confirmed)
    return chosen, figures


def figures_of(run: Run, cell: SweepCell, rows: Sequence[Row]) -> dict[str, Any]:
    """Of one cell on dev."""
    summary = summarise(rows)
    return {
        "layer": cell.layer,
        "strength": cell.strength,
        "accuracy": summary.accuracy,
        "tokens": summary.tokens,
        "marks": float(np.mean([count_marks(row.text) for row in rows])),
        "cut off": summary.truncated,
    }


def compared(run: Run, rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Each method's figures and marks, and the differences from the unsteered model, paired."""
    before = rows["unsteered"]
    marks = {row.id: count_marks(row.text) for row in before}
    figures = {}
    for name, some in rows.items():
        counts = np.array([count_marks(row.text) for row in some], dtype=float)
        changes = np.array([count_marks(row.text) - marks[row.id] for row in some], dtype=float)
        figures[name] = {
            "figures": asdict(summarise(some)),
            "marks": {"mean": float(counts.mean()), "interval": bootstrap(counts)},
            "answers without marks": int((counts == 0).sum()),
            "against unsteered": None
            if some is before
            else {
                **asdict(compare(before, some)),
                "marks": {"mean": float(changes.mean()), "interval": bootstrap(changes)},
            },
        }
    return figures


def run_test(run: Run, model: Engine, tuned: SteeringVector) -> dict[str, list[Row]]:
    """The vector and the unsteered model on test problems, and random vectors on the first of them."""
    style, task = run.style, run.problems.test
    rows = run.rows(model, "test", task.limit(style.test), methods_of(run, tuned))
    random = [Method.of(f"random-{seed}", tuned.random_like(seed)) for seed in range(style.random)]
    if not random:
        return rows
    return rows | run.rows(model, "test-random", task.limit(style.random_problems), random)


def methods_of(run: Run, tuned: SteeringVector) -> list[Method]:
    return [UNSTEERED, Method.of(run.style.kind, tuned)]


def marks_table(figures: Mapping[str, Any]) -> str:
    """Marks of each method, and the paired difference."""
    lines = []
    for name, one in figures.items():
        change = one["against unsteered"]
        cells = [one["marks"], *([change["marks"]] if change else [])]
        texts = [f"{c['mean']:.1f} ({c['interval'][0]:.1f} to {c['interval'][1]:.1f})" for c in cells]
        lines.append([name, str(one["figures"]["samples"]), *texts, *[""] * (2 - len(texts)),
                      str(one["answers without marks"])])  # fmt: skip
    return markdown(["", "problems", "marks an answer", "minus unsteered", "answers without marks"], lines)


def show(run: Run, rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Print the tables of a test; its figures."""
    figures = compared(run, rows)
    click.echo(f"{result_table(rows)}\n\n{marks_table(figures)}")
    return figures


@click.command(help=__doc__)
@click.argument("settings_file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--train", default="gsm8k", show_default=True)
@click.option("--test", default="gsm8k", show_default=True)
@click.option("--rewrites", type=click.Path(path_type=Path, exists=True))
@click.option("--results", type=click.Path(path_type=Path), default=Path("results/real"), show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--parallel", default=32, show_default=True)
@click.option("--until", type=click.Choice(["dev", "test", "file"]), default="file", show_default=True)
def main(
    settings_file: Path, train: str, test: str, rewrites: Path | None, results: Path, threads: int, parallel: int,
    until: str,
) -> None:  # fmt: skip
    style = read_style(settings_file)
    experiment = style.experiment
    options = EngineOptions(context=1024, threads=threads, parallel=parallel)
    with progress_bar() as progress:
        run = Run(style, read_problems(experiment, train, test, rewrites), results, progress)
        f32 = quantize(experiment.model, "F32", threads=threads, progress=progress)
        twin = quantize(f32, experiment.quant, threads=threads, progress=progress)
        with load(twin, options=options, progress=progress) as model:
            vector = make_vector(run, model)
            chosen, dev = choose_cell(run, model, vector)
            summary: dict[str, Any] = {"model": model.provenance.model, "backend": model.provenance.backend}
            summary |= {"chosen": asdict(chosen), "dev": dev}
            click.echo(f"chosen: {chosen.name}\n\n{marks_table(dev['confirm'])}")
            until = "dev" if chosen.layer is None else until
            tuned = vector.tuned(chosen.layer, chosen.strength, "generated")
            if until != "dev":
                summary["test"] = show(run, run_test(run, model, tuned))
        if until == "file":
            with load(experiment.model, options=options, progress=progress) as model:
                task = run.problems.test.limit(style.file_problems)
                summary["file"] = model.provenance.model
                summary["test of the file"] = show(run, run.rows(model, "test-file", task, methods_of(run, tuned)))
        write_json(DOCS / f"{style.name}.json", summary)


if __name__ == "__main__":
    main()
