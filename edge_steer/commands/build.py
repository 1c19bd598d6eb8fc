"""The commands demo and build: the whole main path on the bundled model, and a vector from its recipe.

Parses, calls, prints. Heavy packages are imported inside the command.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_steer.terminal.options import FOLDER, engine_options
from edge_steer.terminal.progress import progress_bar, say
from edge_steer.terminal.tables import print_side_by_side, print_table

if TYPE_CHECKING:
    from edge_steer.core.backend import EngineOptions
    from edge_steer.recipes.demo import DemoOutcome
    from edge_steer.recipes.plan import BuildPlan


@click.command()
@click.option("--model", type=FOLDER, help="Model folder with recipe.toml.  [default: the bundled model]")
@click.option("--out", type=FOLDER, help="Folder of the vector's recipe.  [default: export/<model>/dense]")
@click.option("--problems", type=click.IntRange(1), default=100, show_default=True, help="Held-out problems to solve.")
@click.option("--threads", type=click.IntRange(1, 512))
def demo(model: Path | None, out: Path | None, problems: int, threads: int | None) -> None:
    """Extract, export, quantise, steer and compare with the reference, on the bundled model."""
    from edge_steer.recipes.demo import run_demo

    with progress_bar() as progress:
        outcome = run_demo(model, out, problems=problems, threads=threads, progress=progress)

    _print_outcome(outcome)
    click.echo(f"wrote {outcome.folder}/vector.gguf, table.json and response.png")


def _print_outcome(outcome: "DemoOutcome") -> None:
    """The demo's problem with both answers, and its table."""
    click.echo(f"\n{outcome.sample.question}\n")
    print_side_by_side({"unsteered": outcome.unsteered, f"strength {outcome.strength:g}": outcome.steered})
    rows: list[list[str]] = []
    before = None
    for entry in sorted(outcome.measurements, key=lambda entry: entry.strength):
        if before not in (None, entry.strength):
            rows.append([])
        before = entry.strength
        s, parity = entry.summary, entry.parity
        row = [f"{entry.strength:g}", entry.backend, f"{s.steps:.1f}", f"{s.tokens:.0f}", f"{s.density:.1f}"]
        distance = [f"{parity.kl['mean']:.2g}", f"{parity.top1:.1%}"] if parity else ["", ""]
        rows.append([*row, f"{s.accuracy:.0%}", *distance])
    print_table(
        ["strength", "backend", "steps", "tokens", "density", "accuracy", "KL", "same top-1"],
        rows,
        f"layer {outcome.layer}, {outcome.problems} held-out problems, greedy; KL from torch float32",
    )


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--model", type=FOLDER, help="The model's folder.  [default: models/<model> beside the export folder]")
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
@click.option("--from", "first", metavar="STEP", help="Do this step of the plan and those behind it again.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan, or what was built, as JSON.")
@engine_options
def build(
    folder: Path, model: Path | None, dry_run: bool, first: str | None, as_json: bool, engine: "EngineOptions"
) -> None:
    """Build the vector of FOLDER/recipe.toml, such as export/abacus/dense, end to end.

    Solutions, dense rewrites, checked pairs, extraction, sweep, export, parity: a step is skipped where its output is
    there and what it was made from has not changed. A stopped build goes on. Status 1 if parity is out of tolerance.
    """
    from edge_steer.recipes.plan import plan_build
    from edge_steer.recipes.run import run_build

    plan = plan_build(folder, model, first=first, threads=engine.threads)
    if not as_json:
        _print_plan(plan)
    elif dry_run:
        click.echo(json.dumps([asdict(step) for step in plan.steps]))
    if dry_run:
        return
    with progress_bar() as progress:
        outcome = run_build(folder, model, first=first, options=engine, progress=progress)
    tuning = outcome.tuning
    if as_json:
        steps = {name: asdict(record) for name, record in outcome.build.records.items()}
        chosen = {"layer": tuning.layers[0], "strength": tuning.strength, "phase": tuning.phase}
        click.echo(json.dumps({**chosen, "revision": outcome.build.revision, "steps": steps}))
    else:
        click.echo(f"built {outcome.vector}: {tuning}")
    if outcome.failed_quants:
        say(f"parity OUT OF TOLERANCE: {', '.join(outcome.failed_quants)}; see {folder / 'certificate.json'}")
        sys.exit(1)


def _print_plan(plan: "BuildPlan") -> None:
    from edge_steer.recipes.plan import duration_text

    rows = []
    for step in plan.steps:
        seconds = "" if step.seconds is None else duration_text(step.seconds)
        rows.append([step.step, step.state, "; ".join(filter(None, (step.why, step.work))), seconds])
    build = plan.build
    pinned = f" at {build.revision[:10]}" if build.revision else ", not pinned" if build.repo else ""
    title = f"{build.folder}: {build.recipe.vector} of {build.model.source}{pinned}"
    print_table(["step", "", "", "about"], rows, title)
    if not plan.to_do:
        click.echo("everything is done")
        return
    time = "an unknown time" if plan.seconds is None else duration_text(plan.seconds)
    click.echo(f"{len(plan.to_do)} steps to do; computing takes {time}, roughly, on {plan.threads} cores")
