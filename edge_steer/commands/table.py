"""The command table: a paper's main table, published figures and measured ones.

Takes click's strings and folders of results, prints rows. It runs no model.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_steer.terminal.options import FOLDER, json_option
from edge_steer.terminal.tables import print_table

if TYPE_CHECKING:
    from edge_steer.evaluation.published import Paper, PublishedTable, TableRow
    from edge_steer.evaluation.seeds import MethodScores


@click.command()
@click.argument("paper", type=click.Choice(["densesteer", "bias-only"]))
@click.argument("folders", nargs=-1, type=FOLDER)
@json_option
def table(paper: "Paper", folders: tuple[Path, ...], as_json: bool) -> None:
    """Print the main table of PAPER, and beside its figures those of the FOLDERS of eval.

    A measured row stands below the published one of its model and method: unsteered, rewriting-prompt, infamily,
    dense (densesteer); unsteered, steered (bias-only). What was not published or not measured stays empty.
    """
    from edge_steer.evaluation.published import read_published
    from edge_steer.evaluation.seeds import load_scores

    published, measured = read_published(paper), load_scores(folders)
    groups = published.beside(measured)
    if as_json:
        click.echo(json.dumps([asdict(row) for rows in groups.values() for row in rows]))
        return
    click.echo(published.paper)
    for model, rows in groups.items():
        _print(published, model, rows)
    click.echo(f"Avg.: {'weighted by problems' if published.weighted else 'all tasks count the same'}")
    click.echo(f"published figures: {published.source}")
    for line in published.partial(measured):
        click.echo(line)


def print_scores(scores: "list[MethodScores]") -> None:
    """Accuracies over seeds, with the average over tasks that all count the same."""
    from edge_steer.evaluation.seeds import tasks_of

    tasks = tasks_of(scores)
    print_table(
        ["", *tasks, *(["average"] if len(tasks) > 1 else [])],
        (
            [
                of_method.method,
                *(str(of_method.score(task) or "") for task in tasks),
                *([str(of_method.average(tasks) or "")] if len(tasks) > 1 else []),
            ]
            for of_method in scores
        ),
        "accuracy in percent: mean and population standard deviation over seeds; the average is unweighted",
    )


def _print(published: "PublishedTable", model: str, rows: "list[TableRow]") -> None:
    print_table(
        ["", *published.labels.values(), "Avg."],
        (
            [_name(row, model), *(str(row.cells.get(task, "")) for task in published.labels), str(row.average or "")]
            for row in rows
        ),
        model,
    )


def _name(row: "TableRow", model: str) -> str:
    if row.published:
        return row.name
    variant = row.model.rpartition("/")[2].removeprefix(model).strip()
    return f"here: {row.name}" + (f" ({variant})" if variant else "")
