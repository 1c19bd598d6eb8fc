"""The commands import and export, and the group vector: vectors from other tools, to other tools, and arithmetic.

Takes click's strings, gives files and what was done. Heavy packages are imported inside the commands.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge_steer.terminal.options import FILE, LAYERS, MODEL, PATH
from edge_steer.terminal.parameters import PHASE
from edge_steer.terminal.progress import NOTES, say
from edge_steer.terminal.tables import print_vector

if TYPE_CHECKING:
    from edge_steer.core.vector import Phase, SteeringVector
    from edge_steer.vectors.gguf_writer import Target
    from edge_steer.vectors.layer_counting import Convention


F = TypeVar("F", bound=Callable[..., Any])


def output_options(command: F) -> F:
    """Where a vector is written, and which of its layers."""
    for option in (
        click.option("--layers", type=LAYERS, metavar="LAYERS", help="Layers to keep.  [default: all]"),
        click.option(
            "-o", "--output", type=FILE, required=True, help="The vector file to write (.safetensors or .gguf)."
        ),
    ):
        command = option(command)
    return command


@click.command("import")
@click.argument("file", type=FILE)
@click.option(
    "--convention",
    type=click.Choice(["block", "block+1"]),
    help="Index N is the output of the 0-based block N, or of block N-1.  [default: what FILE tells]",
)
@click.option("--model-name", help="The model's name, where FILE does not say it.")
@click.option("--architecture", help="The model's architecture, such as qwen2, where FILE does not say it.")
@output_options
def import_command(
    file: Path,
    convention: "Convention | None",
    model_name: str | None,
    architecture: str | None,
    output: Path,
    layers: tuple[int, ...] | None,
) -> None:
    """Read a vector FILE of another tool: GGUF, safetensors, .pt or .npz.

    Known are files of repeng, EasySteer, llama-cvector-generator and jukofyork/control-vectors (GGUF), of
    steering-vectors (.pt), and tensors by layer. No code in a .pt is run. Where FILE does not tell how it counts
    layers, --convention has to.
    """
    from edge_steer.vectors.read import read
    from edge_steer.vectors.write import save

    source = read(file, convention=convention, model=model_name, architecture=architecture)
    vector = source.vector.at(layers) if layers else source.vector
    save(vector, output, progress=NOTES)
    print_vector(vector)
    if source.left_out:
        say("index 0 left out: by block+1 it is the embeddings' output, which is no layer")
    click.echo(f"wrote {output}: from {source.origin}, layers counted by {source.convention}")


@click.command()
@click.argument("vector", type=PATH)
@click.option("-o", "--output", type=FILE, required=True, help="The GGUF to write.")
@click.option(
    "--bake",
    "model",
    type=MODEL,
    metavar="MODEL",
    help="Write MODEL with the vector in it, which any llama.cpp, Ollama or LM Studio runs steered.",
)
@click.option(
    "--layers", type=LAYERS, metavar="LAYERS", help="Layers to keep.  [default: all but layer 0, with --bake as tuned]"
)
@click.option("--strength", type=float, help="Multiply the values by this.  [default: 1, with --bake as tuned]")
@click.option("--phase", type=PHASE, help="The phase it is meant to be used in.  [default: VECTOR's]")
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
    vector: Path,
    output: Path,
    model: str | None,
    layers: tuple[int, ...] | None,
    strength: float | None,
    phase: "Phase | None",
    target: "Target",
    model_hint: str | None,
) -> None:
    """Write a VECTOR file of any kind, or of an export folder, as a GGUF control vector, for llama.cpp or repeng.

    How VECTOR is meant to be used goes along: its tuned layers as far as they are kept, its tuned strength divided by
    --strength, its phase. With --bake a whole model is written instead, which is steered at every position.
    """
    if model is not None:
        if phase or model_hint or target != "llama.cpp":
            raise click.UsageError("--bake steers every position; leave out --phase, --format and --model-hint")
        _bake(vector, model, output, layers, strength)
        return
    from edge_steer.core.vector import spans
    from edge_steer.vectors.gguf_writer import write
    from edge_steer.vectors.read import load

    source = load(vector)
    strength = 1.0 if strength is None else strength
    if phase:
        tuning = source.tuning
        source = (
            source.tuned(tuning.layers, tuning.strength, phase) if tuning else source.tuned(layers, strength, phase)
        )
    written = write(source, output, layers=layers, strength=strength, target=target, hint=model_hint)
    if written.left_out:
        say("layer 0 left out: llama.cpp's control vectors have none")
    if 0 in written.vector.layers:
        say("layer 0 is in the file: repeng reads it, llama.cpp's own tools skip such a file and run unsteered")
    tuning = written.vector.tuning
    if tuning and tuning.phase != "all":
        say(f"the vector is tuned for phase {tuning.phase}; llama.cpp's own tools have none: they steer every token")
    click.echo(f"wrote {output}: layers {spans(written.vector.layers)}, strength {strength:g} baked in")
    if tuning:
        click.echo(f"to be used at {tuning}")


def _bake(vector: Path, model: str, output: Path, layers: tuple[int, ...] | None, strength: float | None) -> None:
    from edge_steer.adapters.bake import bake
    from edge_steer.core.steering import Steering
    from edge_steer.core.vector import spans
    from edge_steer.models.quantize import gguf_for
    from edge_steer.vectors.read import load

    steering = Steering.of(load(vector), strength, layers)
    bake(steering, gguf_for(model, progress=NOTES), output)
    if steering.phase != "all":
        say(f"the vector is tuned for phase {steering.phase}; a baked one steers every position, the prompt included")
    click.echo(f"wrote {output}: layers {spans(steering.layers or ())}, strength {steering.strength:g} baked in")


@click.group("vector")
def vector_group() -> None:
    """Arithmetic on vectors of one model, and how a vector is meant to be used; the file says what was done."""


@vector_group.command("add", short_help="Add vectors, layer by layer.")
@click.argument("files", metavar="VECTOR VECTOR...", type=PATH, nargs=-1, required=True)
@output_options
def vector_add(files: tuple[Path, ...], output: Path, layers: tuple[int, ...] | None) -> None:
    """Add vectors, layer by layer; a layer that only one has is kept as it is."""
    from edge_steer.vectors.read import load

    if len(files) < 2:
        raise click.UsageError("give at least two vectors to add")
    total = load(files[0])
    for file in files[1:]:
        total = total + load(file)
    _finish(total, output, layers)


@vector_group.command("sub", short_help="Subtract one vector from another.")
@click.argument("vector", type=PATH)
@click.argument("other", type=PATH)
@output_options
def vector_sub(vector: Path, other: Path, output: Path, layers: tuple[int, ...] | None) -> None:
    """Subtract OTHER from VECTOR, layer by layer."""
    from edge_steer.vectors.read import load

    _finish(load(vector) - load(other), output, layers)


@vector_group.command(
    "scale", short_help="Multiply a vector by a number.", context_settings={"ignore_unknown_options": True}
)
@click.argument("vector", type=PATH)
@click.argument("factor", type=float)
@output_options
def vector_scale(vector: Path, factor: float, output: Path, layers: tuple[int, ...] | None) -> None:
    """Multiply VECTOR by FACTOR, which may be negative."""
    from edge_steer.vectors.read import load

    _finish(load(vector) * factor, output, layers)


@vector_group.command("project", short_help="Make a vector orthogonal to another.")
@click.argument("vector", type=PATH)
@click.argument("other", type=PATH)
@output_options
def vector_project(vector: Path, other: Path, output: Path, layers: tuple[int, ...] | None) -> None:
    """Make VECTOR orthogonal to OTHER at every layer of OTHER: what it does less what OTHER does."""
    from edge_steer.vectors.read import load

    _finish(load(vector).project_out(load(other)), output, layers)


@vector_group.command("random", short_help="Random directions of a vector's norms, as a control.")
@click.argument("vector", type=PATH)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another draws other directions.")
@click.option("-o", "--output", type=FILE, required=True, help="The vector file to write (.safetensors or .gguf).")
def vector_random(vector: Path, seed: int, output: Path) -> None:
    """Draw a direction of the same norm at every layer of VECTOR, to be used as VECTOR is.

    What VECTOR does and several of these do not is what its direction does.
    """
    from edge_steer.vectors.read import load

    _finish(load(vector).random_like(seed), output, None)


@vector_group.command("tune", short_help="Say at which layers, strength and phase to use a vector.")
@click.argument("vector", type=PATH)
@click.option("--layers", type=LAYERS, metavar="LAYERS", help="Layers to steer.  [default: all of VECTOR's]")
@click.option("--strength", type=float, default=1.0, show_default=True)
@click.option("--phase", type=PHASE, default="all", show_default=True)
@click.option("-o", "--output", type=FILE, required=True, help="The vector file to write (.safetensors or .gguf).")
def vector_tune(
    vector: Path, layers: tuple[int, ...] | None, strength: float, phase: "Phase", output: Path
) -> None:  # fmt: skip
    """Write VECTOR, its directions as they are, with the layers, strength and phase it is meant to be used at."""
    from edge_steer.vectors.read import load
    from edge_steer.vectors.write import save

    tuned = load(vector).tuned(layers, strength, phase)
    save(tuned, output, progress=NOTES)
    click.echo(f"wrote {output}: to be used at {tuned.tuning}")


def _finish(vector: "SteeringVector", output: Path, layers: tuple[int, ...] | None) -> None:
    from edge_steer.core.vector import spans
    from edge_steer.vectors.write import save

    if layers:
        chosen = vector.at(layers)
        step = f"layers {spans(chosen.layers)} of {spans(vector.layers)}"
        vector = replace(chosen, provenance=(*chosen.provenance, step))
    save(vector, output, progress=NOTES)
    print_vector(vector)
    click.echo(f"wrote {output}: {vector.provenance[-1]}")
