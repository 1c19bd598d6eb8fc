"""The commands sweep and plot: layers x strengths on a dev split, the choice on a test split; density against size.

Takes click's strings and the folders of results, prints figures. Rows are on disk before anything is printed.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_steer.core.errors import EdgeSteerError
from edge_steer.terminal.options import FILE, FOLDER, engine_options
from edge_steer.terminal.progress import NOTES, progress_bar, say
from edge_steer.terminal.tables import print_table

if TYPE_CHECKING:
    from edge_steer.core.backend import EngineOptions
    from edge_steer.evaluation.figures import Figure, Summary
    from edge_steer.evaluation.sweep import Cell, Results, Settings, Tested
    from edge_steer.evaluation.units import Runner


COLUMNS = {"accuracy": "accuracy", "steps": "steps", "tokens": "tokens", "density": "density", "nll": "NLL"}
PRINTED_CELLS = 60  # of more than these, only the best of each layer is printed


@click.command()
@click.argument("model", required=False)
@click.option("--vector", "vector_file", type=FILE, help="A control vector (.gguf) or steering vector (.safetensors).")
@click.option("--layers", help="Layers to sweep, as 8-24 or 3,5.  [default: all of the vector's]")
@click.option("--strengths", help="FIRST:LAST:STEP with both ends, such as -20:20:2, or a list, such as 0.5,1,2.")
@click.option("--task", "task_name", help="A task's name, NAME=FILE, or a task.toml of your own.")
@click.option("--split", help="Split of a task that has several; dev and test are drawn from it.")
@click.option(
    "--protocol",
    type=click.Choice(["densesteer", "bias-only"]),
    default="densesteer",
    show_default=True,
    help="Whose prompts, lengths and sampling.",
)
@click.option("-n", "--max-tokens", type=click.IntRange(1), help="[default: the protocol's]")
@click.option("--dev", type=click.IntRange(1), default=100, show_default=True, help="Problems to choose on.")
@click.option("--test", type=click.IntRange(1), default=200, show_default=True, help="Other problems to report on.")
@click.option("--split-seed", type=click.IntRange(0), default=0, show_default=True, help="Draws dev and test.")
@click.option(
    "--choose",
    "rule",
    type=click.Choice(["accuracy", "density"]),
    default="accuracy",
    show_default=True,
    help="The most accurate cell, or the densest of those accurate enough; the mildest of equals.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 1),
    default=0.02,
    show_default=True,
    help="With --choose density: how much accuracy may be lost on dev.",
)
@click.option(
    "--phase",
    type=click.Choice(["all", "generated"]),
    default="generated",
    show_default=True,
    help="Steer every position, or from the last prompt token on, which computes each prompt once.",
)
@click.option("--nll/--no-nll", default=True, show_default=True, help="Score each text under the unsteered model.")
@click.option("--quant", help="Quantise MODEL to this type first (cached).")
@click.option("--out", type=FOLDER, help="Folder of the results.  [default: results/<model>/sweep-<digest>]")
@click.option("--recipe", type=FOLDER, help="Where to write the recipe.  [default: export/<model>/<vector>]")
@click.option("--no-recipe", is_flag=True, help="Write no recipe.")
@click.option("--ray", "address", metavar="ADDRESS", help="Run on the Ray cluster there; 'local' starts one here.")
@click.option("--ray-workers", type=click.IntRange(1), help="Engines at once.  [default: what there is room for]")
@click.option("--ray-gpus", type=click.FloatRange(0), default=0.0, show_default=True, help="GPUs of each worker.")
@click.option("--show", type=FOLDER, help="Only print and plot what there is in this folder, also of a running sweep.")
@click.option("--json", "as_json", is_flag=True, help="Print summary.json.")
@engine_options
def sweep(
    model: str | None,
    vector_file: Path | None,
    strengths: str | None,
    task_name: str | None,
    quant: str | None,
    out: Path | None,
    recipe: Path | None,
    no_recipe: bool,
    address: str | None,
    ray_workers: int | None,
    ray_gpus: float,
    show: Path | None,
    as_json: bool,
    **rest: Any,
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
    from edge_steer.evaluation.sweep import sweep as run_sweep
    from edge_steer.evaluation.sweep_files import write_summary
    from edge_steer.models import quantize
    from edge_steer.models.describe import facts
    from edge_steer.recipes.recipe import write_recipe
    from edge_steer.vectors import gguf_writer

    engine = rest.pop("engine")
    engine = replace(engine, threads=engine.threads or available_cores())
    vector = gguf_writer.load(vector_file)
    settings = _settings(task_name, vector, strengths, engine.parallel, **rest)
    path = quantize.gguf_for(model, quant, progress=NOTES)
    known = facts(path, engine)
    out = out or _default_folder(settings, known)
    say(f"rows: {out}")
    with progress_bar() as progress:
        progress("loading the model", 0, 1)
        where = {"address": address, "workers": ray_workers, "gpus": ray_gpus}
        with _runner(path, known, engine, where) as runner:
            results = run_sweep(settings, out, runner, known, progress)
    summary = write_summary(results, out)
    if as_json:
        click.echo(summary.read_text().rstrip())
    else:
        _print(results)
    _draw(results, out)
    if results.chosen and results.chosen.layer is not None and not no_recipe:
        folder = recipe or Path("export") / _plain(results.header["model"]["name"]) / vector_file.stem
        say(f"recipe: {write_recipe(results, vector, settings.phase, folder)}")


@click.command()
@click.argument("results", nargs=-1, required=True, type=FOLDER)
@click.option("-o", "--out", type=FILE, default=Path("sizes.png"), show_default=True, help="Where to write the PNG.")
def plot(results: tuple[Path, ...], out: Path) -> None:
    """Plot density and steps against model size, from the RESULTS folders of sweeps and evals of several models."""
    from edge_steer.evaluation.sweep_files import plot_sizes

    plot_sizes(results, out)
    click.echo(f"wrote {out}")


def _settings(
    task_name: str,
    vector: Any,
    strengths: str,
    parallel: int,
    *,
    layers: str | None,
    split: str | None,
    protocol: Any,
    max_tokens: int | None,
    dev: int,
    test: int,
    split_seed: int,
    rule: Any,
    margin: float,
    phase: Any,
    nll: bool,
) -> "Settings":
    from edge_steer.core.vector import parse_layers
    from edge_steer.evaluation.sweep import Settings, parse_strengths
    from edge_steer.tasks.load import load_task

    task = load_task(task_name, protocol=protocol, split=split)
    if max_tokens:
        task = replace(task, settings=replace(task.settings, max_tokens=max_tokens))
    chosen_on, reported_on = task.split(dev, test, split_seed)
    return Settings(
        dev=chosen_on,
        test=reported_on,
        vector=vector,
        layers=parse_layers(layers) if layers else vector.layers,
        strengths=parse_strengths(strengths),
        phase=phase,
        rule=rule,
        margin=margin,
        parallel=parallel,
        nll=nll,
    )


def _default_folder(settings: "Settings", known: Mapping[str, Any]) -> Path:
    import hashlib

    parts = [settings.header, known, settings.dev.digest, settings.dev.settings.max_tokens, settings.test.digest]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    return Path("results") / _plain(known["model"]["name"]) / f"sweep-{key}"


def _plain(name: str) -> str:
    """A model's name as a folder's."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "model"


@contextlib.contextmanager
def _runner(
    path: Path, known: Mapping[str, Any], engine: "EngineOptions", where: Mapping[str, Any]
) -> "Iterator[Runner]":
    """The engine in this process, or Ray's workers."""
    if where["address"]:
        from edge_steer.plugins.ray_workers import Setup, ray_runner

        setup = Setup(path.resolve(), known["model"]["digest"], engine)
        with ray_runner(where["address"], setup, NOTES, workers=where["workers"], gpus=where["gpus"]) as runner:
            yield runner
        return
    from edge_steer.evaluation.units import in_process
    from edge_steer.llama.engine import Engine
    from edge_steer.tasks.grading import Graders

    with Graders() as graders, Engine.load(path, engine) as loaded:
        yield in_process(loaded, graders)


def _show(folder: Path) -> None:
    from edge_steer.evaluation.sweep import so_far

    results = so_far(folder)
    _print(results)
    _draw(results, folder)


def _draw(results: "Results", folder: Path) -> None:
    """Plots are an extra: without them there is a line that says why, and all the rest."""
    from edge_steer.evaluation.sweep_files import draw

    try:
        say(f"plots: {', '.join(map(str, draw(results, folder)))}")
    except EdgeSteerError as error:
        say(f"no plots: {error}")


def _print(results: "Results") -> None:
    header = results.header
    title = f"{header['model']['name']} {header['model']['quant']}, {header['task']['name']}, phase {header['phase']}"
    best_only = len(results.cells) > PRINTED_CELLS
    printed = _best_by_layer(results) if best_only else list(results.cells)
    which = "the most accurate cell of each layer" if best_only else "every cell"
    print_table(
        ["layer", "strength", *COLUMNS.values(), "problems"],
        ([_layer(cell), f"{cell.strength:g}", *_means(results.cells[cell])] for cell in printed),
        f"{title}: {which} on {results.problems} dev problems",
    )
    errors = sum(summary.errors for summary in results.cells.values())
    if errors:
        click.echo(f"{errors} rows with an error count as wrong")
    if results.changed:
        click.echo(
            f"{results.changed} rows came out otherwise when an unfinished unit was made again; the later are kept"
        )
    if not results.chosen or not results.test:
        click.echo("dev is not whole yet: nothing is chosen")
        return
    click.echo(f"chosen on dev ({results.rule}): {results.chosen.name}")
    _print_test(results.test, results.chosen.name)


def _print_test(test: "Tested", name: str) -> None:
    rows = [["unsteered", *_figures(test.unsteered)]]
    if test.comparison:
        rows += [[name, *_figures(test.chosen)], []]
        shown = {key: _figure(key, difference, signed=True) for key, difference in test.comparison.differences.items()}
        rows.append(["difference", *(shown.get(key, "") for key in COLUMNS)])
    print_table(["", *COLUMNS.values()], rows,
                f"on {test.unsteered.samples} test problems, none of which is among the dev problems")  # fmt: skip
    if not test.comparison:
        click.echo("no cell did better than the unsteered model on dev, so there is nothing to compare")
    elif test.comparison.p_value is not None:
        found = test.comparison
        click.echo(
            f"solved only unsteered {found.lost}, only steered {found.gained}; McNemar's exact p {found.p_value:.3g}"
        )


def _best_by_layer(results: "Results") -> "list[Cell]":
    best: dict[int | None, Cell] = {}
    for cell, summary in results.cells.items():
        held = best.get(cell.layer)
        if held is None or (-summary.accuracy, cell.mildness) < (-results.cells[held].accuracy, held.mildness):
            best[cell.layer] = cell
    if results.chosen and results.chosen not in best.values():
        return sorted([*best.values(), results.chosen], key=lambda c: (-1 if c.layer is None else c.layer, c.strength))
    return list(best.values())


def _layer(cell: "Cell") -> str:
    return "-" if cell.layer is None else str(cell.layer)


def _means(summary: "Summary") -> list[str]:
    """Means, of which only the accuracy has room for its interval; then how many problems they are over."""
    shown = _figures(summary)
    return [shown[0], *(text.partition(" ")[0] for text in shown[1:]), str(summary.samples)]


def _figures(summary: "Summary") -> list[str]:
    return [_figure(key, summary.figures[key]) if key in summary.figures else "" for key in COLUMNS]


def _figure(name: str, figure: "Figure", signed: bool = False) -> str:
    """A mean with its interval, as "83.0% (74.5 to 89.1)"."""
    scale, digits, unit = (100, 1, "%") if name == "accuracy" else (1, 3 if name == "nll" else 1, "")
    sign = "+" if signed else ""
    shown = f"{figure.mean * scale:{sign}.{digits}f}{unit}"
    if figure.interval is None:
        return shown
    low, high = (f"{value * scale:{sign}.{digits}f}" for value in figure.interval)
    return f"{shown} ({low} to {high})"
