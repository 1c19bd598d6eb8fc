"""What the commands print: tables on stdout, a progress bar with an estimate on stderr.

Takes the values that the library gives. The only door to rich, which is imported when the first table is printed.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edge_steer.core.backend import Completion
    from edge_steer.core.vector import SteeringVector
    from edge_steer.recipes.demo import Outcome


PLAIN_WIDTH = 110  # of tables when stdout is no terminal


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """A table on stdout, its title in a line above; an empty row draws a line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, show_header=any(columns))
    for row in rows:
        if row:
            table.add_row(*map(Text, row))
        else:
            table.add_section()
    if title:
        click.echo(title)
    Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(table)


def print_outcome(outcome: "Outcome") -> None:
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


def print_vector(vector: "SteeringVector") -> None:
    made = f"{vector.method}, pooling {vector.pooling}, {vector.pairs} pairs" if vector.pairs else vector.method
    title = "\n".join((str(vector.model), *((made,) if made != "unknown" else ()), *vector.provenance))
    print_table(["layer", "norm"], ([str(layer), f"{norm:.4g}"] for layer, norm in vector.norms.items()), title)


def print_side_by_side(completions: "dict[str, Completion]") -> None:
    print_table(list(completions), [[completion.text for completion in completions.values()]])
