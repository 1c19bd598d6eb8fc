"""Is the layer law kept in an architecture? Small random models through llama.cpp and PyTorch, as a table.

Every family of tests/tiny_models.py is made, converted to an F32 GGUF and steered by a random vector, half as long as
the residual stream, at each of its blocks, in both phases, at strengths 1 and -1. Columns: max|delta logit| of a
position between llama.cpp and torch in float32, its median over positions and its maximum, the worst of all settings;
the least such median with the vector one block off in torch; how far the residual stream is off after any block,
relative to its length, the median over positions, unsteered and steered at each block, the worst; and how far it is at
least from a neighbouring block's. A family with a GELU is made so that GELU is asked where ggml's table of float16 is
not (see WIDE there), and in a second row as it comes.

    python benchmarks/architectures.py          those the tests hold to 1e-4, and more
    python benchmarks/architectures.py qwen2 gemma3
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import tiny_models

from edge_steer.core.errors import EdgeSteerError
from edge_steer.reference.model import Reference
from edge_steer.storage.gguf_header import read_header


@click.command(help=__doc__)
@click.argument("families", nargs=-1)
def main(families: Sequence[str]) -> None:
    torch.set_num_threads(1)
    click.echo("| family | llama.cpp | median | max | one block off | residual | next block |")
    click.echo("|---|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        for number, family in enumerate(families or [*tiny_models.FAMILIES, *tiny_models.MORE]):
            folder = Path(scratch) / str(number)
            click.echo(f"| {family} | {row(family, folder)} |")
            if family in tiny_models.GELU + tiny_models.MORE_GELU:
                click.echo(f"| {family}, GELU by table | {row(family, folder.with_suffix('.table'), wide=False)} |")


def row(family: str, folder: Path, *, wide: bool | None = None) -> str:
    """The cells of a family, or why there are none."""
    try:
        tiny_models.make(family, folder, wide=wide)
        (gguf,) = tiny_models.convert([folder])
    except (RuntimeError, ValueError, TypeError) as error:
        return f"no such model: {str(error).strip().splitlines()[-1][:100]} | | | |"
    name = read_header(gguf).architecture
    try:
        reference = Reference.load(folder)
        logits = tiny_models.logits_apart(reference, gguf)
        streams = list(tiny_models.residuals_apart(reference, gguf))
    except EdgeSteerError as error:
        return f"{name} | {error} | | | |"
    cells = (
        max(found.median for found in logits),
        max(found.max for found in logits),
        min(found.neighbour for found in logits if found.neighbour is not None),
        max(same for _, _, same, _ in streams),
        min(neighbour for _, _, _, neighbour in streams),
    )
    return f"{name} | " + " | ".join(f"{cell:.1e}" for cell in cells)


if __name__ == "__main__":
    main()
