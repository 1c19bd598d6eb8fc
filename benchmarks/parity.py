"""edge-steer's divergence statistics against llama-perplexity's, unsteered and steered, on the same base file and GGUF.

statistics  edge-steer writes the PyTorch reference's log-probabilities as a base file of llama-perplexity, once
            unsteered and once steered. llama-perplexity --kl-divergence compares the GGUF with it, steered by
            --control-vector-scaled; edge-steer computes the same figures from its own logits of the GGUF on the same
            file ("on the base file") and from the reference's logits at full precision ("exact").
speed       seconds of llama-perplexity --kl-divergence, loading the model included and not, and of edge-steer, on the
            same tokens; the rounds take turns.
memory      peak memory above the loaded model while a GGUF is compared on one text of --positions tokens.

Neither side lays quantised weights out anew for the CPU (repacking) in `statistics`: that changes the logits of this
model by up to 0.2. The phase is "all", the only one the tool has. Needs cmake and a C++ compiler (llama_tools.py).
"""

import itertools
import json
import os
import random
import re
import statistics as numbers
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import llama_tools
import numpy as np
from rich.console import Console
from rich.table import Table

from edge_steer import export, models, perplexity_base, wordproblems
from edge_steer.baseline import Live, Piece, Shift, Text
from edge_steer.divergence import Divergence, Positions, compare, summarise
from edge_steer.engine import Engine
from edge_steer.errors import EdgeSteerError
from edge_steer.llama import LlamaModel, default_threads, repacking_is_safe
from edge_steer.parity import positions
from edge_steer.recipes import VectorRecipe
from edge_steer.reference import Reference
from edge_steer.stats import logsumexp
from edge_steer.vector import ModelIdentity, Steering

ROOT = Path(__file__).parents[1]
DENSE = ROOT / "export" / "abacus" / "dense" / "vector.gguf"
SETTINGS = ("-ctk", "f32", "-ctv", "f32", "-fa", "off", "--no-warmup")
NUMBER = r" *: *(-?[0-9.]+)"
PRINTED = {
    "mean KL": rf"Mean +KLD{NUMBER}",
    "median KL": rf"Median +KLD{NUMBER}",
    "p90 KL": rf"90\.0% +KLD{NUMBER}",
    "p99 KL": rf"99\.0% +KLD{NUMBER}",
    "p99.9 KL": rf"99\.9% +KLD{NUMBER}",
    "max KL": rf"Maximum KLD{NUMBER}",
    "error of mean KL": rf"Mean +KLD{NUMBER} ± +([0-9.]+)",
    "same top %": rf"Same top p{NUMBER}",
    "mean dp %": rf"Mean +Δp{NUMBER}",
    "RMS dp %": rf"RMS Δp +{NUMBER[2:]}",
    "p1 dp %": rf" 1\.0% +Δp{NUMBER}",
    "p50 dp %": rf"Median +Δp{NUMBER}",
    "p99 dp %": rf"99\.0% +Δp{NUMBER}",
    "PPL": rf"Mean PPL\(Q\){NUMBER}",
    "PPL of reference": rf"Mean PPL\(base\){NUMBER}",
    "PPL ratio": rf"Mean PPL\(Q\)/PPL\(base\){NUMBER}",
    "error of PPL ratio": rf"Mean PPL\(Q\)/PPL\(base\){NUMBER} ± +([0-9.]+)",
}


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
@click.option("--vector", type=click.Path(path_type=Path), default=DENSE)
@click.option("--model", default=ROOT / "models" / "abacus", type=click.Path(exists=True, path_type=Path))
@click.option("--quants", default="F32,F16,Q8_0,Q4_K_M", show_default=True)
@click.option("--length", default=256, show_default=True, help="Tokens of a chunk.")
@click.option("--chunks", default=8, show_default=True)
@click.option("--threads", type=int, default=default_threads, show_default="the cores there are")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of tables.")
def statistics(vector: Path, model: Path, quants: str, length: int, chunks: int, threads: int, as_json: bool) -> None:
    """Every figure of llama-perplexity --kl-divergence, from it and from edge-steer."""
    recipe = VectorRecipe.load(vector.parent)
    steering = [Steering(export.load(vector), recipe.strength, (recipe.layer,))]
    flags = ("--control-vector-scaled", f"{vector}:{recipe.strength}",
             "--control-vector-layer-range", recipe.layer, recipe.layer)  # fmt: skip
    reference = Reference.load(model, threads=threads)
    texts = chunked(reference, length, chunks)
    result: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, given, extra in (("unsteered", (), ()), ("steered", steering, flags)):
            base = Path(scratch, name)
            save(base, reference, texts, given)
            for quant in quants.split(","):
                path = models.gguf_for(model, quant)
                printed = perplexity(path, base, length, threads, (*extra, "--no-repack"))
                model_file = LlamaModel(path, repack=False)
                with Engine(model_file, kv_type="f32", flash_attention="off", threads=threads) as engine:
                    live = Live(reference, texts, texts, given)
                    exact = summarise(positions(live, engine, given, steered=bool(given)))
                    rounded = summarise(list(on_base(base, engine, texts, given)))
                result[f"{quant} {name}"] = {
                    "llama-perplexity": parse(printed),
                    "on the base file": figures(rounded),
                    "exact": figures(exact),
                }
    if as_json:
        click.echo(json.dumps(result))
        return
    for title, columns in result.items():
        table = Table("", *columns, "difference", title=title)
        for figure in PRINTED:
            values = [column[figure] for column in columns.values()]
            table.add_row(figure, *(f"{value:.6f}" for value in values), f"{values[1] - values[0]:+.1e}")
        Console(width=110).print(table)


@main.command()
@click.option("--model", default=ROOT / "models" / "abacus", type=click.Path(exists=True, path_type=Path))
@click.option("--quant", default="Q4_K_M", show_default=True)
@click.option("--length", default=512, show_default=True, help="Tokens of a chunk.")
@click.option("--chunks", default=8, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", type=int, default=default_threads, show_default="the cores there are")
@click.option("--json", "as_json", is_flag=True)
def speed(model: Path, quant: str, length: int, chunks: int, rounds: int, threads: int, as_json: bool) -> None:
    """Seconds to compare one GGUF with a reference that is saved already, by both."""
    path = models.gguf_for(model, quant)
    reference = Reference.load(model, threads=threads)
    texts = chunked(reference, length, chunks)
    seconds: dict[str, list[float]] = {"llama-perplexity": [], "edge-steer": []}
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch, "base")
        save(base, reference, texts, ())
        for _ in range(rounds):
            begun = time.perf_counter()
            perplexity(path, base, length, threads, () if repacking_is_safe(path) else ("--no-repack",))
            seconds["llama-perplexity"].append(time.perf_counter() - begun)
            begun = time.perf_counter()
            with Engine.load(path, kv_type="f32", flash_attention="off", threads=threads) as engine:
                summarise(list(on_base(base, engine, texts, ())))
            seconds["edge-steer"].append(time.perf_counter() - begun)
    medians = {name: numbers.median(found) for name, found in seconds.items()}
    ratio = numbers.median(b / a for a, b in zip(*seconds.values(), strict=True))
    if as_json:
        click.echo(json.dumps({"seconds": medians, "ratio": ratio, "tokens": length * chunks, "model": path.name}))
        return
    click.echo(f"{path.name}, {chunks} chunks of {length} tokens, {threads} threads, median of {rounds} rounds:")
    click.echo(", ".join(f"{name} {value:.2f} s" for name, value in medians.items()) + f"; ratio {ratio:.2f}")


@main.command()
@click.argument("gguf", type=click.Path(exists=True, path_type=Path))
@click.option("--positions", "count", default=4096, show_default=True)
@click.option("--threads", type=int, default=default_threads, show_default="the cores there are")
@click.option("--json", "as_json", is_flag=True)
def memory(gguf: Path, count: int, threads: int, as_json: bool) -> None:
    """Peak memory above the loaded model, on one long text against a made-up reference."""
    rng = np.random.default_rng(0)
    with Engine.load(gguf, threads=threads) as engine:
        vocabulary = engine.logits([0], 1).shape[1]
        text = Text(tuple(rng.integers(0, vocabulary, count + 1).tolist()), 1)
        before = resident("VmRSS")
        begun = time.perf_counter()
        [found] = positions(MadeUp(engine.model, text, vocabulary), engine, (), steered=False)
        told = {
            "vocabulary": vocabulary,
            "positions": len(found),
            "MB above the model": (resident("VmHWM") - before) / 1e6,
            "seconds": time.perf_counter() - begun,
        }
    click.echo(json.dumps(told) if as_json else ", ".join(f"{name}: {value:,.0f}" for name, value in told.items()))


class MadeUp:
    """A reference of random logits, in pieces as large as PyTorch's."""

    def __init__(self, model: ModelIdentity, text: Text, vocabulary: int) -> None:
        self.model, self.unsteered, self._vocabulary = model, [text], vocabulary
        self.steered: list[Text] = []
        self.steering: list[dict[str, object]] = []

    def rows(self, index: int, steered: bool) -> Iterator[Piece]:
        from edge_steer.reference import LOGITS_BYTES

        rng, left = np.random.default_rng(1), len(self.unsteered[index].following)
        at_once = LOGITS_BYTES // (4 * self._vocabulary)
        while left:
            logits = rng.standard_normal((min(left, at_once), self._vocabulary), dtype=np.float32)
            left -= len(logits)
            yield logits, logsumexp(logits)

    def shift(self, index: int) -> Shift:
        raise NotImplementedError


def chunked(reference: Reference, length: int, chunks: int) -> list[Text]:
    """Word problems with their solutions, cut into chunks as llama-perplexity cuts a text."""
    rng = random.Random(0)
    told = (
        f"{problem.question}\n\n{wordproblems.solution(problem, rng.random(), rng)}\n\n"
        for problem in wordproblems.problems("test")
    )
    bos = reference.encode("")
    tokens: list[int] = []
    while len(tokens) < length * chunks:
        tokens += reference.encode("".join(itertools.islice(told, 50)), start=False)
    cut = [tokens[first : first + length] for first in range(0, length * chunks, length)]
    return [Text((*bos, *chunk[len(bos) :]), perplexity_base.prompt_of(length)) for chunk in cut]


def save(base: Path, reference: Reference, texts: Sequence[Text], steering: Sequence[Steering]) -> None:
    chunks = [text.tokens for text in texts]
    rows = (reference.logit_rows(text.tokens[:-1], text.prompt, steering) for text in texts)
    vocabulary = reference.logits(chunks[0][:1], 1).shape[1]
    perplexity_base.write(base, chunks, vocabulary, rows)


def on_base(base: Path, engine: Engine, texts: Sequence[Text], steering: Sequence[Steering]) -> Iterator[Positions]:
    """Our figures from the file's own log-probabilities, those up to -16 left out as the tool does."""
    _, saved = perplexity_base.read(base)
    for text, rows in zip(texts, saved, strict=True):
        kept = np.where(rows > -16, rows, -np.inf).astype(np.float32)
        parts, first = [], 0
        for logits in engine.logit_rows(text.tokens, text.prompt, steering):
            logits = logits[: len(rows) - first]
            part = slice(first, first + len(logits))
            chosen = text.following[part]
            found = compare(kept[part], np.zeros(len(logits)), logits, chosen)
            told = -rows[part][np.arange(len(logits)), chosen]
            parts.append(Positions(found.kl, found.same, found.nll, told))
            first += len(logits)
        yield Positions.joined(parts)


def perplexity(path: Path, base: Path, length: int, threads: int, flags: Sequence[object]) -> str:
    program = llama_tools.tool("llama-perplexity")
    common = ("-m", path, "-c", length, "-b", length, "-t", threads, "--kl-divergence-base", base, *SETTINGS)
    return llama_tools.run(program, "--kl-divergence", *common, *flags)


def parse(printed: str) -> dict[str, float]:
    found = {}
    for name, words in PRINTED.items():
        match = re.search(rf"^ *{words.lstrip()}", printed, re.MULTILINE)
        if not match:
            raise EdgeSteerError(f"llama-perplexity printed no {name}")
        found[name] = float(match[match.lastindex or 1])
    return found


def figures(found: Divergence) -> dict[str, float]:
    """Ours under the names of PRINTED."""
    kl, change = found.kl, found.delta_p
    return {
        "mean KL": kl["mean"],
        "median KL": kl["median"],
        "p90 KL": kl["p90"],
        "p99 KL": kl["p99"],
        "p99.9 KL": kl["p99.9"],
        "max KL": kl["max"],
        "error of mean KL": found.kl_error,
        "same top %": 100 * found.top1,
        "mean dp %": 100 * change["mean"],
        "RMS dp %": 100 * change["rms"],
        "p1 dp %": 100 * change["p1"],
        "p50 dp %": 100 * change["p50"],
        "p99 dp %": 100 * change["p99"],
        "PPL": found.perplexity,
        "PPL of reference": found.reference_perplexity,
        "PPL ratio": found.perplexity_ratio,
        "error of PPL ratio": found.ratio_error,
    }


def resident(key: str) -> int:
    """Bytes, from this process's status; VmHWM is the most so far."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
