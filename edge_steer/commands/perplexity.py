"""The command perplexity: how likely the unsteered model holds each text of a folder alone.

Takes a MODEL and a folder of eval or sweep, prints a table and draws one plot of a sweep.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_steer.terminal.options import FOLDER, MODEL, engine_options, json_option, quant_option, runtime_option
from edge_steer.terminal.progress import progress_bar
from edge_steer.terminal.tables import print_table

if TYPE_CHECKING:
    from edge_steer.core.backend import EngineOptions
    from edge_steer.models.load import Runtime


@click.command()
@click.argument("model", type=MODEL)
@click.argument("folder", type=FOLDER)
@runtime_option
@quant_option
@engine_options
@json_option
def perplexity(
    model: str, folder: Path, runtime: "Runtime", quant: str | None, engine: "EngineOptions", as_json: bool
) -> None:
    """Log of the mean perplexity of the texts in FOLDER, each alone, under MODEL unsteered.

    FOLDER is of an eval, or of a sweep, of which every dev cell is scored and perplexity.png is drawn. MODEL is the
    one that made the texts. perplexity.json is written there.
    """
    from edge_steer.evaluation.perplexity import draw_perplexities, folder_perplexities, is_sweep
    from edge_steer.models.load import load

    with (
        progress_bar() as progress,
        load(model, quant, runtime=runtime, options=replace(engine, parallel=1), progress=progress) as backend,
    ):
        results = folder_perplexities(backend, folder, progress=progress)
    if as_json:
        click.echo(json.dumps([asdict(result) for result in results]))
    else:
        print_table(
            ["task", "method", "log of the mean perplexity", "texts"],
            ([result.task, result.method, f"{result.log_mean:.3f}", str(result.texts)] for result in results),
        )
    if is_sweep(folder):
        click.echo(f"wrote {draw_perplexities(folder, results)}", err=True)
