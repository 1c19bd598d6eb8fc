"""What real_experiment.py left in a folder, as one summary JSON, tables in Markdown and figures.

    python benchmarks/real_report.py results/real/NAME...

writes docs/real/NAME.json and its figures, and prints the tables of docs/real.md. Paired figures are against the
unsteered model on the problems that both answered. Of several folders docs/real/accuracy.png shows accuracy over steps
and density.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
from real_experiment import FORMAT
from real_settings import MAIN

from edge_steer.core.stats import cosine
from edge_steer.core.vector import SteeringVector
from edge_steer.evaluation.figures import Figure, compare, figure_text, summarise
from edge_steer.evaluation.plots import plot_accuracy, plot_likelihoods
from edge_steer.evaluation.sweep_plots import draw_sweep
from edge_steer.evaluation.sweep_results import read_partial
from edge_steer.evaluation.units import read_rows
from edge_steer.papers.families import accuracy_point
from edge_steer.storage.files import write_json
from edge_steer.tasks.rows import Row
from edge_steer.vectors.read import load as load_vector

DOCS = Path("docs/real")
SWEPT = ("dense", "terse")
NLL_SIDES = {
    "own solutions": ("dense", 1),
    "dense own samples": ("dense", 0),
    "Qwen2.5-1.5B's solutions": ("teacher", 1),
    "their rewrites": ("teacher", 0),
}
CONTROL_COLUMNS = ("tokens", "steps", "density", "sentence", "nll")
COLUMNS = ("tokens", "steps", "density", "sentence", "calculations", "nll")


def summary_of(folder: Path) -> dict[str, Any]:
    """Everything that docs/real.md says of one model."""
    test, header = test_rows(folder)
    unsteered = test["unsteered"]
    vectors = {path.stem: load_vector(path) for path in sorted(folder.glob("*.safetensors"))}
    dev = {
        path.parent.name.removeprefix("dev-"): json.loads(path.read_text("utf-8"))
        for path in sorted(folder.glob("dev-*/summary.json"))
    }
    return {
        "model": header["model"],
        "backend": header["backend"],
        "versions": header["versions"],
        "pairs": json.loads((folder / "pairs.json").read_text("utf-8")),
        "vectors": json.loads((folder / "vectors.json").read_text("utf-8")),
        "cosines": cosines(vectors),
        "dev": {
            kind: {key: of_kind[key] for key in ("task", "phase", "cells", "chosen", "test")}
            for kind, of_kind in dev.items()
        },
        "coarse": {
            kind: json.loads(path.read_text("utf-8"))["cells"]
            for kind in SWEPT
            if (path := folder / f"coarse-{kind}" / "summary.json").is_file()
        },
        "perplexity": {
            path.parent.name: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*/perplexity.json"))
        },
        "test": {
            method: {
                "figures": asdict(summarise(rows)),
                "against unsteered": None if method == "unsteered" else asdict(compare(unsteered, rows)),
            }
            for method, rows in test.items()
        },
    }


def test_rows(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of every method over all blocks, and the header of the first."""
    rows: dict[str, list[Row]] = {}
    headers = []
    for path in (*sorted(folder.glob("test-*.jsonl")), *sorted(folder.glob("controls-*.jsonl"))):
        header, of_block = read_rows(path, FORMAT)
        headers.append(dict(header))
        for row in of_block:
            rows.setdefault(row.method, []).append(row)
    methods = dict.fromkeys(method for header in headers for method in header["methods"])
    return {method: rows[method] for method in methods}, headers[0]


def cosines(vectors: Mapping[str, SteeringVector]) -> dict[str, dict[int, float]]:
    """Of every two vectors, layer by layer."""
    return {
        f"{a}, {b}": {
            layer: cosine(vectors[a].directions[layer], vectors[b].directions[layer]) for layer in vectors[a].layers
        }
        for a, b in combinations(vectors, 2)
    }


def tables(summary: Mapping[str, Any], test: Mapping[str, Sequence[Row]]) -> str:
    """The tables of the page: pairs and vectors, cosines, test; methods that were asked less have one of their own."""
    most = len(test["unsteered"])
    main = {method: rows for method, rows in test.items() if len(rows) == most}
    controls = {method: rows for method, rows in test.items() if len(rows) < most}
    of_test = [result_table(main), *([control_table(test["unsteered"], controls)] if controls else [])]
    return "\n\n".join((vector_table(summary), cosine_table(summary), *of_test))


def vector_table(summary: Mapping[str, Any]) -> str:
    """For each kind of pairs: how many, and of layers across the depth the norm and the AUC of held-out pairs."""
    rows = []
    for kind, layers in summary["vectors"].items():
        some = [layers[len(layers) * part // 4] for part in (1, 2, 3)]
        norms = ", ".join(f"{layer['relative norm']:.3f}" for layer in some)
        aucs = ", ".join("" if layer["auc"] is None else f"{layer['auc']:.2f}" for layer in some)
        rows.append([kind, str(summary["pairs"]["pairs"][kind]), norms, aucs])
    quarters = ", ".join(str(len(layers) * part // 4) for part in (1, 2, 3))
    return markdown(["vector", "pairs", f"norm over the states', layers {quarters}", "AUC of held-out pairs"], rows)


def cosine_table(summary: Mapping[str, Any]) -> str:
    """Cosine of the dense and the teacher's vector with every other one, at every third layer."""
    pairs = {
        name: of_layer for name, of_layer in summary["cosines"].items() if {"dense", "teacher"} & {*name.split(", ")}
    }
    layers = [layer for layer in next(iter(pairs.values())) if int(layer) % 3 == 0]
    rows = [[name, *(f"{of_layer[layer]:.2f}" for layer in layers)] for name, of_layer in pairs.items()]
    return markdown(["cosine at layer", *(str(layer) for layer in layers)], rows)


def result_table(test: Mapping[str, Sequence[Row]]) -> str:
    """A row a method: accuracy, and the figures minus the unsteered ones on the same problems, with 95% intervals.

    The unsteered row has the figures themselves. Lost and gained are right answers, with McNemar's p.
    """
    rows = []
    for method, of_method in test.items():
        summary = summarise(of_method)
        start = [method, str(summary.samples), figure_text("accuracy", summary.figures["accuracy"])]
        if method == "unsteered":
            figures: Mapping[str, Figure] = summary.figures
            start.append("")
        else:
            change = compare(test["unsteered"], of_method)
            figures = change.differences
            start.append(f"{change.lost}, {change.gained}, {change.p_value:.2f}")
        cells = [
            figure_text(name, figures[name], signed=method != "unsteered") if name in figures else ""
            for name in COLUMNS
        ]
        rows.append([*start, *cells, str(summary.truncated)])
    head = ["", "problems", "accuracy", "lost, gained, p", "tokens", "steps", "density", "tokens a sentence",
            "calculations per 100 tokens", "NLL", "cut off"]  # fmt: skip
    return markdown(head, rows)


def control_table(unsteered: Sequence[Row], controls: Mapping[str, Sequence[Row]]) -> str:
    """A row a method: what it changes on the problems that it was asked, with 95% intervals."""
    rows = []
    for method, of_method in controls.items():
        change = compare(unsteered, of_method)
        cells = [figure_text(name, change.differences[name], signed=True) for name in CONTROL_COLUMNS]
        rows.append([method, str(len(of_method)), f"{change.lost}, {change.gained}", *cells])
    return markdown(["", "problems", "lost, gained", "tokens", "steps", "density", "tokens a sentence", "NLL"], rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(folder: Path, summary: Mapping[str, Any]) -> None:
    """The figures of the page: NLL of pairs (3), cells (4, 5), cosines."""
    name = folder.name
    nll = summary["pairs"]["nll, positive and negative"]
    sides = [[pair[side] for pair in nll[kind]] for kind, side in NLL_SIDES.values() if nll[kind]]
    values = dict(zip(NLL_SIDES, sides, strict=False))
    plot_likelihoods(values, f"{summary['model']['name']}: NLL of texts", DOCS / f"{name}-nll.png")
    for kind in summary["dev"]:
        for path in draw_sweep(read_partial(folder / f"dev-{kind}"), DOCS):
            path.replace(DOCS / f"{name}-{kind}-{path.name}")
    for path in folder.glob("*/perplexity.png"):
        shutil.copy(path, DOCS / f"{name}-{path.parent.name}-perplexity.png")
    if summary["coarse"]:
        plot_layers(summary, DOCS / f"{name}-layers.png")
    plot_cosines(summary, DOCS / f"{name}-cosines.png")


def plot_layers(summary: Mapping[str, Any], path: Path) -> None:
    """Tokens, steps and density of the coarse sweep over the layers, a line a vector and strength (figure 4)."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 3.6), layout="constrained")
    for axis, name in zip(axes, ("tokens", "steps", "density"), strict=True):
        for kind, cells in summary["coarse"].items():
            for strength in sorted({cell["strength"] for cell in cells if cell["layer"] is not None}):
                line = [(c["layer"], c["figures"][name]["mean"]) for c in cells if c["strength"] == strength]
                axis.plot(*zip(*line, strict=True), marker=".", label=f"{kind}, {strength:+g}")
        unsteered = next(c for c in summary["coarse"]["dense"] if c["layer"] is None)
        axis.axhline(unsteered["figures"][name]["mean"], color="0.55", linestyle=":", linewidth=1)
        axis.set(xlabel="layer", title=name)
        axis.grid(alpha=0.25)
    axes[0].legend(frameon=False, fontsize=9)
    figure.suptitle(f"{summary['model']['name']}: every layer, {unsteered['samples']} dev problems; dotted: unsteered")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_accuracy(folders: Sequence[Path], path: Path) -> None:
    """Accuracy over steps and density, a point a model and method that every folder was asked with (figure 1)."""
    points = []
    for folder in folders:
        rows, header = test_rows(folder)
        most = len(rows["unsteered"])
        points += [
            replace(accuracy_point(header["model"], of_method), series=f"{folder.name}, {method}")
            for method, of_method in rows.items()
            if method in MAIN and len(of_method) == most
        ]
    plot_accuracy(points, "accuracy over steps and density; bars: 1 standard error", path)


def plot_cosines(summary: Mapping[str, Any], path: Path) -> None:
    """Cosine with the dense vector of every other one, over the layers."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for pair, of_layer in summary["cosines"].items():
        if "dense" in pair.split(", "):
            other = next(kind for kind in pair.split(", ") if kind != "dense")
            axis.plot([int(layer) for layer in of_layer], list(of_layer.values()), marker=".", label=other)
    axis.axhline(0, color="0.55", linestyle=":", linewidth=1)
    axis.set(xlabel="layer", ylabel="cosine with the dense vector", title=summary["model"]["name"], ylim=(-1, 1))
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


@click.command(help=__doc__)
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(folders: tuple[Path, ...]) -> None:
    DOCS.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        summary = summary_of(folder)
        write_json(DOCS / f"{folder.name}.json", summary)
        draw(folder, summary)
        click.echo(f"## {folder.name}\n")
        click.echo(tables(summary, test_rows(folder)[0]) + "\n")
    if len(folders) > 1:
        draw_accuracy(folders, DOCS / "accuracy.png")


if __name__ == "__main__":
    main()
