"""The commands sweep, plot and table: layers x strengths on a dev split, the choice on a test split; papers' figures.

Takes click's strings and the folders of results, prints figures. Rows are on disk before anything is printed.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import Progress
from edge_steer.terminal.group import resumable
from edge_steer.terminal.options import (
    FILE,
    FOLDER,
    LAYERS,
    MODEL,
    TASK,
    VECTOR,
    TaskChoice,
    engine_options,
    json_option,
    nll_option,
    quant_option,
    revision_option,
    task_options,
)
from edge_steer.terminal.parameters import PHASE
from edge_steer.terminal.progress import progress_bar, say
from edge_steer.terminal.tables import print_table

if TYPE_CHECKING:
    from edge_steer.core.backend import EngineOptions
    from edge_steer.core.vector import Phase, SteeringVector
    from edge_steer.evaluation.figures import Summary
    from edge_steer.evaluation.sweep_cells import Rule, SweepCell
    from edge_steer.evaluation.sweep_results import HeldOutResult, SweepResults
    from edge_steer.evaluation.units import Runner
    from edge_steer.papers.published import PublishedTable, TableRow
    from edge_steer.storage.provenance import Provenance

PRINTED_CELLS = 60  # of more than these, only the best of each layer is printed


@dataclass(frozen=True)
class Place:
    """Where the rows are made. address: of a Ray cluster, None is this process."""

    address: str | None
    workers: int | None
    gpus: float


@click.command()
@click.argument("model", required=False, type=MODEL)
@click.option(
    "--vector", "vector_file", type=VECTOR, metavar="FILE", help="The vector file; its own tuning is ignored."
)
@click.option("--layers", type=LAYERS, help="Layers to sweep, as 8-24 or 3,5.  [default: all of the vector's]")
@click.option("--strengths", help="FIRST:LAST:STEP with both ends, such as -20:20:2, or a list, such as 0.5,1,2.")
@click.option("--task", "task_name", type=TASK, help="A task's name, NAME=FILE, or a task.toml of your own.")
@task_options
@click.option("--dev-problems", type=click.IntRange(1), default=100, show_default=True, help="Problems to choose on.")
@click.option(
    "--test-problems", type=click.IntRange(1), default=200, show_default=True, help="Other problems to report on."
)
@click.option("--split-seed", type=click.IntRange(0), default=0, show_default=True, help="Draws dev and test.")
@click.option(
    "--choose", "rule", type=click.Choice(["accuracy", "density", "tokens"]), default="accuracy", show_default=True,
    help="Take the most accurate cell, or of those accurate enough the densest, or the one of the fewest tokens.",
)  # fmt: skip
@click.option(
    "--margin", type=click.FloatRange(0, 1), default=0.02, show_default=True,
    help="With --choose density or tokens: how much accuracy may be lost on dev.",
)  # fmt: skip
@click.option(
    "--phase", type=PHASE, default="all", show_default=True,
    help="Steer every position, from the last prompt token on, or of these only the tokens with a blank line. "
    "Except with 'all', each prompt is computed once for all cells; llama.cpp's own tools know only 'all'.",
)  # fmt: skip
@nll_option
@quant_option
@revision_option
@engine_options
@click.option("-o", "--out", type=FOLDER, help="Folder of the results.  [default: results/<model>/sweep-<key>]")
@click.option("--recipe", type=FOLDER, help="Where to write the recipe.  [default: export/<model>/<vector>]")
@click.option("--no-recipe", is_flag=True, help="Write no recipe.")
@click.option("--ray", "address", metavar="ADDRESS", help="Run on the Ray cluster there; 'local' starts one here.")
@click.option("--ray-workers", type=click.IntRange(1), help="Engines at once.  [default: what there is room for]")
@click.option("--ray-gpus", type=click.FloatRange(0), default=0.0, show_default=True, help="GPUs of each worker.")
@click.option("--show", type=FOLDER, help="Only print and plot what there is in this folder, also of a running sweep.")
@json_option
@resumable
def sweep(
    model: str | None,
    vector_file: str | None,
    layers: tuple[int, ...] | None,
    strengths: str | None,
    task_name: str | None,
    task_choice: TaskChoice,
    dev_problems: int,
    test_problems: int,
    split_seed: int,
    rule: "Rule",
    margin: float,
    phase: "Phase",
    nll: bool,
    quant: str | None,
    revision: str | None,
    engine: "EngineOptions",
    out: Path | None,
    recipe: Path | None,
    no_recipe: bool,
    address: str | None,
    ray_workers: int | None,
    ray_gpus: float,
    show: Path | None,
    as_json: bool,
) -> None:
    """Answer a task with MODEL steered by a vector at every layer and strength; choose one, and test it.

    Layer and strength are chosen on the dev problems and reported on the test problems, which are others. Each
    completion is a row on disk before the next; the same command goes on where a stopped one ended.
    """
    if show:
        _show(show)
        return
    if not (model and vector_file and strengths and task_name):
        raise click.UsageError("name a MODEL, --vector, --strengths and --task; or --show FOLDER what there is")
    from edge_steer.core.backend import available_cores
    from edge_steer.evaluation.results import SUMMARY, default_folder
    from edge_steer.evaluation.sweep import SweepSettings, run_sweep
    from edge_steer.models.quantize import gguf_for

    engine = replace(engine, threads=engine.threads or available_cores())
    settings = SweepSettings.of(
        _vector(vector_file),
        task_choice.load(task_name).split(dev_problems, test_problems, split_seed),
        strengths=strengths,
        layers=layers,
        phase=phase,
        rule=rule,
        margin=margin,
        nll=nll,
    )
    with progress_bar() as progress:
        path = gguf_for(model, quant, revision=revision, threads=engine.threads, progress=progress)
        with _runner(path, engine, Place(address, ray_workers, ray_gpus), progress) as (runner, provenance):
            folder = out or default_folder(settings.key_settings(provenance), prefix="sweep-")
            say(f"rows: {folder}")
            results = run_sweep(settings, runner, provenance, folder=folder, progress=progress)
    if as_json:
        click.echo((folder / SUMMARY).read_text("utf-8").rstrip())
    else:
        _print(results)
    _draw(results, folder)
    if not no_recipe:
        _write_recipe(results, recipe, Path(vector_file))


@click.command()
@click.argument("results", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--figure", type=click.Choice(["sizes", "accuracy"]), default="sizes", show_default=True,
    help="Density and steps against model size, or accuracy over steps and density, with standard errors (eval only).",
)  # fmt: skip
@click.option("-o", "--output", type=FILE, help="Where to write the PNG.  [default: <figure>.png]")
def plot(results: tuple[Path, ...], figure: str, output: Path | None) -> None:
    """Plot several models against each other, from the RESULTS folders of their sweeps and evals."""
    from edge_steer.evaluation.sweep_plots import plot_sizes
    from edge_steer.papers.families import draw_accuracy

    draw = draw_accuracy if figure == "accuracy" else plot_sizes
    output = output or Path(f"{figure}.png")
    draw(results, output)
    click.echo(f"wrote {output}")


@click.command()
@click.argument("paper", type=click.Choice(["densesteer", "bias-only", "cross"]))
@click.argument("folders", nargs=-1, metavar="[FOLDERS]...")
@json_option
def table(paper: 'Literal["densesteer", "bias-only", "cross"]', folders: tuple[str, ...], as_json: bool) -> None:
    """Print the main table of PAPER, and beside its figures those of the FOLDERS of eval.

    A measured row stands below the published one of its model and method: unsteered, rewriting-prompt, infamily,
    dense (densesteer); unsteered, steered (bias-only). What was not published or not measured stays empty.

    "cross" is Bias-Only's table of training on one task and testing on another. Its FOLDERS say what they are:
    base=FOLDER, vector:TASK=FOLDER, lora:TASK=FOLDER, full:TASK=FOLDER, with the task that was trained on; several of
    one kind are training seeds.
    """
    if paper == "cross":
        _print_cross(folders, as_json)
        return
    from edge_steer.papers.published import read_published
    from edge_steer.papers.seeds import load_scores

    published, measured = read_published(paper), load_scores(folders)
    groups = published.beside(measured)
    if as_json:
        click.echo(json.dumps([asdict(row) for rows in groups.values() for row in rows]))
        return
    click.echo(published.paper)
    for model, rows in groups.items():
        _print_rows(published, model, rows)
    click.echo(f"Avg.: {'weighted by problems' if published.weighted else 'all tasks count the same'}")
    click.echo(f"published figures: {published.source}")
    for line in published.partial(measured):
        click.echo(line)


def _print_cross(folders: tuple[str, ...], as_json: bool) -> None:
    from edge_steer.papers.cross import COLUMNS, CrossFolder, cross_rows, published_cross

    paper, source, published = published_cross()
    rows = published + (cross_rows([*map(CrossFolder.parse, folders)]) if folders else [])
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows]))
        return
    for model in dict.fromkeys((row.model, row.published) for row in rows):
        print_table(
            ["trained on", "tested on", *COLUMNS],
            ([row.trained, row.tested, *(str(row.cells.get(column, "")) for column in COLUMNS)]
             for row in rows if (row.model, row.published) == model),
            model[0] if model[1] else f"here: {model[0]}",
        )  # fmt: skip
    click.echo("accuracy; in square brackets its difference to full training, in round ones 95% intervals")
    click.echo(f"published figures: {paper}, {source}")


def _vector(source: str) -> "SteeringVector":
    from edge_steer.vectors.read import load
    from edge_steer.vectors.steer import split_strength

    path, strength = split_strength(source)
    if strength is not None:
        raise click.UsageError(f"a sweep tries strengths of its own; leave out the {strength:g} behind {path}")
    return load(path)


@contextlib.contextmanager
def _runner(
    path: Path, engine: "EngineOptions", place: Place, progress: Progress
) -> "Iterator[tuple[Runner, Provenance]]":
    """Who makes the rows, the engine in this process or Ray's workers; and what they depend on."""
    from edge_steer.evaluation.units import in_process
    from edge_steer.models.load import load
    from edge_steer.tasks.grading import Graders

    if place.address:
        from edge_steer.plugins.ray_workers import WorkerModel, ray_runner

        with load(path, options=engine) as backend:
            provenance = backend.provenance
        worker_model = WorkerModel(path.resolve(), provenance.model["digest"], engine)
        with ray_runner(place.address, worker_model, progress, workers=place.workers, gpus=place.gpus) as runner:
            yield runner, provenance
    else:
        progress("loading the model")
        with Graders() as graders, load(path, options=engine, progress=progress) as backend:
            yield in_process(backend, graders), backend.provenance


def _write_recipe(results: "SweepResults", folder: Path | None, vector_file: Path) -> None:
    """The recipe of the chosen cell and its tuned vector, unless the unsteered model was chosen."""
    if results.chosen is None or results.chosen.layer is None:
        return
    from edge_steer.evaluation.results import folder_name
    from edge_steer.recipes.sweep_recipe import write_recipe

    folder = folder or Path("export") / folder_name(results.header["model"]["name"]) / vector_file.stem
    path = write_recipe(results, folder)
    say(f"recipe: {path}, beside the vector tuned to {results.tuned_vector.tuning}")
    if results.header["phase"] != "all":
        say("llama.cpp's own tools know only phase 'all': there this vector steers every token")


def _show(folder: Path) -> None:
    from edge_steer.evaluation.sweep_results import read_partial

    results = read_partial(folder)
    _print(results)
    _draw(results, folder)


def _draw(results: "SweepResults", folder: Path) -> None:
    """Plots are an extra: without them there is a line that says why, and all the rest."""
    from edge_steer.evaluation.sweep_plots import draw_sweep

    try:
        say(f"plots: {', '.join(map(str, draw_sweep(results, folder)))}")
    except EdgeSteerError as error:
        say(f"no plots: {error}")


def _print(results: "SweepResults") -> None:
    from edge_steer.evaluation.figures import FIGURES
    from edge_steer.evaluation.results import model_of

    header = results.header
    title = f"{model_of(header)}, {header['task']['name']}, phase {header['phase']}"
    best_only = len(results.cells) > PRINTED_CELLS
    printed = _best_cells(results) if best_only else list(results.cells)
    which = "the most accurate cell of each layer" if best_only else "every cell"
    print_table(
        ["layer", "strength", *(kind.label for kind in FIGURES.values()), "problems"],
        ([_layer(cell), f"{cell.strength:g}", *_means(results.cells[cell])] for cell in printed),
        f"{title}: {which} on {results.problems} dev problems",
    )
    errors = sum(summary.errors for summary in results.cells.values())
    if errors:
        click.echo(f"{errors} rows with an error count as wrong")
    if results.changed:
        click.echo(f"{results.changed} rows came out otherwise when an unfinished unit was made again; the later count")
    if not results.chosen or not results.test:
        click.echo("dev is not whole yet: nothing is chosen")
        return
    click.echo(f"chosen on dev in phase {header['phase']} ({results.rule}): {results.chosen.name}")
    _print_test(results.test, results.chosen.name)


def _print_test(test: "HeldOutResult", name: str) -> None:
    from edge_steer.evaluation.figures import FIGURES, figure_text

    rows = [["unsteered", *_figure_texts(test.unsteered)]]
    comparison = test.comparison
    if comparison:
        differences = {
            key: figure_text(key, difference, signed=True) for key, difference in comparison.differences.items()
        }
        rows += [[name, *_figure_texts(test.chosen)], []]
        rows.append(["difference", *(differences.get(key, "") for key in FIGURES)])
    print_table(["", *(kind.label for kind in FIGURES.values())], rows,
                f"on {test.unsteered.samples} test problems, none of which is among the dev problems")  # fmt: skip
    if not comparison:
        click.echo("no cell did better than the unsteered model on dev, so there is nothing to compare")
    elif comparison.p_value is not None:
        click.echo(
            f"solved only unsteered {comparison.lost}, only steered {comparison.gained}; "
            f"McNemar's exact p {comparison.p_value:.3g}"
        )


def _best_cells(results: "SweepResults") -> "list[SweepCell]":
    from edge_steer.evaluation.sweep_cells import best_by_layer

    best = best_by_layer(results.cells)
    if results.chosen and results.chosen not in best:
        best.append(results.chosen)
    return sorted(best, key=lambda cell: (-1 if cell.layer is None else cell.layer, cell.strength))


def _layer(cell: "SweepCell") -> str:
    return "-" if cell.layer is None else str(cell.layer)


def _means(summary: "Summary") -> list[str]:
    """Means, of which only the accuracy has room for its interval; then how many problems they are over."""
    texts = _figure_texts(summary)
    return [texts[0], *(text.partition(" ")[0] for text in texts[1:]), str(summary.samples)]


def _figure_texts(summary: "Summary") -> list[str]:
    from edge_steer.evaluation.figures import FIGURES, figure_text

    return [figure_text(name, summary.figures[name]) if name in summary.figures else "" for name in FIGURES]


def _print_rows(published: "PublishedTable", model: str, rows: "list[TableRow]") -> None:
    print_table(
        ["", *published.labels.values(), "Avg."],
        (
            [
                _label(row, model),
                *(str(row.cells.get(task, "")) for task in published.labels),
                str(row.average or ""),
            ]
            for row in rows
        ),
        model,
    )


def _label(row: "TableRow", model: str) -> str:
    if row.published:
        return row.name
    variant = row.model.rpartition("/")[2].removeprefix(model).strip()
    return f"here: {row.name}" + (f" ({variant})" if variant else "")
