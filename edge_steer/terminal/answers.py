"""Answers as they grow, one alone or two side by side, and the lines a chat says about itself.

Takes pieces of text, prints them on stdout; what is no answer goes to stderr. A pipe and NO_COLOR get no colours.
"""

import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from edge_steer.terminal.tables import print_table

if TYPE_CHECKING:
    from rich.table import Table

    from edge_steer.core.backend import OnText

REPLY, WRONG = "cyan", "red"
FRAMES_PER_SECOND = 12


def harmless(text: str) -> str:
    """A model's text without control characters, which could change the terminal; lines and tabs stay."""
    return "".join(character for character in text if character in "\n\t" or unicodedata.category(character) != "Cc")


def print_piece(text: str) -> None:
    """A piece of an answer, at once."""
    click.echo(harmless(text), nl=False)
    sys.stdout.flush()


def print_reply(text: str, style: str = REPLY) -> None:
    """What the program says of itself, on stderr; lines are not broken."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(text, style))


@contextmanager
def side_by_side(headings: Sequence[str]) -> "Iterator[OnText]":
    """Columns that grow in a terminal; elsewhere a table when the block ends. It gives what takes column and text."""
    texts = [""] * len(headings)
    if not sys.stdout.isatty():
        yield lambda column, text: texts.__setitem__(column, texts[column] + harmless(text))
        print_table(headings, [texts])
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with Live(_columns(headings, texts), console=console, refresh_per_second=FRAMES_PER_SECOND) as live:

        def grow(column: int, text: str) -> None:
            texts[column] += harmless(text)
            live.update(_columns(headings, texts))

        yield grow


def _columns(headings: Sequence[str], texts: Sequence[str]) -> "Table":
    """Columns of one width, whatever is in them."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, expand=True, padding=(0, 1))
    for heading in headings:
        table.add_column(heading, ratio=1)
    table.add_row(*map(Text, texts))
    return table
