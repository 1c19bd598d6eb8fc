"""The command build: a vector from its recipe, end to end; what will be done is printed first.

Parses, calls, prints. Heavy packages are imported inside the command.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_steer.console import print_table, progress_bar, say
from edge_steer.options import FOLDER, engine_options

if TYPE_CHECKING:
    from edge_steer.build import Build
    from edge_steer.build_plan import Planned

STEPS = ("generate", "rewrite", "check", "extract", "sweep", "export", "parity")


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--model", type=FOLDER, help="The model's folder.  [default: models/<model> beside the export folder]")
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
@click.option("--from", "first", type=click.Choice(STEPS), help="Do this step and those behind it again.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan, or what was built, as JSON.")
@engine_options
def build(folder: Path, model: Path | None, dry_run: bool, first: Any, as_json: bool, **engine: Any) -> None:
    """Build the vector of FOLDER/recipe.toml, such as export/abacus/dense, end to end.

    Solutions, dense rewrites, checked pairs, extraction, sweep, export, parity: a step is skipped where its output is
    there and what it was made from has not changed. A stopped build goes on. Status 1 if parity is out of tolerance.
    """
    from edge_steer import build_plan
    from edge_steer.build import Build
    from edge_steer.build_steps import Means, run
    from edge_steer.llama import default_threads

    engine["threads"] = engine["threads"] or default_threads()
    made = Build.load(folder, model)
    if first:
        made.forget(first)
    planned = build_plan.plan(made, engine["threads"])
    if as_json and dry_run:
        click.echo(json.dumps([asdict(step) for step in planned]))
    if not as_json:
        _print_plan(made, planned, engine["threads"])
    if dry_run:
        return
    with progress_bar() as progress:
        run(made, Means(engine, say, progress))
    layer, strength = made.at
    if as_json:
        click.echo(json.dumps({"layer": layer, "strength": strength, **made.lock}))
    else:
        click.echo(f"built {folder / made.recipe.vector}: layer {layer}, strength {strength:g}, {made.recipe.phase}")
    if made.failures:
        say(f"parity OUT OF TOLERANCE: {', '.join(made.failures)}; see {folder / 'certificate.json'}")
        sys.exit(1)


def _print_plan(made: "Build", planned: "list[Planned]", threads: int) -> None:
    from edge_steer.build_plan import shown, total

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
