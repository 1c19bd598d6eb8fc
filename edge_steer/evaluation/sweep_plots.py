"""Plots of sweeps: figures over strength and by layer, and density and steps against model size.

Takes the results of a sweep, or folders of results of `sweep` and `evaluate`, writes PNG files. It runs no model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_steer.core.errors import EdgeSteerError
from edge_steer.evaluation.figures import FIGURES, Summary
from edge_steer.evaluation.plots import Grid, ModelPoint, Point, plot_heat, plot_model_points, plot_strengths
from edge_steer.evaluation.results import SUMMARY, model_of
from edge_steer.evaluation.sweep_cells import UNSTEERED_CELL
from edge_steer.evaluation.sweep_results import FORMAT, SweepResults
from edge_steer.storage.files import readable

LINES = ("steps", "tokens", "accuracy", "nll")
HEATS = ("accuracy", "density")
SIZES = ("density", "steps")


def draw_sweep(results: SweepResults, folder: str | Path) -> list[Path]:
    """strengths.png (figures over strength, one line a layer) and heat.png (layer by strength).

    Errors: EdgeSteerError without matplotlib, or while no steered cell is there.
    """
    title = f"{model_of(results.header)}, {results.header['task']['name']}, {results.problems} dev problems"
    chosen = results.chosen
    at = None if chosen is None or chosen.layer is None else (chosen.layer, chosen.strength)
    lines, heat = Path(folder) / "strengths.png", Path(folder) / "heat.png"
    plot_strengths(_grids(results, LINES), f"{title}; grey: unsteered, 95% interval", lines, at)
    plot_heat(_grids(results, HEATS), title, heat, at)
    return [lines, heat]


def model_points(folders: Sequence[str | Path]) -> list[ModelPoint]:
    """Density and steps of each model in the results of `sweep` and `eval`, one series a task and method.

    Of a sweep that is the unsteered model on dev. Errors: EdgeSteerError for a folder without a summary.json of
    those, or a model whose number of parameters is not known.
    """
    points = []
    for folder in folders:
        path = Path(folder) / SUMMARY
        try:
            summary = json.loads(readable(path, "the summary of a sweep or an eval").read_text("utf-8"))
            size = summary["model"]["parameters"]
            for series, cell in _series(summary):
                figures = {name: cell["figures"][name] for name in SIZES if name in cell["figures"]}
                values = {FIGURES[name].title: _point(figure) for name, figure in figures.items()}
                points.append(ModelPoint(summary["model"]["name"], size, series, values))
        except (ValueError, KeyError, TypeError) as error:
            raise EdgeSteerError(f"{path} is no summary of a sweep or an eval: {error!r}") from None
    return points


def plot_sizes(folders: Sequence[str | Path], path: str | Path) -> None:
    """Density and steps against model size, from folders of results. Errors: as `model_points`."""
    plot_model_points(model_points(folders), "density and steps against model size", Path(path))


def _series(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """What each line is named, with its figures."""
    if summary["format"] == FORMAT:
        unsteered = next(cell for cell in summary["cells"] if cell["layer"] is None)
        return [(f"{summary['task']['name']}, unsteered", unsteered)]
    return [(f"{cell['task'] or 'all tasks'}, {cell['method']}", cell) for cell in summary["cells"]]


def _grids(results: SweepResults, names: Sequence[str]) -> list[Grid]:
    grids = []
    for name in names:
        points = {cell: point for cell, summary in results.cells.items() if (point := _summarised(summary, name))}
        steered = {(cell.layer, cell.strength): at for cell, at in points.items() if cell.layer is not None}
        if steered:
            grids.append(
                Grid(
                    FIGURES[name].title,
                    "share" if FIGURES[name].share else "number",
                    steered,
                    points.get(UNSTEERED_CELL),
                )
            )
    return grids


def _summarised(summary: Summary, name: str) -> Point | None:
    figure = summary.figures.get(name)
    return _point(asdict(figure)) if figure else None


def _point(figure: Mapping[str, Any]) -> Point:
    low, high = figure["interval"] or (figure["mean"], figure["mean"])
    return Point(figure["mean"], low, high)
