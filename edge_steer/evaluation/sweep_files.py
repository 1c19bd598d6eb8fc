"""What a sweep found, as files: summary.json, plots, and the recipe of the chosen layer and strength.

Takes Results, and folders of results of `sweep` and `eval` for the plot against model size. It runs no model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_steer.core.errors import EdgeSteerError
from edge_steer.evaluation import plots
from edge_steer.evaluation.figures import Summary
from edge_steer.evaluation.plots import Format, Grid, Point, Sized
from edge_steer.evaluation.sweep import FORMAT, PLAIN, Results
from edge_steer.storage.files import readable, replacing

SUMMARY = "summary.json"
NAMES: dict[str, tuple[str, Format]] = {
    "steps": ("steps", "number"),
    "tokens": ("tokens", "number"),
    "accuracy": ("accuracy", "share"),
    "density": ("density, tokens per step", "number"),
    "nll": ("NLL under the unsteered model, nats per token", "number"),
}
LINES = ("steps", "tokens", "accuracy", "nll")
HEATS = ("accuracy", "density")
SIZES = ("density", "steps")


def write_summary(results: Results, folder: Path) -> Path:
    """summary.json: what the rows depend on, every cell, the choice with its rule, and the test split."""
    chosen, test = results.chosen, results.test
    found: dict[str, object] = {
        **results.header,
        "split": "dev",
        "cells": [{"layer": c.layer, "strength": c.strength, **asdict(s)} for c, s in results.cells.items()],
        "chosen": chosen and {"layer": chosen.layer, "strength": chosen.strength, "rule": results.rule},
        "test": test and asdict(test),
        "rows that changed when made again": results.changed,
    }
    with replacing(folder / SUMMARY) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return folder / SUMMARY


def draw(results: Results, folder: Path) -> list[Path]:
    """strengths.png (figures over strength, one line a layer) and heat.png (layer by strength).

    Errors: EdgeSteerError without matplotlib, or while no steered cell is there.
    """
    title = f"{model_of(results.header)}, {results.header['task']['name']}, {results.problems} dev problems"
    chosen = results.chosen
    at = None if chosen is None or chosen.layer is None else (chosen.layer, chosen.strength)
    lines, heat = folder / "strengths.png", folder / "heat.png"
    plots.plot_strengths(_grids(results, LINES), f"{title}; grey: unsteered, 95% interval", lines, at)
    plots.plot_heat(_grids(results, HEATS), title, heat, at)
    return [lines, heat]


def sizes(folders: Sequence[Path]) -> list[Sized]:
    """Density and steps of each model in the results of `sweep` and `eval`, one series a task and method.

    Of a sweep that is the unsteered model on dev. Errors: EdgeSteerError for a folder without a summary.json of
    those, or a model whose number of parameters is not known.
    """
    found = []
    for folder in folders:
        path = folder / SUMMARY
        try:
            summary = json.loads(readable(path, "the summary of a sweep or an eval").read_text("utf-8"))
            size = summary["model"]["parameters"]
            for series, cell in _series(summary):
                values = {NAMES[name][0]: _point(cell["figures"][name]) for name in SIZES if name in cell["figures"]}
                found.append(Sized(summary["model"]["name"], size, series, values))
        except (ValueError, KeyError, TypeError) as error:
            raise EdgeSteerError(f"{path} is no summary of a sweep or an eval: {error!r}") from None
    return found


def plot_sizes(folders: Sequence[Path], path: Path) -> None:
    """Density and steps against model size, from folders of results. Errors: as `sizes`."""
    plots.plot_sizes(sizes(folders), "density and steps against model size", path)


def _series(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """What each line is named, with its figures."""
    if summary["format"] == FORMAT:
        plain = next(cell for cell in summary["cells"] if cell["layer"] is None)
        return [(f"{summary['task']['name']}, unsteered", plain)]
    return [(f"{cell['task'] or 'all tasks'}, {cell['method']}", cell) for cell in summary["cells"]]


def _grids(results: Results, names: Sequence[str]) -> list[Grid]:
    grids = []
    for name in names:
        points = {cell: point for cell, summary in results.cells.items() if (point := _summarised(summary, name))}
        steered = {(cell.layer, cell.strength): at for cell, at in points.items() if cell.layer is not None}
        if steered:
            grids.append(Grid(*NAMES[name], steered, points.get(PLAIN)))
    return grids


def _summarised(summary: Summary, name: str) -> Point | None:
    figure = summary.figures.get(name)
    return _point(asdict(figure)) if figure else None


def _point(figure: Mapping[str, Any]) -> Point:
    low, high = figure["interval"] or (figure["mean"], figure["mean"])
    return Point(figure["mean"], low, high)


def model_of(header: Mapping[str, Any]) -> str:
    model = header["model"]
    return f"{model['name']} {model['quant']}"
