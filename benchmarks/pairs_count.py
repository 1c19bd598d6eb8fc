"""How many pairs a vector needs: vectors from 10, 25, 50 and 100 pairs of the bundled model, by cosine and by effect.

The first pairs of the 100 that models/abacus/prepare.py makes, read in torch float32 and from the Q8_0 GGUF. Cosines
are of the recipe's layer: with torch's vector of all pairs, and with torch's of the same pairs. The effect is that of
each vector on Q8_0 at the recipe's layer and strength, on dev problems, greedy. Prints a table and a JSON line.
"""

import json
import subprocess
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from edge_steer.core.backend import EngineOptions, available_cores
from edge_steer.core.stats import cosine
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.evaluation.evaluate import Evaluator
from edge_steer.evaluation.figures import Figure, Summary, summarise
from edge_steer.extraction.extract import extract
from edge_steer.llama.engine import Engine
from edge_steer.models import quantize
from edge_steer.models.recipe import ModelRecipe, bundled_model
from edge_steer.pairs.pair import Pair, read_pairs
from edge_steer.reference.model import Reference
from edge_steer.storage.files import cache_folder
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.load import load_task
from edge_steer.tasks.rows import UNSTEERED, Method
from edge_steer.tasks.wordproblems import WORD_PROBLEMS

QUANT = "Q8_0"
FIGURES = ("steps", "tokens", "density", "accuracy")


@click.command(help=__doc__)
@click.option("--counts", default="10,25,50,100", show_default=True)
@click.option("--problems", default=100, show_default=True)
@click.option("--threads", default=available_cores, type=int, help="Default: the cores this process may use.")
def main(counts: str, problems: int, threads: int) -> None:
    sizes = sorted(map(int, counts.split(",")))
    recipe = ModelRecipe.load(bundled_model())
    contrast = make_pairs(recipe.folder, sizes[-1])
    reference = Reference.load(recipe.folder, threads=threads)
    task = load_task(WORD_PROBLEMS, split="dev", limit=problems)
    path = quantize.gguf_for(recipe.gguf or recipe.folder, QUANT, threads=threads)
    rows: list[dict[str, object]] = []
    with Graders() as graders, Engine.load(path, EngineOptions(threads=threads, parallel=32)) as engine:
        torch = {size: extract(reference, contrast[:size]) for size in sizes}
        llama = {size: extract(engine, contrast[:size]) for size in sizes}

        def measured(method: Method) -> dict[str, object]:
            return figures(summarise(Evaluator(engine, graders, nll=False).rows(task, method)))

        rows.append({"pairs": 0, "from": "unsteered", **measured(UNSTEERED)})
        for size in sizes:
            for source, vector in (("torch float32", torch[size]), (QUANT, llama[size])):
                method = Method(f"{source} {size}", (Steering(vector, recipe.strength, (recipe.layer,)),))
                cosines = {
                    "cosine with all": at(recipe.layer, vector, torch[sizes[-1]]),
                    "cosine with torch": at(recipe.layer, vector, torch[size]),
                    "norm": vector.norms[recipe.layer],
                }
                rows.append({"pairs": size, "from": source, **cosines, **measured(method)})
                print(json.dumps(rows[-1]), file=sys.stderr)
    show(rows, f"layer {recipe.layer}, strength {recipe.strength:g}, {problems} dev problems on {QUANT}")
    print(json.dumps({"layer": recipe.layer, "strength": recipe.strength, "problems": problems, "rows": rows}))


def make_pairs(folder: Path, count: int) -> tuple[Pair, ...]:
    """Pairs of the bundled model, made once and kept in the cache."""
    file = cache_folder() / f"abacus-{count}-pairs.jsonl"
    if not file.is_file():
        command = [sys.executable, str(folder / "prepare.py"), "pairs", "--count", str(count), "--out", str(file)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return read_pairs(file)


def at(layer: int, a: SteeringVector, b: SteeringVector) -> float:
    return cosine(a.directions[layer], b.directions[layer])


def figures(summary: Summary) -> dict[str, object]:
    """Mean and 95% interval of each figure."""

    def told(figure: Figure) -> list[float]:
        low, high = figure.interval or (figure.mean, figure.mean)
        return [figure.mean, low, high]

    return {name: told(summary.figures[name]) for name in FIGURES}


def show(rows: list[dict[str, object]], title: str) -> None:
    table = Table("pairs", "from", "cosine with all", "cosine with torch", "norm", *FIGURES, title=title)
    for row in rows:
        cells = [str(row["pairs"]), str(row["from"])]
        for name, digits in (("cosine with all", 4), ("cosine with torch", 4), ("norm", 1)):
            cells.append(f"{row[name]:.{digits}f}" if name in row else "")
        for name in FIGURES:
            mean, low, high = row[name]  # type: ignore[misc]
            cells.append(f"{mean:.2f} ({low:.2f}-{high:.2f})")
        table.add_row(*cells)
    Console(width=None if Console().is_terminal else 170).print(table)


if __name__ == "__main__":
    main()
