"""Vectors read from a GGUF by llama.cpp against vectors read from the Hugging Face weights by torch in float32.

The same pairs, every block, the last token. For each quant: the cosine of the two vectors at each layer, their ratio
of norms, and how far single states are apart (median over answers of |difference| / |state|). The bundled model, or
any folder of Hugging Face weights. Prints a table for each method and a JSON line.
"""

import json
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from edge_steer.core.backend import EngineOptions, available_cores
from edge_steer.core.stats import cosine
from edge_steer.extraction.extract import PairStates, record, reduce
from edge_steer.extraction.methods import METHODS
from edge_steer.llama.engine import Engine
from edge_steer.models import quantize
from edge_steer.models.recipe import ModelRecipe, bundled_model
from edge_steer.pairs.pair import read_pairs
from edge_steer.reference.model import Reference


@click.command(help=__doc__)
@click.option("--model", type=click.Path(path_type=Path), help="A model folder with recipe.toml.")
@click.option("--pairs", "pairs_file", type=click.Path(path_type=Path), help="Default: the model's pairs.jsonl.")
@click.option("--quants", default="F16,Q8_0,Q4_K_M", show_default=True)
@click.option("--pooling", default="last", show_default=True)
@click.option("--threads", default=available_cores, type=int, help="Default: the cores this process may use.")
def main(model: Path | None, pairs_file: Path | None, quants: str, pooling: str, threads: int) -> None:
    recipe = ModelRecipe.load(model or bundled_model())
    contrast = read_pairs(pairs_file or recipe.folder / "pairs.jsonl")
    reference = Reference.load(recipe.source, revision=recipe.revision, threads=threads)
    exact = record(reference, contrast, pooling=pooling)
    result: dict[str, object] = {"model": recipe.name, "pairs": len(contrast), "pooling": pooling, "threads": threads}
    states = {}
    for quant in quants.split(","):
        path = quantize.gguf_for(recipe.gguf or recipe.source, quant, revision=recipe.revision, threads=threads)
        with Engine.load(path, EngineOptions(threads=threads)) as engine:
            states[quant] = record(engine, contrast, pooling=pooling)
    result["states"] = {quant: apart(read, exact) for quant, read in states.items()}
    show("states: median |difference| / |state|", exact.layers, result["states"])
    for method in METHODS:
        expected = reduce(exact, method)
        vectors = {quant: reduce(read, method) for quant, read in states.items()}
        rows = {
            quant: [cosine(vector.directions[layer], expected.directions[layer]) for layer in exact.layers]
            for quant, vector in vectors.items()
        }
        result[method] = rows
        result[f"{method}, norms"] = {
            quant: [vector.norms[layer] / expected.norms[layer] for layer in exact.layers]
            for quant, vector in vectors.items()
        }
        show(f"{method}: cosine with torch float32", exact.layers, rows)
    print(json.dumps(result))


def apart(read: PairStates, exact: PairStates) -> list[float]:
    """For each layer, the median over answers."""
    both = np.concatenate((read.positive, read.negative), axis=1), np.concatenate((exact.positive, exact.negative), 1)
    distances = np.linalg.norm(both[0] - both[1], axis=-1) / np.linalg.norm(both[1], axis=-1)
    return [float(distance) for distance in np.median(distances, axis=1)]


def show(title: str, layers: tuple[int, ...], rows: object) -> None:
    table = Table("", *(f"layer {layer}" for layer in layers), title=title)
    for name, values in rows.items():  # type: ignore[attr-defined]
        table.add_row(name, *(f"{value:.6f}" for value in values))
    Console(width=None if Console().is_terminal else 140).print(table)


if __name__ == "__main__":
    main()
