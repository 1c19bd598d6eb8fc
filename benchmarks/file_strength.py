"""Can a quantised file be steered as its reference is? A strength of its own, a vector extracted from it, an
importance matrix.

    python benchmarks/file_strength.py MODEL PAIRS... -o FILE.json [--pooling mean] [--layers 8,15,22]

MODEL's weights, dequantised where they are quantised, are the reference in PyTorch and what every type is made of. A
vector is extracted from each file of pairs by the reference, in units of the residual norm. In each type it steers as
it is, with the strength divided by the length of its effect, and in place of it the vector that the same pairs give in
that file; and as it is in a file that was quantised with an importance matrix. The length is measured on one half of
the texts, everything shown on the other half: of the effect on the logits the cosine with the reference's, its length,
the part along the reference's (cosine times length), the error (length of the difference over that of the reference's
effect), and the mean KL when steered.
Texts are the negative sides of the first PAIRS; the importance matrix must be of others. A cell that is in FILE.json is
not measured again.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch

from edge_steer.core.backend import Backend, EngineOptions
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.steering import Steering
from edge_steer.core.vector import parse_layers
from edge_steer.extraction.extract import extract
from edge_steer.models.load import load
from edge_steer.models.quantize import quantize
from edge_steer.pairs.pair import read_pairs
from edge_steer.parity.baseline import LiveReference
from edge_steer.parity.measure import measure_texts
from edge_steer.parity.saved import SavedReference, save
from edge_steer.parity.texts import TokenisedText, tokenise_texts
from edge_steer.storage.files import write_json
from edge_steer.terminal.progress import progress_bar
from edge_steer.terminal.tables import print_table

STRENGTH = 0.1  # of the residual norm
FIGURES = ("cosine", "length", "along", "error", "KL")

Cell = dict[str, Any]


def figures_of(baseline: SavedReference, engine: Backend, steering: Steering) -> dict[str, float]:
    """One file under one steering against the reference's side."""
    measured = measure_texts(baseline, engine, [steering])
    assert measured.effect and measured.steered
    cosine, length = measured.effect.cosine, measured.effect.norm
    error = math.sqrt(1 + length**2 - 2 * cosine * length)
    kl = measured.steered.kl["mean"]
    return {"cosine": cosine, "length": length, "along": cosine * length, "error": error, "KL": kl}


def measure_cells(
    model: str, pairs: Path, pooling: str, layers: Sequence[int], quants: Sequence[str], imatrix: Path,
    texts_file: Path, count: int, done: Sequence[Cell], options: EngineOptions, progress: Progress,
) -> Iterator[list[Cell]]:  # fmt: skip
    """The cells of one file of pairs that are not in `done`, those of a layer at a time."""
    f32 = quantize(model, "F32", threads=options.threads, progress=progress)
    files, by_importance = (
        {quant: quantize(f32, quant, imatrix=one, threads=options.threads, progress=progress) for quant in quants}
        for one in (None, imatrix)
    )
    known = {(cell["pairs"], cell["layer"]) for cell in done}
    missing = [layer for layer in layers if (pairs.stem, layer) not in known]
    if not missing:
        return
    contrast = read_pairs(pairs)
    with load(f32, runtime="torch", options=options, progress=progress) as reference, TemporaryDirectory() as scratch:
        texts = tokenise_texts(read_pairs(texts_file)[:count], reference)
        vector = extract(reference, contrast, layers=layers, pooling=pooling, normalise="residual")
        own = {}
        for quant, file in files.items():
            with load(file, options=options) as engine:
                own[quant] = extract(engine, contrast, layers=layers, pooling=pooling, normalise="residual")
        for layer in progress.counted(pairs.stem, missing):
            steering = Steering(vector, STRENGTH, (layer,), "generated")
            fit, test = (
                _saved(Path(scratch) / f"{layer}-{part}", reference, texts[part::2], steering) for part in (0, 1)
            )
            cells = []
            for quant, file in files.items():
                with load(file, options=options) as engine:
                    factor = 1 / figures_of(fit, engine, steering)["length"]
                    restored = replace(steering, strength=STRENGTH * factor)
                    there = replace(steering, vector=own[quant])
                    variants = {"as it is": steering, "restored": restored, "extracted there": there}
                    cell: Cell = {"pairs": pairs.stem, "layer": layer, "quant": quant, "factor": factor}
                    cell |= {name: figures_of(test, engine, one) for name, one in variants.items()}
                with load(by_importance[quant], options=options) as engine:
                    cells.append(cell | {"by importance": figures_of(test, engine, steering)})
            yield cells


def _saved(path: Path, reference: Backend, texts: Sequence[TokenisedText], steering: Steering) -> SavedReference:
    save(path, LiveReference(reference, texts, texts, [steering]), {}, {}, SILENT)
    return SavedReference(path)


@click.command(help=__doc__)
@click.argument("model")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--pooling", default="last", show_default=True)
@click.option("--layers", default="8,15,22", show_default=True)
@click.option("--quants", default="Q8_0,Q4_K_M", show_default=True)
@click.option("--imatrix", required=True, type=click.Path(path_type=Path, exists=True), help="Of imatrix.py.")
@click.option("--texts", default=12, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(
    model: str,
    files: tuple[Path, ...],
    output: Path,
    pooling: str,
    layers: str,
    quants: str,
    imatrix: Path,
    texts: int,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    cells: list[Cell] = json.loads(output.read_text("utf-8"))["cells"] if output.is_file() else []
    options = EngineOptions(context=1024, threads=threads)
    with progress_bar() as progress:
        for pairs in files:
            for some in measure_cells(
                model, pairs, pooling, parse_layers(layers), quants.split(","), imatrix, files[0], texts, tuple(cells),
                options, progress,
            ):  # fmt: skip
                cells += some
                write_json(output, {"model": model, "strength": STRENGTH, "texts": texts // 2, "cells": cells})
    print_table(
        ["pairs", "layer", "", "factor", "", *FIGURES],
        (
            [cell["pairs"], str(cell["layer"]), cell["quant"], f"{cell['factor']:.3f}", variant,
             *(f"{cell[variant][name]:.4f}" for name in FIGURES)]
            for cell in cells
            for variant in ("as it is", "restored", "extracted there", "by importance")
        ),
        f"{model}, strength {STRENGTH} of the residual norm",
    )  # fmt: skip


if __name__ == "__main__":
    main()
