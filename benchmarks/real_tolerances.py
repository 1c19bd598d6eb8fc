"""What quantising changes of the effect of steering in real models: the cells from which tolerances.py has its numbers.

Each cell is a model, a vector of real_experiment.py, a layer at a quarter, the half or three quarters of the depth, and
a strength in units of the residual norm. The reference is PyTorch in float32 on the weights of the same GGUF; the texts
are the model's own solutions on one line. Every type is made of those weights too.

    python benchmarks/real_tolerances.py benchmarks/settings/NAME.toml -o docs/real/NAME-tolerances.json

A cell that is in the file is not measured again. The rule, written before any cell was measured, over all cells:
cosine 1 - 1.5 (1 - c) for the lowest lower end c; length 1.5 times the largest distance of an end from 1; mean KL 1.5
times the largest upper end; KL ratio 1.5 times the largest.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from real_settings import read_settings

from edge_steer.core.backend import EngineOptions
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.steering import Steering
from edge_steer.models.load import load
from edge_steer.models.quantize import quantize
from edge_steer.models.sources import find
from edge_steer.pairs.pair import Pair, read_pairs
from edge_steer.parity.baseline import LiveReference
from edge_steer.parity.compare import Report, compare_backend
from edge_steer.parity.saved import SavedReference, save
from edge_steer.parity.texts import tokenise_texts
from edge_steer.parity.tolerances import tolerance_of
from edge_steer.storage.files import write_json
from edge_steer.terminal.progress import progress_bar
from edge_steer.vectors.read import load as load_vector

KINDS = ("line-breaks", "dense")
STRENGTHS = (0.1, 0.05)
QUANTS = ("F16", "Q8_0", "Q6_K", "Q4_K_M")

Cell = dict[str, Any]


def cell_of(report: Report, kind: str, layer: int, strength: float) -> Cell:
    """The figures of one type in one cell that the rule takes."""
    effect, steered = report.effect, report.steered
    assert effect and steered
    return {
        "quant": report.quant,
        "vector": kind,
        "layer": layer,
        "strength": strength,
        "cosine": [effect.cosine, effect.cosine_interval],
        "length": [effect.norm, effect.norm_interval],
        "residual cosine": [effect.residual_cosine, effect.residual_cosine_interval],
        "residual length": [effect.residual_norm, effect.residual_norm_interval],
        "KL": [report.unsteered.kl["mean"], report.unsteered.kl_interval],
        "KL steered": [steered.kl["mean"], steered.kl_interval],
        "KL ratio": report.kl_ratio,
    }


def worst(cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """For each type the ends that the rule takes."""
    table = {}
    for quant in dict.fromkeys(cell["quant"] for cell in cells):
        own = [cell for cell in cells if cell["quant"] == quant]
        ends = [end for cell in own for name in ("length", "residual length") for end in cell[name][1]]
        table[quant] = {
            "cosine": min(cell[name][1][0] for cell in own for name in ("cosine", "residual cosine")),
            "length off": max(abs(end - 1) for end in ends),
            "KL": max(cell[name][1][1] for cell in own for name in ("KL", "KL steered")),
            "KL ratio": max(cell["KL ratio"] for cell in own),
        }
    return table


def measure(
    model: str | Path, vectors: dict[str, Path], texts: Sequence[Pair], done: Sequence[Cell], options: EngineOptions,
    progress: Progress,
) -> Iterator[list[Cell]]:  # fmt: skip
    """The cells that are not in `done`, those of one vector, layer and strength at a time."""
    f32 = quantize(model, "F32", threads=options.threads, progress=progress)
    files = {quant: quantize(f32, quant, threads=options.threads, progress=progress) for quant in QUANTS}
    source = find(model, progress=progress)
    assert isinstance(source, Path)
    known = {(cell["vector"], cell["layer"], cell["strength"]) for cell in done}
    with load(source, runtime="torch", options=options, progress=progress) as reference:
        blocks = reference.model.block_count or 0
        tokenised = tokenise_texts(texts, reference)
        wanted = [
            (kind, blocks * part // 4, strength) for strength in STRENGTHS for part in (2, 1, 3) for kind in vectors
        ]
        for kind, layer, strength in progress.counted("cells", [cell for cell in wanted if cell not in known]):
            steering = (Steering(load_vector(vectors[kind]), strength, (layer,), "generated"),)
            with TemporaryDirectory() as scratch:
                saved = Path(scratch) / "reference"
                save(saved, LiveReference(reference, tokenised, tokenised, steering), {}, {}, SILENT)
                cells = []
                for quant, file in files.items():
                    with load(file, options=options) as engine:
                        baseline = SavedReference(saved, reference)
                        report = compare_backend(baseline, engine, steering, quant, tolerance_of(quant))
                    cells.append(cell_of(report, kind, layer, strength))
            yield cells


@click.command(help=__doc__)
@click.argument("settings_file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--results", type=click.Path(path_type=Path), default=Path("results/real"), show_default=True)
@click.option("--texts", default=6, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(settings_file: Path, output: Path, results: Path, texts: int, threads: int) -> None:
    torch.set_num_threads(threads)
    settings = read_settings(settings_file)
    folder = results / settings.name
    vectors = {kind: folder / f"{kind}.safetensors" for kind in KINDS}
    own = read_pairs(folder / "pairs-line-breaks.jsonl")[:texts]
    solutions = [replace(pair, positive=pair.negative, negative=pair.positive) for pair in own]
    cells: list[Cell] = json.loads(output.read_text("utf-8"))["cells"] if output.is_file() else []
    options = EngineOptions(context=1024, threads=threads)
    with progress_bar() as progress:
        for some in measure(settings.model, vectors, solutions, tuple(cells), options, progress):
            cells += some
            write_json(output, {"model": settings.model, "texts": texts, "cells": cells, "worst": worst(cells)})
    for quant, ends in worst(cells).items():
        click.echo(f"{quant}: " + ", ".join(f"{name} {value:.4f}" for name, value in ends.items()))


if __name__ == "__main__":
    main()
