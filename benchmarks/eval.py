"""Evaluation speed: `edge_steer.evaluate` against llama.cpp's own loop, llama-cpp-python and Hugging Face.

64 bundled word problems, each answered in 256 new tokens by random weights of Qwen2.5-0.5B's shape or by MODEL, a GGUF
file, greedy, end tokens ignored. Tokens per second are new tokens by the whole time, prompts included:

    edge-steer         Evaluator: batched, graded, scored, every row on disk
    llama-batched      llama-batched-bench at the same number of sequences and lengths; it chooses no tokens
    llama-cpp-python   Llama.generate, one problem after the other
    hugging face       generate() with a steering hook, at the best of several batch sizes and dtypes; not with MODEL

One run takes a quarter of an hour on two cores. No time is asserted: run it on a quiet machine.
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click
import llama_tools
import random_model
from decode import load_llama, repacking
from rich.console import Console
from rich.table import Table

from edge_steer.core.backend import EngineOptions, available_cores
from edge_steer.core.errors import EdgeSteerError
from edge_steer.evaluation.evaluate import Evaluator
from edge_steer.llama.engine import Engine
from edge_steer.storage.records import Store
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.load import load_task
from edge_steer.tasks.task import Task

BATCH = 512


@click.command(help=__doc__)
@click.argument("model", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--quant", default="Q4_K_M", show_default=True)
@click.option("--problems", default=64, show_default=True)
@click.option("--tokens", default=256, show_default=True, help="New tokens per problem.")
@click.option("--sequences", default=32, show_default=True)
@click.option("--alone", default=8, show_default=True, help="Problems for llama-cpp-python, which takes one at a time.")
@click.option("--rounds", default=2, show_default=True, help="Rounds of edge-steer against llama-batched-bench.")
@click.option("--batches", default="16,64", show_default=True, help="Batch sizes for Hugging Face.")
@click.option("--threads", default=available_cores, type=int, help="Default: the cores this process may use.")
def main(
    model: Path | None,
    quant: str,
    problems: int,
    tokens: int,
    sequences: int,
    alone: int,
    rounds: int,
    batches: str,
    threads: int,
) -> None:
    path = model or random_model.gguf(quant)
    task = load_task("wordproblems", limit=problems)
    task = replace(task, settings=replace(task.settings, max_tokens=tokens))
    with Engine.load(path, EngineOptions(parallel=sequences, threads=threads)) as engine:
        prompts = [engine.chat(task.messages(sample)) for sample in task.samples]
    length = round(statistics.fmean(map(len, prompts)))
    ours, limit = [], []
    for _ in range(rounds):
        ours.append(edge_steer(path, task, sequences, threads))
        limit.append(batched(path, length, tokens, sequences, threads))
    speeds = {"edge-steer": statistics.median(ours), "llama-batched": statistics.median(limit)}
    speeds["llama-cpp-python"] = one_by_one(path, prompts[:alone], tokens, threads)
    batch = None
    if not model:
        speeds["hugging face"], batch = hugging_face(prompts, tokens, batches, threads)

    ratios = {name: speeds["edge-steer"] / speed for name, speed in speeds.items()}
    pairs = [a / b for a, b in zip(ours, limit, strict=True)]
    ratios["llama-batched"] = statistics.median(pairs)
    table = Table(
        "", "tokens/s", "edge-steer is faster by", title=f"{path.stem}, {problems} problems, {tokens} new tokens each"
    )
    for name, speed in speeds.items():
        table.add_row(name, f"{speed:.1f}", f"{ratios[name]:.2f}")
    settings = {
        "model": path.name,
        "prompt tokens": length,
        "sequences": sequences,
        "threads": threads,
        "hugging face batch": batch,
    }
    print(json.dumps({"tokens/s": speeds, "ratios": ratios, "rounds of llama-batched": pairs, **settings}))
    Console(width=None if Console().is_terminal else 110).print(table)


def edge_steer(path: Path, task: Task, sequences: int, threads: int) -> float:
    with (
        tempfile.TemporaryDirectory() as folder,
        Store.open(Path(folder) / "rows.jsonl", {}) as store,
        Graders() as graders,
        Engine.load(path, EngineOptions(parallel=sequences, threads=threads)) as engine,
    ):
        engine._model.ends = lambda _token: False  # type: ignore[method-assign]
        start = time.perf_counter()
        rows = Evaluator(engine, graders, store=store).rows(task)
        seconds = time.perf_counter() - start
    if any(row.tokens != task.settings.max_tokens or row.nll is None for row in rows):
        raise EdgeSteerError("a text ended early or was not scored")
    return sum(row.tokens for row in rows) / seconds


def batched(path: Path, prompt: int, tokens: int, sequences: int, threads: int) -> float:
    command = [llama_tools.tool("llama-batched-bench"), "-m", path, "-t", threads, "-tb", threads, "-b", BATCH]
    command += ["-c", (prompt + tokens) * sequences, "-npp", prompt, "-ntg", tokens, "-npl", sequences]
    for _ in range(10):  # at times the tool ends before its log thread has written the last line
        row = llama_tools.run(*command, *repacking(path)).strip().splitlines()[-1].strip("|").split("|")
        if row[0].strip() == str(prompt):
            return tokens * sequences / float(row[8])  # the column "T s"
    raise EdgeSteerError("llama-batched-bench printed no row")


def one_by_one(path: Path, prompts: list[tuple[int, ...]], tokens: int, threads: int) -> float:
    llama = load_llama(path, threads, max(map(len, prompts)) + tokens)
    start = time.perf_counter()
    for prompt in prompts:
        llama.reset()
        for count, _token in enumerate(llama.generate(prompt, temp=0.0), 1):
            if count == tokens:
                break
    seconds = time.perf_counter() - start
    llama.close()
    return len(prompts) * tokens / seconds


def hugging_face(prompts: list[tuple[int, ...]], tokens: int, batches: str, threads: int) -> tuple[float, str]:
    """Speed at the best batch size and dtype, and which those are."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.json"
        file.write_text(json.dumps(prompts))
        script = Path(__file__).with_name("hf_generate.py")
        sizes = [word for size in batches.split(",") for word in ("--batch-size", size)]
        options = (
            "--tokens",
            tokens,
            "--threads",
            threads,
            "--dtype",
            "float32",
            "--dtype",
            "bfloat16",
            "--trial-tokens",
            64,
            *sizes,
        )
        words = (sys.executable, script, random_model.folder(), file, *options)
        found = json.loads(llama_tools.run(*words).splitlines()[-1])
    print(json.dumps({"hugging face, 64 new tokens, by dtype and batch": found["tokens/s"]}))
    best = found["best"]
    return float(best["tokens/s"]), f"{best['batch size']} in {best['dtype']}"


if __name__ == "__main__":
    main()
