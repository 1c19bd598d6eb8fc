"""How much each quant moves the bundled model, unsteered and steered: a table, a plot and a line of JSON.

Every type is quantised from the F16 weights and read by llama.cpp; the reference is PyTorch in float32 on the same
weights. Both sides score the reference's own answers to problems that no vector or setting was chosen on: unsteered
its unsteered answers, steered its steered ones. Columns: size of the file; KL(reference || quant) in nats, its mean,
median and 99th percentile over positions; share of equal first choices; perplexity over the reference's. Types marked
* are quantised with an importance matrix, measured on the calibration pairs by benchmarks/imatrix.py.

    python benchmarks/quant_ladder.py -o docs/quants.png
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import matplotlib.pyplot as plt
import numpy as np
import torch
from imatrix import measure

from edge_steer import importance, importers, models
from edge_steer.backend import Request
from edge_steer.baseline import Text
from edge_steer.engine import Engine
from edge_steer.llama import default_threads, quantize_file
from edge_steer.parity import read_texts
from edge_steer.recipes import ModelRecipe, VectorRecipe, bundled_model
from edge_steer.reference import Reference
from edge_steer.stats import kl_divergence, quantiles
from edge_steer.tasks import word_problems
from edge_steer.vector import Array, Steering

PLAIN = ("F32", "BF16", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K")
IMPORTANT = ("Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "IQ3_XXS", "Q2_K", "IQ2_M", "IQ2_XS", "IQ1_M")
VECTOR = Path(__file__).parents[1] / "export" / "abacus" / "dense"


@click.command(help=__doc__)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Where to plot, as PNG.")
@click.option("--problems", default=40, show_default=True)
@click.option("--threads", default=default_threads, type=int, help="Default: the cores this process may use.")
def main(out: Path | None, problems: int, threads: int) -> None:
    torch.set_num_threads(threads)
    model, recipe = ModelRecipe.load(bundled_model()), VectorRecipe.load(VECTOR)
    reference = Reference.load(model.source)
    steered = (Steering(importers.load(VECTOR / recipe.vector), recipe.strength, (recipe.layer,), recipe.phase),)
    texts = {way: answers(reference, steering, problems) for way, steering in (("unsteered", ()), ("steered", steered))}
    exact = {
        way: [reference.logits(text.tokens, text.prompt, steered if way == "steered" else ()) for text in found]
        for way, found in texts.items()
    }
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        source, matrix = model.gguf or models.convert(model.source), Path(scratch) / "imatrix.gguf"
        measure(model.folder, [text.tokens for text in read_texts(model.folder / "pairs.jsonl", reference)], matrix)
        important = importance.read(matrix)
        for quant, counts in [*((quant, None) for quant in PLAIN), *((quant, important) for quant in IMPORTANT)]:
            path = Path(scratch) / "model.gguf"
            quantize_file(source, path, quant, threads, counts)
            row: dict[str, object] = {"quant": quant + "*" * bool(counts), "bytes": path.stat().st_size}
            with Engine.load(path, threads=threads) as engine:
                for way, found in texts.items():
                    steering = steered if way == "steered" else ()
                    row[way] = compare(exact[way], [engine.logits(t.tokens, t.prompt, steering) for t in found], found)
            rows.append(row)
    print_table(rows)
    click.echo(json.dumps({"problems": problems, "threads": threads, "rows": rows}))
    if out:
        plot(rows, out)


def answers(reference: Reference, steering: Sequence[Steering], problems: int) -> list[Text]:
    """The reference's own greedy answers."""
    prompts = [reference.chat(sample.messages) for sample in word_problems("test", problems)]
    completions = reference.generate([Request(prompt, 200, tuple(steering)) for prompt in prompts])
    return [Text(p + c.tokens, len(p)) for p, c in zip(prompts, completions, strict=True) if c.tokens]


def compare(exact: Sequence[Array], found: Sequence[Array], texts: Sequence[Text]) -> dict[str, float]:
    """Figures over all positions of the answers."""
    divergences = np.concatenate([kl_divergence(ours, theirs) for ours, theirs in zip(exact, found, strict=True)])
    same = np.concatenate([a.argmax(1) == b.argmax(1) for a, b in zip(exact, found, strict=True)])
    ours, theirs = (
        float(np.mean(np.concatenate([nll(r, t) for r, t in zip(side, texts, strict=True)]))) for side in (exact, found)
    )
    figures = quantiles(divergences)
    return {
        "positions": len(divergences),
        "mean": figures["mean"],
        "median": figures["median"],
        "p99": figures["p99"],
        "top1": float(same.mean()),
        "ppl_ratio": float(np.exp(theirs - ours)),
    }


def nll(rows: Array, text: Text) -> Array:
    """Negative log-likelihood of each token of the answer, in nats."""
    chosen = np.asarray(text.tokens[text.prompt :])
    wide = rows[: len(chosen)].astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    result: Array = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(chosen)), chosen]
    return result


def print_table(rows: Sequence[dict[str, object]]) -> None:
    names = ("KL mean", "median", "p99", "first choices", "perplexity")
    click.echo(
        "| quant | MB | "
        + " | ".join(f"{way}: {n}" if not i else n for way in ("unsteered", "steered") for i, n in enumerate(names))
        + " |"
    )
    click.echo("|---|" + "---:|" * 11)
    for row in rows:
        cells = []
        for way in ("unsteered", "steered"):
            f = row[way]
            cells += [f"{f['mean']:.2g}", f"{f['median']:.2g}", f"{f['p99']:.2g}", f"{f['top1']:.2%}"]
            cells.append(f"x {f['ppl_ratio']:.4f}")
        click.echo(f"| {row['quant']} | {row['bytes'] / 1e6:.2f} | " + " | ".join(cells) + " |")


def plot(rows: Sequence[dict[str, object]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for way, colour in (("unsteered", "#0072B2"), ("steered", "#D55E00")):
        for marked, marker in ((False, "o"), (True, "^")):
            chosen = [row for row in rows if row["quant"].endswith("*") == marked and row["quant"] != "F32"]
            label = f"{way}, importance matrix" if marked else way
            axes.plot(
                [r["bytes"] / 1e6 for r in chosen],
                [r[way]["mean"] for r in chosen],
                marker,
                ms=6,
                color=colour,
                mfc="none" if marked else colour,
                label=label,
            )
    for row in rows:
        if row["quant"] != "F32":
            low = min(row["unsteered"]["mean"], row["steered"]["mean"])
            axes.annotate(
                row["quant"].rstrip("*"),
                (row["bytes"] / 1e6, low),
                (0, -11),
                textcoords="offset points",
                ha="center",
                fontsize=6,
                color="#555555",
            )
    axes.set(xlabel="file in MB", ylabel="mean KL(reference || quant), nats", xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
