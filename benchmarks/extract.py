"""Extraction speed and memory: edge-steer against steering-vectors and repeng on the same pairs.

The mean difference of the last token at every layer, in float32, on a random-weight model of Qwen2.5-0.5B's shape or on
MODEL, a Hugging Face folder.
Each package runs in an environment of its own (made once in the cache folder; they need other versions than ours), in
a process of its own, with the same folder of weights, the same pairs and the same threads. Each first tries some batch
sizes on a few pairs and then runs all of them at its fastest. repeng's own reducers are PCA; here its recorder
(`batched_get_hiddens`) records, and the difference is taken outside.

Rounds take turns; shown are medians, and medians of the ratios within a round. `cosine` is the smallest over the
layers with our vector; the last layer stands alone because repeng reads it after the final norm. Loading is not timed.
Memory is the peak of the process during the extraction. No time is asserted: run it on a quiet machine.
"""

import itertools
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import llama_tools
import numpy as np
import random_model
from rich.console import Console
from rich.table import Table

from edge_steer.core.backend import available_cores
from edge_steer.core.stats import cosine
from edge_steer.storage.files import cache_folder
from edge_steer.tasks import wordproblems

REQUIREMENTS = {
    "steering-vectors": ("torch==2.13.0", "steering-vectors==0.12.*", "transformers<5"),
    "repeng": ("torch==2.13.0", "repeng==0.4.*", "transformers<5", "numpy<2"),
}
BATCHES = {"edge-steer": (512, 1024, 2048, 4096), "steering-vectors": (1, 2, 4, 8), "repeng": (1, 2, 4, 8)}
GIB = 2**30


@click.command(help=__doc__)
@click.argument("model", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--pairs", "count", default=50, show_default=True)
@click.option("--tune-pairs", default=8, show_default=True, help="Pairs to choose the batch size with.")
@click.option("--rounds", default=2, show_default=True)
@click.option("--threads", default=available_cores, type=int, help="Default: the cores this process may use.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of a table.")
def main(model: Path | None, count: int, tune_pairs: int, rounds: int, threads: int, as_json: bool) -> None:
    pairs, source = make_pairs(count), model or random_model.folder()
    pythons = {"edge-steer": Path(sys.executable), **{name: environment(name) for name in REQUIREMENTS}}
    with tempfile.TemporaryDirectory() as scratch:

        def run(name: str, batch: int, some: Sequence[Sequence[str]]) -> dict[str, float]:
            file = Path(scratch, "pairs.json")
            file.write_text(json.dumps(some))
            worker = Path(__file__).with_name("peers.py")
            arguments = [name, source, file, Path(scratch, f"{name}.npz"), batch, threads]
            print(f"{name}: {len(some)} pairs, batch {batch}", file=sys.stderr)
            found: dict[str, float] = json.loads(llama_tools.run(pythons[name], worker, *arguments).splitlines()[-1])
            return found

        best = {}
        for name, batches in BATCHES.items():
            tried = {batch: run(name, batch, pairs[:tune_pairs])["seconds"] for batch in batches}
            print(f"{name}: {tried}", file=sys.stderr)
            best[name] = min(tried, key=lambda batch: tried[batch])
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in BATCHES}
        for _round, name in itertools.product(range(rounds), BATCHES):
            runs[name].append(run(name, best[name], pairs))
        vectors = {name: dict(np.load(Path(scratch, f"{name}.npz"))) for name in BATCHES}
    result = summary(runs, best, vectors) | {"pairs": count, "threads": threads, "rounds": rounds}
    if as_json:
        click.echo(json.dumps(result))
    else:
        show(result)


def make_pairs(count: int) -> list[tuple[str, str, str]]:
    """Questions of about 130 tokens, three problems each; answers to two of them, dense of about 155, sparse of 265."""
    rng = random.Random(0)
    problems = wordproblems.problems("calibration", seed=0)
    pairs = []
    for _ in range(count):
        several = list(itertools.islice(problems, 3))
        question = " ".join(problem.question for problem in several)
        dense, sparse = (
            "\n\n".join(wordproblems.solution(problem, density, rng) for problem in several[:2])
            for density in (1.0, 0.0)
        )
        pairs.append((question, dense, sparse))
    return pairs


def environment(name: str) -> Path:
    """The Python of the environment that holds the package `name`, made if it is not there."""
    folder = cache_folder() / "peers" / name
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    done = folder / "installed"
    if not done.is_file():
        print(f"installing {name}", file=sys.stderr)
        llama_tools.run(sys.executable, "-m", "venv", folder)
        llama_tools.run(python, "-m", "pip", "install", "--quiet", *REQUIREMENTS[name])
        done.write_text(" ".join(REQUIREMENTS[name]))
    return python


def summary(
    runs: Mapping[str, list[dict[str, float]]], best: Mapping[str, int], vectors: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, object]:
    rows: dict[str, object] = {}
    mine = vectors["edge-steer"]
    last = str(len(mine) - 1)
    for name, values in runs.items():
        ratios = [b["seconds"] / a["seconds"] for a, b in zip(runs["edge-steer"], values, strict=True)]
        rows[name] = {
            "batch": best[name],
            "seconds": round(statistics.median(run["seconds"] for run in values), 2),
            "ours is faster by": round(statistics.median(ratios), 3),
            "GiB loaded": round(statistics.median(run["loaded"] for run in values) / GIB, 3),
            "GiB at peak": round(statistics.median(run["peak"] for run in values) / GIB, 3),
            "cosine": round(min(cosine(vectors[name][n], mine[n]) for n in mine if n != last), 7),
            "cosine of last layer": round(cosine(vectors[name][last], mine[last]), 7),
        }
    return {"contestants": rows}


def show(result: Mapping[str, object]) -> None:
    title = f"{result['pairs']} pairs, {result['threads']} threads, median of {result['rounds']} rounds"
    table = Table(title=title)
    table.add_column("")
    rows: Mapping[str, Mapping[str, object]] = result["contestants"]  # type: ignore[assignment]
    for column in next(iter(rows.values())):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(name, *map(str, row.values()))
    Console(width=None if Console().is_terminal else 140).print(table)


if __name__ == "__main__":
    main()
