"""A click group that prints an EdgeSteerError in one line."""

from typing import Any

import click

from edge_steer.core.errors import EdgeSteerError


class Group(click.Group):
    """Prints what a user can mend in one line with exit status 1; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EdgeSteerError as error:
            click.echo(f"edge-steer: {error}", err=True)
            ctx.exit(1)
