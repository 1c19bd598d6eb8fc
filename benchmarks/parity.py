"""edge-steer's divergence statistics against llama-perplexity's, unsteered and steered, on the same base file and GGUF.

statistics  edge-steer writes the PyTorch reference's log-probabilities as a base file of llama-perplexity, once
            unsteered and once steered. llama-perplexity --kl-divergence compares the GGUF with it, steered by
            --control-vector-scaled; edge-steer computes the same figures from its own logits of the GGUF on the same
            file ("on the base file") and from the reference's logits at full precision ("exact"). The status is 1 if
            a figure on the base file is further from the tool's than its last printed digit, 1e-6 and 1e-5 of the
            value: percentiles are interpolated in float32 there.
speed       seconds of llama-perplexity --kl-divergence and of edge-steer on the same tokens and file, loading the
            model included: from edge-steer's saved reference, which is what `parity --saved-reference` does, and from
            the tool's base file. KV cache and attention are what both do unasked. The rounds take turns.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click
import llama_tools
import numpy as np
import perplexity_base
import random_model
from rich.console import Console
from rich.table import Table

from edge_steer.core.backend import EngineOptions, available_cores
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.stats import Floats, logsumexp
from edge_steer.core.steering import Steering
from edge_steer.core.vector import ModelIdentity
from edge_steer.llama.engine import Engine
from edge_steer.llama.library import repacking_is_safe
from edge_steer.llama.model import LlamaModel
from edge_steer.models import quantize
from edge_steer.parity import saved as parity_saved
from edge_steer.parity.baseline import LiveReference, Piece, SteeringEffect, SteeringRecord
from edge_steer.parity.divergence import Divergence, Positions, summarise
from edge_steer.parity.measure import measure_positions
from edge_steer.parity.saved import SavedReference
from edge_steer.parity.texts import TokenisedText
from edge_steer.recipes.recipe import VectorRecipe
from edge_steer.reference.model import Reference
from edge_steer.tasks import wordproblems
from edge_steer.vectors import read

ROOT = Path(__file__).parents[1]
ABACUS = ROOT / "models" / "abacus"
DENSE = ROOT / "export" / "abacus" / "dense" / "vector.gguf"
EXACT = ("-ctk", "f32", "-ctv", "f32", "-fa", "off")
NUMBER = r" *: *(-?[0-9.]+)"
PERCENTILES = (0.1, 1, 5, 10, 25, 75, 90, 95, 99, 99.9)  # of delta p
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
    "p50 dp %": rf"Median +Δp{NUMBER}",
    **{f"p{share:g} dp %": rf"{share:.1f}% +Δp{NUMBER}".replace(".", r"\.", 1) for share in PERCENTILES},
    "max dp %": rf"Maximum Δp{NUMBER}",
    "min dp %": rf"Minimum Δp{NUMBER}",
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
@click.option("--model", default=ABACUS, type=click.Path(exists=True, path_type=Path))
@click.option("--quants", default="F32,F16,Q8_0,Q6_K,Q4_K_M", show_default=True)
@click.option("--length", default=256, show_default=True, help="Tokens of a chunk.")
@click.option("--chunks", default=8, show_default=True)
@click.option("--threads", type=int, default=available_cores, show_default="the cores there are")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of tables.")
def statistics(vector: Path, model: Path, quants: str, length: int, chunks: int, threads: int, as_json: bool) -> None:
    """Every figure of llama-perplexity --kl-divergence, from it and from edge-steer."""
    steering = steered_by(vector)
    ((layer,), strength) = steering[0].layers, steering[0].strength
    flags = ("--control-vector-scaled", f"{vector}:{strength}", "--control-vector-layer-range", layer, layer)
    reference = Reference.load(model, threads=threads)
    texts = chunked(reference, length, chunks)
    result: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, given, extra in (("unsteered", (), ()), ("steered", steering, flags)):
            base = Path(scratch, name)
            save(base, reference, texts, given)
            for quant in quants.split(","):
                path = quantize.gguf_for(model, quant)
                printed = perplexity(path, base, length, threads, (*extra, *EXACT, "--no-repack"))
                model_file = LlamaModel(path, repack=False)
                options = EngineOptions(kv_type="f32", flash_attention="off", threads=threads)
                with Engine(model_file, options) as engine:
                    live = LiveReference(reference, texts, texts, given)
                    exact = summarise(measure_positions(live, engine, given, steered=bool(given)))
                    rounded = summarise(on_base(base, engine, texts, given))
                result[f"{quant} {name}"] = {
                    "llama-perplexity": parse(printed),
                    "on the base file": figures(rounded),
                    "exact": figures(exact),
                }
    apart = {title: differing(columns) for title, columns in result.items()}
    if as_json:
        click.echo(json.dumps({"figures": result, "differing": apart}))
    else:
        for title, columns in result.items():
            table = Table("", *columns, "difference", title=title)
            for figure, printed in columns["llama-perplexity"].items():
                values = [column[figure] for column in columns.values()]
                table.add_row(figure, *(f"{value:.6f}" for value in values), f"{values[1] - printed:+.1e}")
            Console(width=110).print(table)
    if any(apart.values()):
        raise click.ClickException(f"the two differ: {apart}")


@main.command()
@click.option("--model", default=ABACUS, type=click.Path(exists=True, path_type=Path))
@click.option("--large", is_flag=True, help="In place of --model random weights of Qwen2.5-0.5B's shape.")
@click.option("--quant", default="Q4_K_M", show_default=True)
@click.option("--length", default=512, show_default=True, help="Tokens of a chunk.")
@click.option("--chunks", default=40, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", type=int, default=available_cores, show_default="the cores there are")
@click.option("--json", "as_json", is_flag=True)
def speed(
    model: Path, large: bool, quant: str, length: int, chunks: int, rounds: int, threads: int, as_json: bool
) -> None:
    """Seconds to compare one GGUF with a reference that is saved already, by both."""
    model = random_model.folder() if large else model
    path = quantize.gguf_for(model, quant)
    repack = () if repacking_is_safe(path) else ("--no-repack",)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        base, saved = Path(scratch, "base"), Path(scratch, "saved")
        reference = Reference.load(model, threads=threads)
        texts = chunked(reference, length, chunks)
        save(base, reference, texts, ())
        parity_saved.save(saved, LiveReference(reference, texts, (), ()), {}, {})
        del reference

        def compared(found: Callable[[Engine], list[Positions]]) -> None:
            with Engine.load(path, EngineOptions(threads=threads)) as engine:
                summarise(found(engine))

        contestants: dict[str, Callable[[], object]] = {
            "llama-perplexity": lambda: perplexity(path, base, length, threads, repack),
            "edge-steer": lambda: compared(
                lambda engine: measure_positions(SavedReference(saved), engine, (), steered=False)
            ),
            "edge-steer on the base file": lambda: compared(lambda engine: on_base(base, engine, texts, ())),
        }
        click.echo("the reference is saved, measuring", err=True)
        for round_ in range(-1, rounds):  # the round before the first warms up
            for name, run in contestants.items():
                begun = time.perf_counter()
                run()
                if round_ >= 0:
                    seconds.setdefault(name, []).append(time.perf_counter() - begun)
    tool = seconds["llama-perplexity"]
    ratios = {name: [b / a for a, b in zip(tool, found, strict=True)] for name, found in seconds.items()}
    if as_json:
        click.echo(json.dumps({"seconds": seconds, "ratios": ratios, "tokens": length * chunks, "model": path.name}))
        return
    table = Table("", "seconds", "ratio to llama-perplexity", title=f"{path.name}, {chunks} chunks of {length} tokens")
    for name, found in seconds.items():
        low, middle, high = min(ratios[name]), numbers.median(ratios[name]), max(ratios[name])
        table.add_row(name, f"{numbers.median(found):.2f}", f"{middle:.2f} ({low:.2f}-{high:.2f})")
    Console(width=110).print(table)


@main.command()
@click.argument("gguf", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--positions", "count", default=4096, show_default=True)
@click.option("--threads", type=int, default=available_cores, show_default="the cores there are")
@click.option("--json", "as_json", is_flag=True)
def memory(gguf: Path | None, count: int, threads: int, as_json: bool) -> None:
    """Peak memory above the loaded model, on one long text against a made-up reference.

    Default GGUF: random weights of Qwen2.5-0.5B's shape in Q4_K_M.
    """
    gguf = gguf or random_model.gguf()
    rng = np.random.default_rng(0)
    with Engine.load(gguf, EngineOptions(threads=threads)) as engine:
        vocabulary = engine.logits([0], 1).shape[1]
        text = TokenisedText(tuple(rng.integers(0, vocabulary, count + 1).tolist()), 1)
        before = resident("VmRSS")
        begun = time.perf_counter()
        [found] = measure_positions(MadeUp(engine.model, text, vocabulary), engine, (), steered=False)
        told = {
            "vocabulary": vocabulary,
            "positions": len(found),
            "MB above the model": (resident("VmHWM") - before) / 1e6,
            "seconds": time.perf_counter() - begun,
        }
    click.echo(json.dumps(told) if as_json else ", ".join(f"{name}: {value:,.0f}" for name, value in told.items()))


class BaseFile:
    """A base file as a reference, read once from begin to end: what is up to -16 is left out as by the tool.

    told: of each text read, piece by piece, the negative log-likelihoods that stand in the file.
    """

    def __init__(self, model: ModelIdentity, path: Path, texts: Sequence[TokenisedText]) -> None:
        self.model, self.unsteered = model, texts
        self.steered: list[TokenisedText] = []
        self.steering: list[SteeringRecord] = []
        self.exact_backend = None
        self.told: list[list[Floats]] = []
        _, self._chunks = perplexity_base.read(path)

    def rows(self, index: int, steered: bool) -> Iterator[Piece]:
        following = self.unsteered[index].following
        self.told.append([])
        for rows in next(self._chunks):
            chosen, following = following[: len(rows)], following[len(rows) :]
            self.told[-1].append(-rows[np.arange(len(rows)), chosen].astype(np.float64))
            rows[rows <= -16] = -np.inf
            yield rows, np.zeros(len(rows))

    def effect(self, index: int) -> SteeringEffect:
        raise NotImplementedError


class MadeUp:
    """A reference of random logits, in pieces as large as PyTorch's."""

    def __init__(self, model: ModelIdentity, text: TokenisedText, vocabulary: int) -> None:
        self.model, self.unsteered, self._vocabulary = model, [text], vocabulary
        self.steered: list[TokenisedText] = []
        self.steering: list[SteeringRecord] = []
        self.exact_backend = None

    def rows(self, index: int, steered: bool) -> Iterator[Piece]:
        from edge_steer.reference.model import LOGITS_BYTES

        rng, left = np.random.default_rng(1), len(self.unsteered[index].following)
        at_once = LOGITS_BYTES // (4 * self._vocabulary)
        while left:
            logits = rng.standard_normal((min(left, at_once), self._vocabulary), dtype=np.float32)
            left -= len(logits)
            yield logits, logsumexp(logits)

    def effect(self, index: int) -> SteeringEffect:
        raise NotImplementedError


def steered_by(vector: Path) -> list[Steering]:
    """The vector as the recipe beside it has it."""
    recipe = VectorRecipe.load(vector.parent)
    return [Steering(read.load(vector), recipe.strength, (recipe.layer,))]


def chunked(reference: Reference, length: int, chunks: int) -> list[TokenisedText]:
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
    return [TokenisedText((*bos, *chunk[len(bos) :]), perplexity_base.prompt_of(length)) for chunk in cut]


def save(base: Path, reference: Reference, texts: Sequence[TokenisedText], steering: Sequence[Steering]) -> None:
    chunks = [text.tokens for text in texts]
    rows = (reference.logit_rows(text.tokens[:-1], text.prompt, steering) for text in texts)
    vocabulary = reference.logits(chunks[0][:1], 1).shape[1]
    perplexity_base.write(base, chunks, vocabulary, rows)


def on_base(
    base: Path, engine: Engine, texts: Sequence[TokenisedText], steering: Sequence[Steering]
) -> list[Positions]:
    """Our figures from the base file's own log-probabilities."""
    reference = BaseFile(engine.model, base, texts)
    found = measure_positions(reference, engine, steering, steered=False)
    told = map(np.concatenate, reference.told)
    return [replace(text, reference_nll=nll) for text, nll in zip(found, told, strict=True)]


def perplexity(path: Path, base: Path, length: int, threads: int, flags: Sequence[object]) -> str:
    program = llama_tools.tool("llama-perplexity")
    common = ("-m", path, "-c", length, "-b", length, "-t", threads, "--kl-divergence-base", base, "--no-warmup")
    return llama_tools.run(program, "--kl-divergence", *common, *flags)


def parse(printed: str) -> dict[str, float]:
    found = {}
    for name, words in PRINTED.items():
        match = re.search(rf"^ *{words.lstrip()}", printed, re.MULTILINE)
        if not match:
            raise EdgeSteerError(f"llama-perplexity printed no {name}; it ended with: {printed[-500:]!r}")
        found[name] = float(match[match.lastindex or 1])
    rise, fall = found.pop("max dp %"), found.pop("min dp %")
    return {**found, "max |dp| %": max(rise, -fall)}


def differing(columns: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The figures in which edge-steer differs from the tool by more than printing and float32 percentiles leave."""
    printed, ours = columns["llama-perplexity"], columns["on the base file"]

    def allowed(name: str) -> float:
        half_a_digit = 0.5e-3 if name.endswith("%") else 0.5e-6
        return half_a_digit + 1e-6 + 1e-5 * abs(printed[name])

    return [name for name in printed if not abs(ours[name] - printed[name]) <= allowed(name)]


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
        "p50 dp %": 100 * change["p50"],
        **{f"p{share:g} dp %": 100 * change[f"p{share:g}"] for share in PERCENTILES},
        "max |dp| %": 100 * change["max"],
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
