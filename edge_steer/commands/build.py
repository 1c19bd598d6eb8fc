"""The command build: a vector from its recipe, end to end; what will be done is printed first.

Parses, calls, prints. Heavy packages are imported inside the command.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_steer.terminal.options import FOLDER, engine_options
from edge_steer.terminal.progress import progress_bar, say
from edge_steer.terminal.tables import print_side_by_side, print_table

if TYPE_CHECKING:
    from edge_steer.core.backend import EngineOptions
    from edge_steer.recipes.build import Build
    from edge_steer.recipes.demo import Outcome
    from edge_steer.recipes.plan import Planned


@click.command()
@click.option("--model", type=FOLDER, help="Model folder with recipe.toml.  [default: the bundled model]")
@click.option("--out", type=FOLDER, help="Folder of the vector's recipe.  [default: export/<model>/dense]")
@click.option("--problems", type=click.IntRange(1), default=100, show_default=True, help="Held-out problems to solve.")
@click.option("--threads", type=click.IntRange(1, 512))
def demo(model: Path | None, out: Path | None, problems: int, threads: int | None) -> None:
    """Extract, export, quantise, steer and compare with the reference, on the bundled model."""
    from edge_steer.models.recipe import ModelRecipe, bundled_model
    from edge_steer.recipes import demo

    folder = model or bundled_model()
    out = out or folder.parents[1] / "export" / ModelRecipe.load(folder).name / "dense"
    with progress_bar() as progress:
        outcome = demo.demo(folder, out, problems=problems, threads=threads, progress=progress)

    _print_outcome(outcome)
    click.echo(f"wrote {out}/vector.gguf, table.json and response.png")


def _print_outcome(outcome: "Outcome") -> None:
    """The demo's problem with both answers, and its table."""
    click.echo(f"\n{outcome.sample.question}\n")
    print_side_by_side({"unsteered": outcome.unsteered, f"strength {outcome.strength:g}": outcome.steered})
    rows: list[list[str]] = []
    before = None
    for cell in sorted(outcome.cells, key=lambda cell: cell.strength):
        if before not in (None, cell.strength):
            rows.append([])
        before = cell.strength
        s, parity = cell.summary, cell.parity
        row = [f"{cell.strength:g}", cell.backend, f"{s.steps:.1f}", f"{s.tokens:.0f}", f"{s.density:.1f}"]
        distance = [f"{parity.kl['mean']:.2g}", f"{parity.top1:.1%}"] if parity else ["", ""]
        rows.append([*row, f"{s.accuracy:.0%}", *distance])
    print_table(
        ["strength", "backend", "steps", "tokens", "density", "accuracy", "KL", "same top-1"],
        rows,
        f"layer {outcome.layer}, {outcome.cells[0].summary.samples} held-out problems, greedy; KL from torch float32",
    )


STEPS = ("generate", "rewrite", "check", "extract", "sweep", "export", "parity")


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--model", type=FOLDER, help="The model's folder.  [default: models/<model> beside the export folder]")
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
@click.option("--from", "first", type=click.Choice(STEPS), help="Do this step and those behind it again.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan, or what was built, as JSON.")
@engine_options
def build(folder: Path, model: Path | None, dry_run: bool, first: Any, as_json: bool, engine: "EngineOptions") -> None:
    """Build the vector of FOLDER/recipe.toml, such as export/abacus/dense, end to end.

    Solutions, dense rewrites, checked pairs, extraction, sweep, export, parity: a step is skipped where its output is
    there and what it was made from has not changed. A stopped build goes on. Status 1 if parity is out of tolerance.
    """
    from edge_steer.core.backend import available_cores
    from edge_steer.recipes import plan
    from edge_steer.recipes.build import Build
    from edge_steer.recipes.run import run
    from edge_steer.recipes.step import Means

    threads = engine.threads or available_cores()
    engine = replace(engine, threads=threads)
    made = Build.load(folder, model)
    if first:
        made.forget(first)
    planned = plan.plan(made, threads)
    if as_json and dry_run:
        click.echo(json.dumps([asdict(step) for step in planned]))
    if not as_json:
        _print_plan(made, planned, threads)
    if dry_run:
        return
    with progress_bar() as progress:
        run(made, Means(engine, progress))
    layer, strength = made.at
    if as_json:
        click.echo(json.dumps({"layer": layer, "strength": strength, **made.lock}))
    else:
        click.echo(f"built {folder / made.recipe.vector}: layer {layer}, strength {strength:g}, {made.recipe.phase}")
    if made.failures:
        say(f"parity OUT OF TOLERANCE: {', '.join(made.failures)}; see {folder / 'certificate.json'}")
        sys.exit(1)


def _print_plan(made: "Build", planned: "list[Planned]", threads: int) -> None:
    from edge_steer.recipes.plan import shown, total

    rows = []
    for step in planned:
        seconds = "" if step.seconds is None else shown(step.seconds)
        rows.append([step.step, step.state, "; ".join(filter(None, (step.why, step.work))), seconds])
    pinned = f" at {made.revision[:10]}" if made.revision else ", not pinned" if made.repo else ""
    print_table(["step", "", "", "about"], rows, f"{made.folder}: {made.recipe.vector} of {made.model.source}{pinned}")
    todo = [step for step in planned if step.state == "to do"]
    if not todo:
        click.echo("everything is done")
        return
    guessed = total(planned)
    time = "an unknown time" if guessed is None else shown(guessed)
    click.echo(f"{len(todo)} steps to do; computing takes {time}, roughly, on {threads} cores")
