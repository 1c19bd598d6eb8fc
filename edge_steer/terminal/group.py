"""The command group: commands listed by what people want to do, errors in one line, and an end by Ctrl-C.

Takes click commands under headings. It knows no command.
"""

import functools
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import click

from edge_steer.core.errors import EdgeSteerError

INTERRUPTED = 130  # exit status of a program that Ctrl-C ended
_RESUMABLE = "edge_steer.resumable"  # key of click's meta, which all contexts of a call share
F = TypeVar("F", bound=Callable[..., Any])


def resumable(command: F) -> F:
    """Mark a command that goes on where it was stopped; Ctrl-C then says so."""

    @functools.wraps(command)
    def marked(*args: Any, **values: Any) -> Any:
        click.get_current_context().meta[_RESUMABLE] = True
        return command(*args, **values)

    return cast("F", marked)


@contextmanager
def interrupts_call(function: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C calls the function while the block runs, and ends nothing."""
    before = signal.signal(signal.SIGINT, lambda *_: function())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Group(click.Group):
    """Prints what a user can mend in one line with exit status 1; anything else is a bug and keeps its traceback."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._headings: dict[str, list[str]] = {}

    def add_commands(self, heading: str, commands: Mapping[click.Command, str]) -> None:
        """Add commands under a heading, each with the line that lists it."""
        self._headings[heading] = []
        for command, line in commands.items():
            command.short_help = line
            self.add_command(command)
            self._headings[heading].append(str(command.name))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in self._headings.values() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each heading with its commands."""
        column = max(map(len, self.commands))
        for heading, names in self._headings.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(column), self.commands[name].short_help or "") for name in names])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EdgeSteerError as error:
            click.echo(f"edge-steer: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo(
                "\nstopped; the same command goes on from there" if ctx.meta.get(_RESUMABLE) else "\nstopped", err=True
            )
            ctx.exit(INTERRUPTED)
