"""`edge-steer extract`: pairs and a model to a steering vector, with figures of each layer.

Takes click's values, calls the library, prints the figures.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_steer.core.errors import EdgeSteerError, need
from edge_steer.terminal.options import FILE, FOLDER, LAYERS, MODEL, revision_option, template_option
from edge_steer.terminal.progress import progress_bar, say
from edge_steer.terminal.tables import print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_steer.core.vector import SteeringVector
    from edge_steer.extraction.quality import LayerQuality
    from edge_steer.models.load import Runtime


@click.command()
@click.argument("model", type=MODEL)
@click.argument("pairs_file", metavar="PAIRS", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Where to write the steering vector (.safetensors).")
@click.option("--layers", type=LAYERS, metavar="LAYERS", help="Layers to extract.  [default: all blocks]")
@click.option("--method", default="mean_difference", show_default=True,
              help="mean_difference, pca, pca_centred, logistic or class_means.")  # fmt: skip
@click.option("--pooling", default="last", show_default=True,
              help="Tokens of an answer that are averaged: last, last:K, mean or token:I.")  # fmt: skip
@click.option("--normalise", is_flag=True, help="Scale each direction to norm 1.")
@click.option("--residual-units", is_flag=True,
              help="Scale each direction to the states' norm: strengths then compare across layers.")  # fmt: skip
@click.option("--report", type=FOLDER, help="A folder for the figures of each layer: layers.json and layers.png.")
@click.option("--backend", "runtime", type=click.Choice(["llama", "torch"]),
              help="Run MODEL in llama.cpp or in PyTorch.  [default: PyTorch, and a GGUF in llama.cpp]")  # fmt: skip
@revision_option
@template_option
@click.option("--threads", type=click.IntRange(1, 512), help="[default: the cores this process may use]")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model.")
def extract(
    model: str,
    pairs_file: Path,
    output: Path,
    layers: tuple[int, ...] | None,
    method: str,
    pooling: str,
    normalise: bool,
    residual_units: bool,
    report: Path | None,
    runtime: "Runtime | None",
    revision: str | None,
    template: str | None,
    threads: int | None,
    trust_remote_code: bool,
) -> None:
    """Extract a steering vector from MODEL on contrastive PAIRS (.jsonl).

    MODEL is a folder or hub id, read in PyTorch, or a GGUF file of any quant (or owner/name:QUANT), read in llama.cpp;
    in PyTorch its weights are dequantised.
    """
    from edge_steer.core.backend import EngineOptions
    from edge_steer.extraction.extract import record, reduce
    from edge_steer.extraction.methods import method_named
    from edge_steer.extraction.pooling import pooling_named
    from edge_steer.extraction.quality import measure_layers
    from edge_steer.models.load import load_recorder
    from edge_steer.pairs.pair import read_pairs
    from edge_steer.vectors import native

    if Path(model).is_file() and (revision or trust_remote_code):
        raise click.UsageError("--revision and --trust-remote-code are of Hugging Face models; MODEL is a GGUF file")
    if normalise and residual_units:
        raise click.UsageError("--normalise and --residual-units are two lengths; give one of them")
    if report:
        need("plots")
        _make_folder(report)
    method_named(method)
    pooling_named(pooling)
    pairs = read_pairs(pairs_file)
    with (
        progress_bar() as progress,
        load_recorder(
            model, runtime, revision=revision, trust_remote_code=trust_remote_code,
            options=EngineOptions(threads=threads, template=template), progress=progress,
        ) as recorder,
    ):  # fmt: skip
        states = record(recorder, pairs, layers=layers, pooling=pooling, progress=progress)
        progress("measuring the layers")
        vector = reduce(states, method, normalise="residual" if residual_units else normalise)
        qualities = measure_layers(states, method)
    native.save(vector, output)
    suggested = _print_layers(vector, qualities)
    if report:
        _write_report(report, vector, qualities, suggested)
        click.echo(f"wrote {report}/layers.json and layers.png")
    click.echo(f"wrote {output}; next: edge-steer export {output} -o vector.gguf")


def _print_layers(vector: "SteeringVector", layers: "Sequence[LayerQuality]") -> tuple[int, ...]:
    """The figures of each layer, and the layers suggested."""
    from edge_steer.core.vector import spans
    from edge_steer.extraction.quality import MIN_PAIRS, suggest_layers

    sizes = list(layers[0].stability)
    columns = ["layer", "norm", "of states"]
    if sizes:
        columns += ["AUC", *(f"cosine {size}" for size in sizes), f"{vector.pairs} / all"]
    rows = []
    for quality in layers:
        row = [str(quality.layer), f"{vector.norms[quality.layer]:.4g}", f"{quality.relative:.3f}"]
        if quality.separation is not None and quality.expected is not None:
            row += [
                f"{quality.separation:.3f}",
                *(f"{quality.stability[size]:.3f}" for size in sizes),
                f"{quality.expected:.3f}",
            ]
        rows.append(row)
    title = f"{vector.model}\n{vector.method}, pooling {vector.pooling}, {vector.pairs} pairs"
    print_table(columns, rows, title)
    if not sizes:
        say(f"{vector.pairs} pairs are too few to say how good the layers are; at least {MIN_PAIRS} are needed")
        return ()
    click.echo(
        "of states: norm over the states' mean norm. AUC: held-out pairs along the vector. cosine N: of vectors from\n"
        f"two sets of N pairs. {vector.pairs} / all: the cosine these let expect with the vector of unlimited pairs."
    )
    suggested = suggest_layers(layers, vector.model.block_count)
    if suggested:
        click.echo(f"suggested to try first: layers {spans(suggested)}; only a sweep shows which layer steers")
    return suggested


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeSteerError(f"cannot make the folder {folder}: {error.strerror}; name another with --report") from None


def _write_report(
    folder: Path, vector: "SteeringVector", layers: "Sequence[LayerQuality]", suggested: tuple[int, ...]
) -> None:
    from dataclasses import asdict

    from edge_steer.evaluation.plots import plot_layers
    from edge_steer.storage.files import write_json

    figures = {
        "vector": vector.digest,
        "model": asdict(vector.model),
        "method": vector.method,
        "pooling": vector.pooling,
        "pairs": vector.pairs,
        "layers": [asdict(layer) for layer in layers],
        "suggested": suggested,
    }
    write_json(folder / "layers.json", figures)
    plot_layers(
        {quality.layer: quality.relative for quality in layers},
        {quality.layer: quality.separation for quality in layers if quality.separation is not None},
        {quality.layer: sorted(quality.stability.items()) for quality in layers if quality.stability},
        f"{vector.model.name}: {vector.method}, pooling {vector.pooling}, {vector.pairs} pairs",
        folder / "layers.png",
    )
