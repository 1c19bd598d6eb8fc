"""How much of figure 6 is length: the perplexity of a sweep's texts, cut to their first tokens.

    python benchmarks/perplexity_by_length.py MODEL results/real/NAME/dev-dense --layer 12 -o FILE.json

MODEL made the texts. Texts without a prompt are dear at their beginning, so a short one has a higher perplexity than
a long one of the same kind. For each strength at a layer, and each number of tokens: the log of the mean perplexity of
the texts that have as many, cut to it; then of the whole texts, as `edge-steer perplexity` has it.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from real_report import markdown

from edge_steer.core.backend import Backend, EngineOptions
from edge_steer.core.stats import Floats
from edge_steer.evaluation.sweep_cells import UNSTEERED_CELL, SweepCell
from edge_steer.evaluation.sweep_results import DEV, FORMAT
from edge_steer.evaluation.units import read_rows
from edge_steer.models.load import load
from edge_steer.storage.files import write_json
from edge_steer.terminal.progress import progress_bar

LENGTHS = (50, 100, 150)


def token_nll(model: Backend, text: str) -> Floats:
    """Of each token but the first, in nats; the text stands alone."""
    return np.asarray(model.nll(model.encode(text), 1), dtype=float)


def log_mean_perplexity(texts: Sequence[Floats], length: int | None) -> tuple[float | None, int]:
    """ln of the mean over texts of exp(mean NLL of their first tokens), and of how many texts. length: None is all."""
    some = [nll[:length].mean() for nll in texts if len(nll) and (length is None or len(nll) >= length)]
    return (float(np.log(np.exp(some).mean())) if some else None), len(some)


@click.command(help=__doc__)
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--layer", type=int, required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--threads", default=1, show_default=True)
def main(model: str, folder: Path, layer: int, out: Path, threads: int) -> None:
    header, rows = read_rows(folder / DEV, FORMAT)
    cells = [UNSTEERED_CELL, *(SweepCell(layer, strength) for strength in header["strengths"])]
    figures = []
    with progress_bar() as progress, load(model, options=EngineOptions(context=1024, threads=threads)) as engine:
        for cell in sorted(cells, key=lambda cell: cell.strength):
            of_cell = [row.text for row in rows if row.method == cell.name and row.answered]
            texts = [token_nll(engine, text) for text in progress.counted(cell.name, of_cell)]
            by_length = {str(length or "all"): log_mean_perplexity(texts, length) for length in (*LENGTHS, None)}
            figures.append({"strength": cell.strength, "log of the mean perplexity, texts": by_length})
    write_json(out, {"model": header["model"], "task": header["task"], "layer": layer, "cells": figures})
    lines = [
        [f"{one['strength']:g}", *("" if value is None else f"{value:.2f} ({count})" for value, count in
                                   one["log of the mean perplexity, texts"].values())]
        for one in json.loads(out.read_text("utf-8"))["cells"]
    ]  # fmt: skip
    click.echo(markdown(["strength", *(f"first {length} tokens (texts)" for length in LENGTHS), "whole"], lines))


if __name__ == "__main__":
    main()
