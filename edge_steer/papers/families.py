"""Accuracy over the number of steps and over their density, one point a model of a family: DenseSteer's figure 1.

Takes folders of results of `evaluate`, writes a PNG. It runs no model.
"""

import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError
from edge_steer.evaluation.figures import FIGURES, by_problem
from edge_steer.evaluation.plots import AccuracyPoint, Point, plot_accuracy
from edge_steer.evaluation.results import load_results
from edge_steer.storage.records import Record
from edge_steer.tasks.rows import Row

SIZE = re.compile(r"[-_ ]?\d+(\.\d+)?[bm](?![a-z])", re.IGNORECASE)


def accuracy_points(folders: Sequence[str | Path]) -> list[AccuracyPoint]:
    """Every task and method of the folders: mean accuracy, steps and tokens per step, each with its standard error.

    Errors: EdgeSteerError for a folder without results, or fewer than 2 answered problems.
    """
    loaded = map(load_results, folders)
    return [accuracy_point(header["model"], rows) for header, cells in loaded for rows in cells.values()]


def accuracy_point(model: Record, rows: Sequence[Row]) -> AccuracyPoint:
    """Of one model's rows on one task under one method.

    The means and standard errors are over problems; of a problem's completions the mean counts. A family is a model's
    name without its size: Qwen2.5-3B-Instruct is of Qwen2.5-Instruct.
    model: as the rows' header tells it. Errors: EdgeSteerError for fewer than 2 answered problems.
    """
    name = model["name"].rpartition("/")[2]
    return AccuracyPoint(
        model=name,
        parameters=model.get("parameters") or 0,
        series=f"{SIZE.sub('', name)}, {rows[0].task}, {rows[0].method}",
        accuracy=_mean(rows, "accuracy"),
        steps=_mean(rows, "steps"),
        density=_mean(rows, "density"),
    )


def draw_accuracy(folders: Sequence[str | Path], path: str | Path) -> None:
    """Draw `accuracy_points`. Errors: as there, or without matplotlib."""
    plot_accuracy(accuracy_points(folders), "accuracy over steps and density; bars: 1 standard error", Path(path))


def _mean(rows: Sequence[Row], name: str) -> Point:
    """A figure's mean over problems, one standard error to either side."""
    values = [*by_problem(rows, FIGURES[name].value).values()]
    if len(values) < 2:
        raise EdgeSteerError(f"{rows[0].task}, {rows[0].method}: a standard error needs 2 answered problems at least")
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    return Point(mean, mean - error, mean + error)
