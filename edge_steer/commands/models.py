"""`edge-steer convert`, `quantize` and `info`."""

import json
from collections.abc import Mapping
from pathlib import Path

import click

from edge_steer.terminal.parameters import FILE, MODEL, PATH
from edge_steer.terminal.progress import NOTES
from edge_steer.terminal.tables import print_table, print_vector


@click.command()
@click.argument("model", type=MODEL, required=False)
@click.option("-o", "--out", type=FILE, help="Where to write the GGUF.  [default: the cache]")
@click.option("--type", "outtype", help="F32, F16 or BF16.  [default: the one that loses nothing]")
@click.option("--revision", help="Commit of a hub model.")
@click.option("--base", type=MODEL, help="The model that an adapter was trained on.  [default: the one it names]")
@click.option("--fetch-converter", is_flag=True, help="Only fetch llama.cpp's converter, for later use offline.")
def convert(
    model: str | None,
    out: Path | None,
    outtype: str | None,
    revision: str | None,
    base: str | None,
    fetch_converter: bool,
) -> None:
    """Convert MODEL (a Hugging Face folder, a recipe's folder or a hub id) to GGUF by llama.cpp's own converter.

    MODEL may be a folder of PEFT with a LoRA, which becomes a LoRA of llama.cpp.
    """
    from edge_steer.models import convert

    if fetch_converter:
        click.echo(convert.fetch_converter(NOTES))
        return
    if not model:
        raise click.UsageError("name a MODEL to convert, or give --fetch-converter")
    if (Path(model) / "adapter_config.json").is_file():
        click.echo(convert.convert_adapter(model, base, out, progress=NOTES))
        return
    click.echo(convert.convert(model, out, outtype, revision=revision, progress=NOTES))


@click.command()
@click.argument("model", type=MODEL)
@click.argument("quant")
@click.option("-o", "--out", type=FILE, help="Where to write the GGUF.  [default: the cache]")
@click.option("--imatrix", type=FILE, help="Importance matrix of llama-imatrix (GGUF); the smallest types need one.")
@click.option("--threads", type=click.IntRange(1, 512))
def quantize(model: str, quant: str, out: Path | None, imatrix: Path | None, threads: int | None) -> None:
    """Quantise MODEL to QUANT, such as Q4_K_M, by llama.cpp's quantiser.

    MODEL is an F32, F16 or BF16 GGUF file, a Hugging Face folder or a hub id, which are converted first.
    """
    from edge_steer.models.quantize import quantize

    click.echo(quantize(model, quant, out, imatrix=imatrix, threads=threads, progress=NOTES))


@click.command()
@click.argument("file", type=PATH, required=False)
@click.option("--json", "as_json", is_flag=True)
def info(file: Path | None, as_json: bool) -> None:
    """Describe FILE (a model, a vector or a folder with a vector), or without one this machine and llama.cpp on it."""
    from edge_steer.models import describe, machine
    from edge_steer.vectors import read

    description: Mapping[str, object]
    if file is None:
        description = machine.describe_machine()
    elif model := describe.describe_model(file):
        description = model
    else:
        vector = read.load(file)
        if not as_json:
            print_vector(vector)
            return
        description = describe.describe_vector(vector)
    if as_json:
        click.echo(json.dumps(description))
        return
    print_table(["", ""], ([name, str(value)] for name, value in description.items()))
