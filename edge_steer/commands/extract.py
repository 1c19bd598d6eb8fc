"""The command extract: pairs and a model to a steering vector, with figures of each layer.

Parses, calls, prints. Heavy packages are imported inside the command.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_steer.core.errors import EdgeSteerError, need
from edge_steer.terminal.options import FILE, FOLDER
from edge_steer.terminal.progress import NOTES, progress_bar, say
from edge_steer.terminal.tables import print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_steer.core.vector import SteeringVector
    from edge_steer.extraction.quality import LayerQuality


@click.command()
@click.argument("model")
@click.argument("pairs_file", metavar="PAIRS", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="Where to write the steering vector (.safetensors).")
@click.option("--layers", help="Layers to extract.  [default: all blocks]")
@click.option("--method", default="mean_difference", show_default=True,
              help="mean_difference, pca, pca_centred or logistic.")  # fmt: skip
@click.option("--pooling", default="last", show_default=True,
              help="Tokens of an answer that are averaged: last, last:K, mean or token:I.")  # fmt: skip
@click.option("--normalise", is_flag=True, help="Scale each direction to norm 1.")
@click.option("--report", type=FOLDER, help="A folder for the figures of each layer: layers.json and layers.png.")
@click.option("--revision", help="Commit of a hub model.")
@click.option("--threads", type=click.IntRange(1, 512))
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model.")
def extract(
    model: str,
    pairs_file: Path,
    out: Path,
    layers: str | None,
    method: str,
    pooling: str,
    normalise: bool,
    report: Path | None,
    revision: str | None,
    threads: int | None,
    trust_remote_code: bool,
) -> None:
    """Extract a steering vector from MODEL on contrastive PAIRS (.jsonl).

    MODEL is a folder or hub id, read in PyTorch, or a GGUF file of any quant (or owner/name:QUANT), read in llama.cpp.
    """
    from dataclasses import replace

    from edge_steer.core.vector import parse_layers
    from edge_steer.extraction.extract import record, reduce
    from edge_steer.extraction.methods import method_named
    from edge_steer.extraction.pooling import pooling_named
    from edge_steer.extraction.quality import measure
    from edge_steer.models import sources
    from edge_steer.pairs.pair import read
    from edge_steer.storage.files import digest

    if Path(model).is_file() and (revision or trust_remote_code):
        raise click.UsageError("--revision and --trust-remote-code are of Hugging Face models; MODEL is a GGUF file")
    if report:
        need("plots")
        _make_folder(report)
    method_named(method)
    pooling_named(pooling)
    found = read(pairs_file)
    gguf = None if Path(model).is_dir() else sources.gguf(model, revision=revision, progress=NOTES)
    with progress_bar() as progress:
        progress("loading the model", 0, 1)
        wanted = parse_layers(layers) if layers else None
        if gguf:
            from edge_steer.core.backend import EngineOptions
            from edge_steer.llama.engine import Engine

            with Engine.load(gguf, EngineOptions(threads=threads)) as engine:
                states = record(engine, found, layers=wanted, pooling=pooling, progress=progress)
            states = replace(states, model=replace(states.model, revision=digest(gguf)))
        else:
            from edge_steer.reference.model import Reference

            reference = Reference.load(model, revision=revision, threads=threads, trust_remote_code=trust_remote_code)
            states = record(reference, found, layers=wanted, pooling=pooling, progress=progress)
        progress("measuring", 0, 1)
        vector = reduce(states, method, normalise=normalise)
        qualities = measure(states, method)
    from edge_steer.vectors import native

    native.save(vector, out)
    suggested = _print_layers(vector, qualities)
    if report:
        _write_report(report, vector, qualities, suggested)
        click.echo(f"wrote {report}/layers.json and layers.png")
    click.echo(f"wrote {out}; next: edge-steer export {out} -o vector.gguf")


def _print_layers(vector: "SteeringVector", layers: "Sequence[LayerQuality]") -> tuple[int, ...]:
    """The figures of each layer, and the layers suggested."""
    from edge_steer.core.vector import spans
    from edge_steer.extraction.quality import MIN_PAIRS, suggest

    sizes = list(layers[0].stability)
    columns = ["layer", "norm", "of states"]
    if sizes:
        columns += ["AUC", *(f"cosine {size}" for size in sizes), f"{vector.pairs} / all"]
    rows = []
    for at in layers:
        row = [str(at.layer), f"{vector.norms[at.layer]:.4g}", f"{at.relative:.3f}"]
        if at.separation is not None and at.expected is not None:
            row += [f"{at.separation:.3f}", *(f"{at.stability[size]:.3f}" for size in sizes), f"{at.expected:.3f}"]
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
    suggested = suggest(layers, vector.model.block_count)
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
    import json
    from dataclasses import asdict

    from edge_steer.evaluation.plots import plot_layers
    from edge_steer.storage.files import replacing

    facts = {"vector": vector.digest, "model": asdict(vector.model), "method": vector.method, "pooling": vector.pooling,
             "pairs": vector.pairs, "layers": [asdict(layer) for layer in layers],
             "suggested": suggested}  # fmt: skip
    with replacing(folder / "layers.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    plot_layers(
        {at.layer: at.relative for at in layers},
        {at.layer: at.separation for at in layers if at.separation is not None},
        {at.layer: sorted(at.stability.items()) for at in layers if at.stability},
        f"{vector.model.name}: {vector.method}, pooling {vector.pooling}, {vector.pairs} pairs",
        folder / "layers.png",
    )
