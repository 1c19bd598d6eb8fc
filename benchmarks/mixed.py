"""What it costs to steer every sequence its own way, and what sharing prompts saves.

Random weights of Qwen2.5-0.5B's shape (or the model given), greedy, end tokens ignored:

    mixed    16 sequences of 16 strengths, by rows, against 16 of one strength, by llama.cpp's own control vector
    sweep    21 strengths at one layer in phase "generated", every question under each of them: one call, which
             computes each prompt once, against a call for each strength; short questions and long ones

The contestants take turns within a run, so read the ratios. No time is asserted: run it on a quiet machine.
"""

import json
import statistics
import time
from pathlib import Path

import click
import numpy as np
import random_model
from rich.console import Console
from rich.table import Table

from edge_steer.core.backend import EngineOptions, Request, available_cores
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.llama.engine import Engine

STRENGTHS = [round(0.001 * i, 3) for i in range(-10, 11)]
SHORT, LONG = 60, 500


@click.command(help=__doc__)
@click.option("--quant", default="Q4_K_M", show_default=True)
@click.argument("model", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tokens", default=32, show_default=True, help="Tokens to decode per sequence.")
@click.option("--questions", default=8, show_default=True, help="Questions of the sweep, and its sequences.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=available_cores, type=int, help="Default: the cores this process may use.")
def main(model: Path | None, quant: str, tokens: int, questions: int, rounds: int, threads: int) -> None:
    path = model or random_model.gguf(quant)
    table = Table("", "seconds", "against", "seconds", "ratio of speeds", "prompt tokens computed", title=path.name)
    with load(path, 16, threads) as engine, load(path, questions, threads) as few:
        contests = {
            "16 strengths / 16 equal": mixed(engine, tokens),
            "21 strengths at once / one by one, short": sweep(engine, tokens, questions, SHORT),
            "21 strengths at once / one by one, long": sweep(engine, tokens, questions, LONG),
        }
        for name, (ours, against) in contests.items():
            row = measure(
                engine if name.startswith("16") else few, ours, against, rounds if name.startswith("16") else 1
            )
            print(json.dumps({"contest": name, "model": path.name, "tokens": tokens, "threads": threads, **row}))
            low, high = row["spread"]
            first, second = name.split(" / ")
            ratio = f"{row['ratio']:.3f} ({low:.3f}-{high:.3f})"
            computed = f"{row['prefilled']} / {row['prefilled against']}"
            table.add_row(first, f"{row['seconds']:.1f}", second, f"{row['seconds against']:.1f}", ratio, computed)
    Console(width=None if Console().is_terminal else 140).print(table)


Calls = list[list[Request]]


def load(path: Path, parallel: int, threads: int) -> Engine:
    """The model, to which no token is an end token."""
    engine = Engine.load(path, EngineOptions(parallel=parallel, threads=threads))
    engine._model.ends = lambda _token: False  # type: ignore[method-assign]
    return engine


def mixed(engine: Engine, tokens: int) -> tuple[Calls, Calls]:
    asked = prompts(16, SHORT)
    return (
        [[Request(p, tokens, steering(engine, s, "all")) for p, s in zip(asked, STRENGTHS, strict=False)]],
        [[Request(p, tokens, steering(engine, STRENGTHS[-1], "all")) for p in asked]],
    )


def sweep(engine: Engine, tokens: int, questions: int, length: int) -> tuple[Calls, Calls]:
    one_by_one = [
        [Request(p, tokens, steering(engine, s, "generated")) for p in prompts(questions, length)] for s in STRENGTHS
    ]
    return [[request for call in zip(*one_by_one, strict=True) for request in call]], one_by_one


def measure(engine: Engine, ours: Calls, against: Calls, rounds: int) -> dict[str, object]:
    """Seconds of both, the median and spread of the ratio of speeds within a round."""
    if rounds > 1:
        run(engine, [call[:1] for call in ours])
    seconds: dict[str, list[float]] = {"ours": [], "against": []}
    computed = {}
    for round_ in range(rounds):
        for name in sorted(seconds, reverse=bool(round_ % 2)):
            before = engine.usage.prefilled
            seconds[name].append(run(engine, ours if name == "ours" else against))
            computed[name] = engine.usage.prefilled - before
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["against"], strict=True)]
    return {
        "seconds": statistics.median(seconds["ours"]),
        "seconds against": statistics.median(seconds["against"]),
        "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
        "prefilled": computed["ours"],
        "prefilled against": computed["against"],
    }


def run(engine: Engine, calls: Calls) -> float:
    start = time.perf_counter()
    for call in calls:
        engine.generate(call)
    return time.perf_counter() - start


def steering(engine: Engine, strength: float, phase: str) -> tuple[Steering, ...]:
    """A random direction in the middle block, weak enough to leave the numbers in range."""
    identity = engine.model
    direction = np.random.default_rng(0).standard_normal(identity.hidden_size).astype(np.float32)
    vector = SteeringVector({identity.block_count // 2: direction}, identity)
    return (Steering(vector, strength, None, phase),)  # type: ignore[arg-type]


def prompts(count: int, length: int) -> list[tuple[int, ...]]:
    drawn = np.random.default_rng(length).integers(5, 400, (count, length))
    return [tuple(map(int, row)) for row in drawn]


if __name__ == "__main__":
    main()
