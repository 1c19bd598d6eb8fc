"""How far each quant moves the bundled model and what steering does in it: two tables, a plot and a line of JSON.

Every type is quantised from the F16 weights and read by llama.cpp; the reference is PyTorch in float32 on the same
weights. Both sides score the reference's own answers to problems that no vector or setting was chosen on: unsteered
its unsteered answers, steered its steered ones. All figures are those of edge_steer.parity. First table: size of the
file; KL(reference || quant) in nats, its mean, median and 99th percentile over positions; share of equal first choices;
perplexity over the reference's. Second: what steering adds to the logits, to the residual stream after the last block
and to that after the steered block, quant against reference: cosine and relative length, with 95% intervals over texts,
and whether these are within the type's tolerances. Types marked * are quantised with an importance matrix, measured on
the calibration pairs by benchmarks/imatrix.py.

    python benchmarks/quant_ladder.py -o docs/quants.png
    python benchmarks/quant_ladder.py --layer 3        a middle layer, by the vector of the calibration pairs there
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
import torch
from imatrix import measure

from edge_steer.core.backend import EngineOptions, Request, available_cores
from edge_steer.core.stats import Interval
from edge_steer.core.steering import Steering
from edge_steer.extraction.extract import extract
from edge_steer.llama.engine import Engine
from edge_steer.llama.quantizer import quantize_file
from edge_steer.models import convert, importance
from edge_steer.models.recipe import ModelRecipe, bundled_model
from edge_steer.pairs.pair import read_pairs
from edge_steer.parity.baseline import LiveReference
from edge_steer.parity.measure import measure_texts
from edge_steer.parity.texts import TokenisedText, read_texts
from edge_steer.parity.tolerances import TOLERANCES
from edge_steer.recipes.recipe import VectorRecipe
from edge_steer.reference.model import Reference
from edge_steer.tasks.wordproblems import word_problems
from edge_steer.vectors.read import read

PLAIN = ("F32", "BF16", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K")
IMPORTANT = ("Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "IQ3_XXS", "Q2_K", "IQ2_M", "IQ2_XS", "IQ1_M")
EXACT: dict[str, Any] = {"kv_type": "f32", "flash_attention": "off"}  # how an F32 file is run
VECTOR = Path(__file__).parents[1] / "export" / "abacus" / "dense"
SIDES = {"unsteered": "#0072B2", "steered": "#D55E00"}

Row = dict[str, Any]


@click.command(help=__doc__)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Where to plot, as PNG.")
@click.option("--layer", type=int, help="Steer there.  [default: the recipe's layer and vector]")
@click.option("--problems", default=40, show_default=True)
@click.option("--threads", default=available_cores, type=int, help="Default: the cores this process may use.")
def main(out: Path | None, layer: int | None, problems: int, threads: int) -> None:
    torch.set_num_threads(threads)
    model, recipe = ModelRecipe.load(bundled_model()), VectorRecipe.load(VECTOR)
    reference = Reference.load(model.source)
    calibration = model.folder / "pairs.jsonl"
    if layer is None:
        layer, vector = recipe.layer, read(VECTOR / recipe.vector).vector
    else:
        vector = extract(reference, read_pairs(calibration), layers=[layer])
    steering = (Steering(vector, recipe.strength, (layer,), recipe.phase),)
    live = LiveReference(reference, answers(reference, (), problems), answers(reference, steering, problems), steering)
    with tempfile.TemporaryDirectory() as scratch:
        matrix = Path(scratch) / "imatrix.gguf"
        measure(reference.network, [text.tokens for text in read_texts(calibration, reference)], matrix)
        source = model.gguf or convert.convert(model.source)
        rows = list(ladder(live, steering, source, matrix, threads))
    print_tables(rows)
    click.echo(json.dumps({"layer": layer, "problems": problems, "threads": threads, "rows": rows}))
    if out:
        plot(rows, out)


def answers(reference: Reference, steering: Sequence[Steering], problems: int) -> list[TokenisedText]:
    """The reference's own greedy answers."""
    prompts = [
        reference.chat([{"role": "user", "content": sample.question}]) for sample in word_problems("test", problems)
    ]
    completions = reference.generate([Request(prompt, 200, tuple(steering)) for prompt in prompts])
    return [TokenisedText(p + c.tokens, len(p)) for p, c in zip(prompts, completions, strict=True)]


def ladder(
    live: LiveReference, steering: Sequence[Steering], source: Path, matrix: Path, threads: int
) -> Iterator[Row]:
    """A row for each type: its name and size, both distributions and the effect, as parity has them."""
    important = importance.read(matrix)
    path = matrix.with_name("model.gguf")
    for quant, counts in [*((quant, None) for quant in PLAIN), *((quant, important) for quant in IMPORTANT)]:
        quantize_file(source, path, quant, threads, counts)
        with Engine.load(path, EngineOptions(threads=threads, **EXACT if quant == "F32" else {})) as engine:
            yield {
                "quant": quant,
                "importance": counts is not None,
                "bytes": path.stat().st_size,
                **asdict(measure_texts(live, engine, steering)),
            }


def print_tables(rows: Sequence[Row]) -> None:
    rest = "median | p99 | first choices | perplexity"
    click.echo("| type | MB | " + " | ".join(f"{side}: mean KL | {rest}" for side in SIDES) + " |")
    click.echo("|---|---:|" + "---:|" * 10)
    for row in rows:
        cells = []
        for told in (row[side] for side in SIDES):
            cells += [f"{told['kl'][key]:.2g}" for key in ("mean", "median", "p99")]
            cells += [f"{told['top1']:.2%}", f"x {told['perplexity_ratio']:.4f}"]
        click.echo(f"| {name(row)} | {row['bytes'] / 1e6:.2f} | " + " | ".join(cells) + " |")
    click.echo("\n| type | logits: cosine | length | last block: cosine | length | tolerance: cosine, length |")
    click.echo("|---|---:|---:|---:|---:|---|")
    for row in rows:
        effect = row["effect"]
        cells = [
            ranged(effect[figure], effect[f"{figure}_interval"])
            for figure in ("cosine", "norm", "residual_cosine", "residual_norm")
        ]
        click.echo(f"| {name(row)} | " + " | ".join(cells) + f" | {held(row)} |")
    cosine = min(row["effect"]["placed_cosine"] for row in rows)
    length = max(abs(row["effect"]["placed_norm"] - 1) for row in rows)
    click.echo(f"\nwhat is added after the steered block: cosine at least {cosine:.7f}, length within {length:.1g}\n")


def name(row: Row) -> str:
    return row["quant"] + "*" * row["importance"]


def ranged(value: float, interval: Interval) -> str:
    return f"{value:.4f} ({interval[0]:.4f}..{interval[1]:.4f})"


def held(row: Row) -> str:
    """Whether the intervals of the effect lie within the type's tolerances; - if it has none."""
    allowed, effect = TOLERANCES.get(row["quant"]), row["effect"]
    if not allowed:
        return "-"
    low = min(effect[f"{of}cosine_interval"][0] for of in ("", "residual_"))
    off = max(abs(end - 1) for of in ("", "residual_") for end in effect[f"{of}norm_interval"])
    verdict = "within" if low >= allowed.cosine and off <= allowed.norm else "beyond"
    return f"{verdict} {allowed.cosine:g}, {allowed.norm:g}"


def plot(rows: Sequence[Row], path: Path) -> None:
    """A line for each type, the largest file on top: KL of both sides, and the cosine of the effect."""
    shown = sorted((row for row in rows if row["quant"] != "F32"), key=lambda row: row["bytes"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 6), layout="constrained", sharey=True)
    for at, row in enumerate(shown):
        for shift, (side, colour) in zip((0.12, -0.12), SIDES.items(), strict=True):
            told = row[side]
            draw(left, at + shift, told["kl"]["mean"], told["kl_interval"], colour, filled=not row["importance"])
        effect = row["effect"]
        ends = [1 - end for end in effect["cosine_interval"]]
        draw(right, at, 1 - effect["cosine"], ends, "#333333", filled=not row["importance"])
    left.set_yticks(range(len(shown)), [f"{name(row)}   {row['bytes'] / 1e6:.1f} MB" for row in shown])
    left.set(xlabel="mean KL(reference || file), nats", xscale="log")
    right.set(xlabel="1 - cosine of the effect of steering on logits", xscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    for side, colour in SIDES.items():
        left.plot([], [], "o", color=colour, label=side)
    left.plot([], [], "o", color="#333333", mfc="white", label="*: with an importance matrix")
    left.legend(loc="lower left", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw(axes: Any, at: float, value: float, ends: Sequence[float], colour: str, *, filled: bool) -> None:
    """A point with its interval; a logarithmic axis has no room for what is not above 0."""
    if value > 0:
        axes.plot([max(end, value / 1e3) for end in ends], [at, at], color=colour, lw=1.2, alpha=0.6)
        axes.plot(value, at, "o", ms=6, color=colour, mfc=colour if filled else "white")


if __name__ == "__main__":
    main()
