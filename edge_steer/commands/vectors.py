"""The commands import and export, and the group vector: vectors from other tools, to other tools, and arithmetic.

Takes click's strings, gives files and what was done. Heavy packages are imported inside the commands.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge_steer.terminal.options import FILE
from edge_steer.terminal.progress import say
from edge_steer.terminal.tables import print_vector

if TYPE_CHECKING:
    from edge_steer.core.vector import SteeringVector


F = TypeVar("F", bound=Callable[..., Any])


@click.command("import")
@click.argument("file", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="Where to write the steering vector (.safetensors).")
@click.option(
    "--convention",
    type=click.Choice(["block", "block+1"]),
    help="Index N is the output of the 0-based block N, or of block N-1.  [default: what FILE tells]",
)
@click.option("--model-name", help="The model's name, where FILE does not say it.")
@click.option("--architecture", help="The model's architecture, such as qwen2, where FILE does not say it.")
@click.option("--layers", help="Layers to keep.  [default: all]")
def import_command(
    file: Path, out: Path, convention: Any, model_name: str | None, architecture: str | None, layers: str | None
) -> None:  # fmt: skip
    """Read a vector FILE of another tool: GGUF, safetensors, .pt or .npz.

    Known are files of repeng, EasySteer, llama-cvector-generator and jukofyork/control-vectors (GGUF), of
    steering-vectors (.pt), and tensors by layer. No code in a .pt is run. Where FILE does not tell how it counts
    layers, --convention has to.
    """
    from edge_steer.core.vector import parse_layers
    from edge_steer.vectors import read

    found = read.read(file, convention=convention, model=model_name, architecture=architecture)
    vector = found.vector.at(parse_layers(layers)) if layers else found.vector
    _save(vector, out)
    print_vector(vector)
    if found.left_out:
        say("index 0 left out: by block+1 it is the embeddings' output, which is no layer")
    click.echo(f"wrote {out}: from {found.origin}, layers counted by {found.convention}")


@click.command()
@click.argument("vector", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="Where to write the GGUF control vector.")
@click.option("--layers", help="Layers to keep.  [default: all but layer 0]")
@click.option("--strength", type=float, default=1.0, show_default=True, help="Bake this strength into the values.")
@click.option(
    "--format",
    "target",
    type=click.Choice(["llama.cpp", "repeng"]),
    default="llama.cpp",
    show_default=True,
    help="For repeng the model is named as Hugging Face does, and --layers may name layer 0.",
)
@click.option("--model-hint", help="The model's name in the file.  [default: the vector's architecture]")
def export(
    vector: Path, out: Path, layers: str | None, strength: float, target: Any, model_hint: str | None
) -> None:  # fmt: skip
    """Write a VECTOR file of any kind as a GGUF control vector, for llama.cpp or repeng."""
    from edge_steer.core.vector import parse_layers, spans
    from edge_steer.vectors import gguf_writer

    wanted = parse_layers(layers) if layers else None
    loaded = gguf_writer.load(vector)
    written = gguf_writer.write(loaded, out, layers=wanted, strength=strength, target=target, hint=model_hint)
    if written.left_out:
        say("layer 0 left out: llama.cpp's control vectors have none")
    if 0 in written.vector.layers:
        say("layer 0 is in the file: repeng reads it, llama.cpp's own tools skip such a file and run unsteered")
    click.echo(f"wrote {out}: layers {spans(written.vector.layers)}, strength {strength:g} baked in")


@click.group("vector")
def vector_group() -> None:
    """Arithmetic on vectors of one model; the file written says what was done."""


def output_options(command: F) -> F:
    """Where a result is written, and which of its layers."""
    for option in (
        click.option("--layers", help="Layers of the result to keep.  [default: all]"),
        click.option("-o", "--out", type=FILE, required=True, help="Where to write the result (.safetensors)."),
    ):
        command = option(command)
    return command


@vector_group.command("add")
@click.argument("files", metavar="VECTOR VECTOR...", type=FILE, nargs=-1, required=True)
@output_options
def vector_add(files: tuple[Path, ...], out: Path, layers: str | None) -> None:
    """Add vectors, layer by layer; a layer that only one has is kept as it is."""
    from edge_steer.vectors.read import load

    if len(files) < 2:
        raise click.UsageError("give at least two vectors to add")
    first, *others = (load(file) for file in files)
    for other in others:
        first = first + other
    _finish(first, out, layers)


@vector_group.command("sub")
@click.argument("vector", type=FILE)
@click.argument("other", type=FILE)
@output_options
def vector_sub(vector: Path, other: Path, out: Path, layers: str | None) -> None:
    """Subtract OTHER from VECTOR, layer by layer."""
    from edge_steer.vectors.read import load

    _finish(load(vector) - load(other), out, layers)


@vector_group.command("scale", context_settings={"ignore_unknown_options": True})
@click.argument("vector", type=FILE)
@click.argument("factor", type=float)
@output_options
def vector_scale(vector: Path, factor: float, out: Path, layers: str | None) -> None:
    """Multiply VECTOR by FACTOR, which may be negative."""
    from edge_steer.vectors.read import load

    _finish(load(vector) * factor, out, layers)


@vector_group.command("project")
@click.argument("vector", type=FILE)
@click.argument("other", type=FILE)
@output_options
def vector_project(vector: Path, other: Path, out: Path, layers: str | None) -> None:
    """Make VECTOR orthogonal to OTHER at every layer of OTHER: what it does less what OTHER does."""
    from edge_steer.vectors.read import load

    _finish(load(vector).project_out(load(other)), out, layers)


def _finish(vector: "SteeringVector", out: Path, layers: str | None) -> None:
    from edge_steer.core.vector import parse_layers, spans

    if layers:
        chosen = parse_layers(layers)
        kept = vector.at(chosen)
        vector = replace(kept, provenance=(*kept.provenance, f"layers {spans(chosen)} of {spans(vector.layers)}"))
    _save(vector, out)
    print_vector(vector)
    click.echo(f"wrote {out}: {vector.provenance[-1]}")


def _save(vector: "SteeringVector", out: Path) -> None:
    if out.suffix in (".gguf", ".pt", ".npz"):
        raise click.UsageError(f"{out} would be a safetensors file; name it so, and export it to make a GGUF")
    from edge_steer.vectors import native

    native.save(vector, out)
