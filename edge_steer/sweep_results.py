"""What a sweep found, as files: summary.json, plots, and the recipe of the chosen layer and strength.

Takes Results, and folders of results of `sweep` and `eval` for the plot against model size. It runs no model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edge_steer import export, report
from edge_steer.errors import EdgeSteerError
from edge_steer.evaluate import Summary
from edge_steer.files import digest, readable, replacing
from edge_steer.gguf_header import read_header
from edge_steer.llama import system_info
from edge_steer.models import quant_of
from edge_steer.recipes import VectorRecipe
from edge_steer.report import Format, Grid, Point, Sized
from edge_steer.sweep import FORMAT, PLAIN, Results
from edge_steer.vector import Phase, SteeringVector

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


def facts(model: Path, engine: Mapping[str, object]) -> dict[str, object]:
    """What rows depend on besides the settings of a sweep: the model file, the engine's options, versions.

    Errors: EdgeSteerError for a file that is no GGUF model.
    """
    described = export.describe_model(model)
    if described is None:
        raise EdgeSteerError(f"{model} is a vector, not a model; name a GGUF model")
    return {
        "model": {
            "name": described.get("name", model.stem),
            "quant": quant_of(model) or "",
            "digest": digest(model),
            "parameters": read_header(model).parameters,
        },
        "engine": dict(engine),
        "versions": {**{name: version(name) for name in ("edge-steer", "math-verify")}, **system_info()},
    }


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
    title = f"{_model(results.header)}, {results.header['task']['name']}, {results.problems} dev problems"
    chosen = results.chosen
    at = None if chosen is None or chosen.layer is None else (chosen.layer, chosen.strength)
    lines, heat = folder / "strengths.png", folder / "heat.png"
    report.plot_strengths(_grids(results, LINES), f"{title}; grey: unsteered, 95% interval", lines, at)
    report.plot_heat(_grids(results, HEATS), title, heat, at)
    return [lines, heat]


def write_recipe(results: Results, vector: SteeringVector, phase: Phase, folder: Path) -> Path:
    """recipe.toml with the chosen layer and strength, and that layer's vector beside it.

    The vector is a control vector, or at layer 0, which those have not, a steering vector. Errors: EdgeSteerError if
    nothing was chosen but the unsteered model, or for another recipe or vector there: none is overwritten.
    """
    cell = results.chosen
    if cell is None or cell.layer is None:
        raise EdgeSteerError("no cell of the sweep was chosen over the unsteered model; there is no recipe to write")
    name = "vector.gguf" if cell.layer else "vector.safetensors"
    kept = folder / name
    alone = vector.restrict([cell.layer])
    if kept.exists() and not _same(export.load(kept), alone):
        raise EdgeSteerError(f"{kept} is another vector; delete it, or name another folder with --recipe")
    on = f"{results.problems} {results.header['task']['name']} problems"
    recipe = VectorRecipe(
        folder=folder,
        model=results.header["model"]["name"],
        vector=name,
        layer=cell.layer,
        strength=cell.strength,
        phase=phase,
        pairs=None,
        chosen=f"edge-steer sweep: {_model(results.header)}, {on}; {results.rule}",
    )
    path = recipe.save()
    if not kept.exists():
        if cell.layer:
            export.write(vector, kept, layers=[cell.layer])
        else:
            alone.save(kept)
    return path


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
    report.plot_sizes(sizes(folders), "density and steps against model size", path)


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


def _model(header: Mapping[str, Any]) -> str:
    model = header["model"]
    return f"{model['name']} {model['quant']}"


def _same(a: SteeringVector, b: SteeringVector) -> bool:
    return a.layers == b.layers and all((a.directions[layer] == b.directions[layer]).all() for layer in a.layers)
