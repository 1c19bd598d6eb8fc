"""Decoding speed: edge-steer's engine, unsteered and steered, against llama-cpp-python and llama.cpp's own tools.

Tokens per second of 1, 8 and 32 sequences that each continue a prompt of 16 tokens, prefill left out, on the same
file, threads, KV cache and attention:

    edge-steer         Engine.generate, greedy: a long run less a run of one token
    steered            the same with a control vector in the middle block
    llama-cpp-python   Llama.generate at temperature 0, one sequence, which is all it has
    llama-bench        llama.cpp's own speed of one sequence; it chooses no tokens
    llama-batched      llama-batched-bench, llama.cpp's own speed of many; it chooses no tokens

The rounds take turns, so that a slow minute slows them all; shown are medians, and medians of the ratios within a
round. End tokens are ignored on both sides. Where llama.cpp's AMX kernels kill the process, weights are repacked on
neither side. No time is asserted: run it on a quiet machine.
"""

import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import click
import llama_cpp
import llama_tools
import numpy as np
import random_model
from rich.console import Console
from rich.table import Table

from edge_steer.core.backend import EngineOptions, Request, available_cores
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.llama.engine import Engine
from edge_steer.llama.library import repacking_is_safe

BUNDLED = Path(__file__).parents[1] / "models" / "abacus" / "abacus-F16.gguf"
PROMPT = 16
CONTEXT = 256
BATCH = 512


@click.command(help=__doc__)
@click.argument("models", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--sequences", multiple=True, type=int, default=(1, 8, 32), show_default=True)
@click.option("--tokens", default=64, show_default=True, help="Tokens to decode per sequence.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", default=available_cores, type=int, help="Default: the cores this process may use.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line a row instead of a table.")
def main(
    models: tuple[Path, ...], sequences: tuple[int, ...], tokens: int, rounds: int, threads: int, as_json: bool
) -> None:
    """Default models: the bundled one, and random weights of Qwen2.5-0.5B's shape in Q4_K_M."""
    if PROMPT + tokens >= CONTEXT:
        raise click.UsageError(f"--tokens must be below {CONTEXT - PROMPT}")
    for path in models or (BUNDLED, random_model.gguf()):
        rows = [measure(path, count, tokens, rounds, threads) for count in sequences]
        if as_json:
            for row in rows:
                click.echo(json.dumps(row))
        else:
            show(path, rows)


def measure(path: Path, sequences: int, tokens: int, rounds: int, threads: int) -> dict[str, object]:
    """Tokens per second of every contestant, and the ratios that count."""
    contestants: dict[str, Callable[[], float]] = {}
    with Engine.load(path, EngineOptions(context=CONTEXT, parallel=sequences, threads=threads)) as engine:
        engine._model.ends = lambda _token: False  # type: ignore[method-assign]
        contestants["edge-steer"] = lambda: ours(engine, sequences, tokens, ())
        contestants["steered"] = lambda: ours(engine, sequences, tokens, (steering(engine),))
        if sequences == 1:
            llama = load_llama(path, threads)
            contestants["llama-cpp-python"] = lambda: llama_python(llama, tokens)
            contestants["llama-bench"] = lambda: bench(path, tokens, threads)
        contestants["llama-batched"] = lambda: batched(path, sequences, tokens, threads)
        speeds: dict[str, list[float]] = {name: [] for name in contestants}
        for round_ in range(-1, rounds):  # the round before the first warms up
            names = list(contestants)
            for name in names if round_ % 2 else reversed(names):
                speed = contestants[name]()
                if round_ >= 0:
                    speeds[name].append(speed)
        if sequences == 1:
            llama.close()
    gc.collect()
    row: dict[str, object] = {"model": path.name, "sequences": sequences, "threads": threads, "rounds": rounds}
    row |= {name: round(statistics.median(values), 2) for name, values in speeds.items()}
    for name, below in (("steered", "edge-steer"), *(("edge-steer", peer) for peer in list(speeds)[2:])):
        ratios = [a / b for a, b in zip(speeds[name], speeds[below], strict=True)]
        row[f"{name} / {below}"] = round(statistics.median(ratios), 4)
        row[f"spread of {name} / {below}"] = [round(min(ratios), 4), round(max(ratios), 4)]
    return row


def steering(engine: Engine) -> Steering:
    """A random direction in the middle block, weak enough to leave the numbers in range."""
    identity = engine.model
    direction = np.random.default_rng(0).standard_normal(identity.hidden_size).astype(np.float32)
    return Steering(SteeringVector({identity.block_count // 2: direction}, identity), 0.01)


def ours(engine: Engine, sequences: int, tokens: int, steerings: tuple[Steering, ...]) -> float:
    """Time of a run of tokens + 1, less that of a run of one token, which is the prefill."""

    def seconds(length: int) -> float:
        requests = [
            Request(tuple(range(10 + i, 10 + i + PROMPT)), length, steering=steerings) for i in range(sequences)
        ]
        start = time.perf_counter()
        done = engine.generate(requests)
        elapsed = time.perf_counter() - start
        if any(len(completion.tokens) != length for completion in done):
            raise RuntimeError("a sequence ended early")
        return elapsed

    prefill = seconds(1)
    return sequences * tokens / (seconds(tokens + 1) - prefill)


def load_llama(path: Path, threads: int, context: int = CONTEXT) -> llama_cpp.Llama:
    """The high-level class, with the engine's settings; repacking it has no argument for."""
    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def params() -> llama_cpp.llama_model_params:
        settings = defaults()
        settings.use_extra_bufts = repacking_is_safe(path)
        return settings

    with mock.patch.object(llama_cpp.llama_cpp, "llama_model_default_params", params):
        return llama_cpp.Llama(
            str(path), n_ctx=context, n_batch=BATCH, n_threads=threads, n_threads_batch=threads,
            flash_attn=True, verbose=False,
        )  # fmt: skip


def llama_python(llama: llama_cpp.Llama, tokens: int) -> float:
    llama.reset()
    start = 0.0
    for index, _token in enumerate(llama.generate(list(range(10, 10 + PROMPT)), temp=0.0)):
        if index == 0:
            start = time.perf_counter()
        elif index == tokens:
            break
    return tokens / (time.perf_counter() - start)


def bench(path: Path, tokens: int, threads: int) -> float:
    command = [llama_tools.tool("llama-bench"), "-m", path, "-t", threads, "-p", 0, "-n", tokens, "-d", PROMPT]
    command += ["-b", BATCH, "-r", 1, "-o", "json", "--repack", int(repacking_is_safe(path))]
    (row,) = json.loads(llama_tools.run(*command))
    return float(row["avg_ts"])


def batched(path: Path, sequences: int, tokens: int, threads: int) -> float:
    command = [llama_tools.tool("llama-batched-bench"), "-m", path, "-t", threads, "-tb", threads, "-b", BATCH]
    command += ["-c", CONTEXT * sequences, "-npp", PROMPT, "-ntg", tokens, "-npl", sequences]
    for _ in range(10):  # at times the tool ends before its log thread has written the last line
        row = llama_tools.run(*command, *repacking(path)).strip().splitlines()[-1].strip("|").split("|")
        if row[0].strip() == str(PROMPT):
            return float(row[7])  # the column "S_TG t/s"
    raise EdgeSteerError("llama-batched-bench printed no row")


def repacking(path: Path) -> list[str]:
    return [] if repacking_is_safe(path) else ["--no-repack"]


def show(path: Path, rows: list[dict[str, object]]) -> None:
    names = list(dict.fromkeys(key for row in rows for key in row if key[0] in "els" and "spread" not in key))
    table = Table(title=f"{path.name}: tokens/s, {rows[0]['threads']} threads, median of {rows[0]['rounds']} rounds")
    table.add_column("")
    for row in rows:
        table.add_column(f"{row['sequences']} sequences", justify="right")
    for name in names:
        if name == "sequences":
            continue
        cells = []
        for row in rows:
            low, high = row.get(f"spread of {name}", (None, None))
            cells.append(f"{row[name]}" + (f" ({low}-{high})" if low else "") if name in row else "")
        table.add_row(name, *cells)
    Console(width=None if Console().is_terminal else 140).print(table)


if __name__ == "__main__":
    main()
