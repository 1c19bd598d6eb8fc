"""Print the command line reference, from the commands themselves: python docs/cli.py > docs/cli.md"""

from collections.abc import Iterator

import click

from edge_steer.commands.main import main


def pages(command: click.Command, context: click.Context) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            sub = command.get_command(context, name)
            if sub:
                yield from pages(sub, click.Context(sub, parent=context, info_name=name))
    else:
        yield f"## {context.command_path}\n\n```\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    root = click.Context(main, info_name="edge-steer", **main.context_settings)
    click.echo("# Commands\n\nMade by `python docs/cli.py > docs/cli.md`; a test fails when it is stale.\n")
    for page in pages(main, root):
        click.echo(page)
