"""What changes with the batch size: the same problems, greedy, at several numbers of sequences.

The bundled model's word problems; for each quant and number of sequences: texts equal to those answered alone, the
difference of the log-probabilities up to the first differing token, and the accuracy. Runs of the same number of
sequences are compared too, which must be equal to the last bit.
"""

import json
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from edge_steer.core.backend import Completion, EngineOptions, Request, available_cores
from edge_steer.llama.engine import Engine
from edge_steer.models.quantize import gguf_for
from edge_steer.models.recipe import ModelRecipe, bundled_model
from edge_steer.tasks.load import load_task
from edge_steer.tasks.task import grade


@click.command(help=__doc__)
@click.option("--problems", default=200, show_default=True)
@click.option("--quants", default="F32,F16,Q8_0,Q4_K_M", show_default=True)
@click.option("--sequences", default="1,2,4,8,16,32", show_default=True)
@click.option("--threads", default=available_cores, type=int, help="Default: the cores this process may use.")
def main(problems: int, quants: str, sequences: str, threads: int) -> None:
    source = ModelRecipe.load(bundled_model()).gguf
    assert source
    table = Table("", "sequences", "same texts", "median", "p99", "max |delta log p|", "accuracy", "run twice")
    for quant in quants.split(","):
        path = source if quant == "F16" else gguf_for(source, quant)
        alone = None
        for count in map(int, sequences.split(",")):
            completions, twice, accuracy = run(path, problems, count, threads)
            alone = alone or completions
            same = sum(a.tokens == b.tokens for a, b in zip(alone, completions, strict=True))
            off = np.array(differences(alone, completions))
            found = [float(np.median(off)), float(np.quantile(off, 0.99)), float(off.max())]
            row = {"quant": quant, "sequences": count, "problems": problems, "same texts": same, "twice": twice}
            print(json.dumps({**row, "median": found[0], "p99": found[1], "max": found[2], "accuracy": accuracy}))
            numbers = [f"{value:.1e}" for value in found]
            again = "equal" if twice else "DIFFERENT"
            table.add_row(quant, str(count), f"{same}/{problems}", *numbers, f"{accuracy:.1%}", again)
        table.add_section()
    Console(width=None if Console().is_terminal else 110).print(table)


def run(path: Path, problems: int, sequences: int, threads: int) -> tuple[list[Completion], bool, float]:
    """The completions, whether a second run gives the same, and their accuracy."""
    task = load_task("wordproblems", limit=problems)
    with Engine.load(path, EngineOptions(parallel=sequences, threads=threads)) as engine:
        requests = [Request(engine.chat(task.messages(sample)), 400, logprobs=0) for sample in task.samples]
        first, second = engine.generate(requests), engine.generate(requests)
    right = [grade(c.text, sample.answer) for c, sample in zip(first, task.samples, strict=True)]
    return first, first == second, sum(right) / problems


def differences(alone: list[Completion], batched: list[Completion]) -> list[float]:
    found = []
    for one, other in zip(alone, batched, strict=True):
        for a, b in zip(one.logprobs, other.logprobs, strict=False):
            if a.token != b.token:
                break
            found.append(abs(a.logprob - b.logprob))
    return found


if __name__ == "__main__":
    main()
