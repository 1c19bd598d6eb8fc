"""What the commands print on stdout: tables.

Takes the values that the library gives. The only door to rich, which is imported when the first table is printed.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edge_steer.core.backend import Completion
    from edge_steer.core.vector import SteeringVector


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


def print_vector(vector: "SteeringVector") -> None:
    origin = f"{vector.method}, pooling {vector.pooling}, {vector.pairs} pairs" if vector.pairs else vector.method
    lines = [str(vector.model), *([origin] if origin != "unknown" else []), *vector.provenance]
    if vector.tuning:
        lines.append(f"to be used at {vector.tuning}")
    print_table(
        ["layer", "norm"], ([str(layer), f"{norm:.4g}"] for layer, norm in vector.norms.items()), "\n".join(lines)
    )


def print_side_by_side(completions: "dict[str, Completion]") -> None:
    print_table(list(completions), [[completion.text for completion in completions.values()]])
