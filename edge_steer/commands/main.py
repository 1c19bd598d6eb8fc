"""The command line: parse, call, print. Results go to stdout, progress and errors to stderr.

Heavy packages are imported inside the commands, so that --help answers at once.
"""

import click

from edge_steer.commands.build import build, demo
from edge_steer.commands.eval import compare_command, eval_command
from edge_steer.commands.extract import extract
from edge_steer.commands.lm_eval import lm_eval
from edge_steer.commands.models import convert, info, quantize
from edge_steer.commands.pairs import pairs_group
from edge_steer.commands.parity import parity
from edge_steer.commands.run import run
from edge_steer.commands.sweep import plot, sweep
from edge_steer.commands.vectors import export, import_command, vector_group
from edge_steer.terminal.group import Group


@click.group(
    cls=Group,
    context_settings={
        "auto_envvar_prefix": "EDGE_STEER",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.version_option(package_name="edge-steer")
def main() -> None:
    """Steer small language models on a laptop: extract, export, run, prove.

    Every option can be set in the environment, as EDGE_STEER_<COMMAND>_<OPTION>.
    """


for command in (
    demo,
    convert,
    quantize,
    run,
    info,
    lm_eval,
    build,
    extract,
    import_command,
    export,
    vector_group,
    eval_command,
    compare_command,
    pairs_group,
    parity,
    plot,
    sweep,
):
    main.add_command(command)
