"""How much of a vector is chance: vectors of disjoint draws of the same pairs, layer by layer.

    python benchmarks/pair_draws.py MODEL PAIRS.jsonl...

For each file and each N, two disjoint sets of N pairs are drawn, ten times; shown is the cosine between the two vectors
(mean difference, of the last token or of the mean over tokens), median and range, at the first, the middle and the last
layer and over all of them.
It says how like the vector of N other pairs would be. N goes up to half the pairs. Prints a table and a JSON line.
"""

import json
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from edge_steer.core.backend import EngineOptions, available_cores
from edge_steer.core.stats import cosine
from edge_steer.extraction.extract import PairStates, record, reduce
from edge_steer.models.load import load
from edge_steer.pairs.pair import read_pairs

COUNTS = (1, 5, 10, 25, 50)


@click.command(help=__doc__)
@click.argument("model")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--quant")
@click.option("--pooling", type=click.Choice(["last", "mean"]), default="last", show_default=True)
@click.option("--draws", default=10, show_default=True)
@click.option("--threads", default=available_cores, type=int, help="Default: the cores this process may use.")
def main(model: str, files: tuple[Path, ...], quant: str | None, pooling: str, draws: int, threads: int) -> None:
    rows: list[dict[str, object]] = []
    with load(model, quant, options=EngineOptions(threads=threads)) as engine:
        for file in files:
            states = record(engine, read_pairs(file), pooling=pooling)
            rng = np.random.default_rng(0)
            for count in [count for count in COUNTS if 2 * count <= states.pairs]:
                cosines = np.array([_between_two(states, count, rng) for _ in range(draws)])
                rows.append({"pairs": file.stem, "of": states.pairs, "N": count, **_summary(cosines)})
    table = Table(*rows[0], title=f"{model}: cosine between vectors of N pairs and of N others, {draws} draws")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=None if Console().is_terminal else 120).print(table)
    print(json.dumps(rows))


def _between_two(states: PairStates, count: int, rng: np.random.Generator) -> list[float]:
    """The cosine at each layer between the vectors of two disjoint draws."""
    drawn = rng.permutation(states.pairs)
    first, second = (reduce(_only(states, part)) for part in (drawn[:count], drawn[count : 2 * count]))
    return [cosine(first.directions[layer], second.directions[layer]) for layer in states.layers]


def _only(states: PairStates, pairs: np.ndarray) -> PairStates:
    return replace(states, positive=states.positive[:, pairs], negative=states.negative[:, pairs])


def _summary(cosines: np.ndarray) -> dict[str, object]:
    """cosines: (draws, layers)."""
    last = cosines.shape[1] - 1
    places = {f"layer {layer}": cosines[:, layer] for layer in (0, last // 2, last)}
    return {
        name: f"{np.median(values):.2f} ({values.min():.2f}-{values.max():.2f})"
        for name, values in {**places, "all layers": cosines.mean(axis=1)}.items()
    }


if __name__ == "__main__":
    main()
