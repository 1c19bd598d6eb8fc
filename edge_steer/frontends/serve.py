"""`edge-steer serve`: a steered model for other programs."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_steer.core.errors import need
from edge_steer.terminal.options import (
    FILE,
    MODEL,
    SamplingChanges,
    named_vectors_option,
    quant_option,
    sampling_options,
    server_engine_options,
)
from edge_steer.terminal.progress import NOTES

if TYPE_CHECKING:
    from edge_steer.core.backend import EngineOptions


@click.command()
@click.argument("model", type=MODEL)
@quant_option
@named_vectors_option(
    "A vector that requests can name; it steers those that say nothing, at STRENGTH, 0 for not at all."
)
@click.option(
    "--preset",
    "presets",
    multiple=True,
    metavar="NAME=WORDS",
    help="A steering that clients see as a model, such as terse='4 dense - 0.5 formal'.",
)
@click.option("--alias", "aliases", multiple=True, help="What clients call the model; several are possible.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 is any free one.")
@click.option("--api-key", "keys", multiple=True, help="A key that requests must have.")
@click.option("--api-key-file", type=FILE, help="A file of keys, one a line.")
@click.option("--no-auth", is_flag=True, help="Let others than this machine use it without a key.")
@click.option("--allow-host", "hosts", multiple=True, help="A name that this server is reached by.")
@click.option("--allow-origin", "origins", multiple=True, help="A page that may use it, as https://chat.example.org.")
@click.option("--admin", is_flag=True, help="Let whoever has a key load and unload vectors while it runs.")
@click.option("--page/--no-page", default=True, help="Serve the page at /.  [default: page]")
@click.option("--slots/--no-slots", default=True, help="Answer /slots.  [default: slots]")
@click.option("--metrics/--no-metrics", default=True, help="Answer /metrics.  [default: metrics]")
@click.option("--queue", type=click.IntRange(0), default=256, show_default=True, help="Most requests that wait.")
@click.option(
    "--stop-seconds",
    type=click.IntRange(0),
    default=30,
    show_default=True,
    help="How long running answers may go on when it is told to end.",
)
@click.option(
    "-n",
    "--max-tokens",
    type=click.IntRange(1),
    help="Of requests that say nothing.",
)
@sampling_options
@server_engine_options
def serve(
    model: str,
    quant: str | None,
    vectors: tuple[str, ...],
    presets: tuple[str, ...],
    aliases: tuple[str, ...],
    host: str,
    port: int,
    keys: tuple[str, ...],
    api_key_file: Path | None,
    no_auth: bool,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    admin: bool,
    page: bool,
    slots: bool,
    metrics: bool,
    queue: int,
    stop_seconds: int,
    max_tokens: int | None,
    sampling: SamplingChanges,
    engine: "EngineOptions",
) -> None:
    """Serve MODEL to OpenAI, llama-server and Ollama clients; every request chooses its own steering."""
    need("serve")
    from dataclasses import asdict

    from edge_steer.serving import server
    from edge_steer.serving.security import Access
    from edge_steer.vectors.named import NamedFile

    if api_key_file:
        from edge_steer.storage.files import read_lines

        keys = (*keys, *read_lines(api_key_file, "keys, one a line"))
    typed = {**asdict(sampling), "max_tokens": max_tokens}
    options = server.ServerOptions(
        host=host,
        port=port,
        access=Access(keys, hosts, origins),
        vectors=tuple(map(NamedFile.parse, vectors)),
        presets=tuple(map(_preset, presets)),
        aliases=aliases,
        defaults={name: value for name, value in typed.items() if value is not None},
        queue=queue,
        no_auth=no_auth,
        admin=admin,
        page=page,
        slots=slots,
        metrics=metrics,
        stop_seconds=stop_seconds,
    )
    server.serve(model, quant, options=options, engine=engine, progress=NOTES)


def _preset(text: str) -> tuple[str, str]:
    name, equals, words = text.partition("=")
    if not equals:
        raise click.UsageError(f"a preset is NAME=WORDS, such as terse='4 dense'; {text!r} is not")
    return name, words
