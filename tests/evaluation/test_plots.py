"""Plots: PNG files with what the figures say in them, seen by the colours that are drawn."""

import re
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
from matplotlib import colormaps

from edge_steer.core.errors import EdgeSteerError
from edge_steer.evaluation.plots import (
    COLOURS,
    LIGHTEST,
    Grid,
    ModelPoint,
    Point,
    plot_heat,
    plot_model_points,
    plot_response,
    plot_strengths,
)
from edge_steer.evaluation.svg import ToleranceRow, colour_of, power_of_ten, svg_response, svg_tolerances

Colour = tuple[int, ...]

FRAME = "#D55E00"
UNSTEERED = Point(8.0, 7.5, 8.5)


def grid(layers: Iterable[int], strengths: Iterable[float], name: str = "steps") -> Grid:
    values = {(layer, float(s)): 8 - layer * s / 50 for layer in layers for s in strengths if s}
    return Grid(name, "number", {cell: Point(v, v - 1, v + 1) for cell, v in values.items()}, UNSTEERED)


def drawn(path: Path) -> dict[Colour, int]:
    """How many pixels of the picture have each colour."""
    assert path.read_bytes().startswith(b"\x89PNG")
    image = np.round(matplotlib.image.imread(path)[..., :3] * 255).astype(int)
    found, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(map(int, colour)): int(count) for colour, count in zip(found, counts, strict=True)}


def of_hex(text: str) -> Colour:
    return tuple(bytes.fromhex(text[1:]))


def of_layer(share: float) -> Colour:
    """The colour of a layer that lies so far between the first and the last."""
    return tuple(round(255 * part) for part in colormaps["viridis"](round(share * 255) / 255 * LIGHTEST)[:3])


def near(wanted: Colour, colours: Iterable[Colour]) -> bool:
    return any(max(abs(a - b) for a, b in zip(wanted, colour, strict=True)) <= 2 for colour in colours)


def test_lines_over_strength_have_a_colour_a_layer(tmp_path: Path) -> None:
    path = tmp_path / "strengths.png"
    plot_strengths([grid(range(3), range(-4, 5, 2))], "three layers", path)
    common = [colour for colour, count in drawn(path).items() if count > 200]
    assert all(near(of_layer(share), common) for share in (0, 0.5, 1))
    plot_strengths([grid((0, 2), range(-4, 5, 2))], "two layers", path)
    common = [colour for colour, count in drawn(path).items() if count > 200]
    assert not near(of_layer(0.5), common)


def test_many_layers_are_told_by_a_colour_bar(tmp_path: Path) -> None:
    path = tmp_path / "strengths.png"
    plot_strengths([grid(range(8, 25), range(-20, 21, 2))], "17 layers", path, (17, 8.0))
    common = [colour for colour, count in drawn(path).items() if count > 200]
    assert all(near(of_layer(share), common) for share in (0, 0.25, 0.5, 0.75, 1))


def test_a_heat_map_leaves_missing_cells_white_and_frames_the_chosen(tmp_path: Path) -> None:
    whole, partial, framed = (tmp_path / f"{name}.png" for name in ("whole", "partial", "framed"))
    full = grid(range(4), range(-20, 21, 2))
    plot_heat([full], "all cells", whole)
    there = {(layer, strength): p for (layer, strength), p in full.cells.items() if layer > 1 or strength > 0}
    plot_heat([Grid("steps", "number", there, UNSTEERED)], "all cells", partial)
    plot_heat([full], "all cells", framed, chosen=(2, 8.0))
    white = (255, 255, 255)
    assert drawn(partial)[white] > drawn(whole)[white] * 1.2
    assert of_hex(FRAME) not in drawn(whole)
    assert drawn(framed)[of_hex(FRAME)] > 50


def test_density_against_size_has_a_colour_a_series(tmp_path: Path) -> None:
    path = tmp_path / "sizes.png"
    models = [
        ModelPoint(name, size, series, {"density": Point(20 + i, 19 + i, 21 + i), "steps": Point(8 - i, 7 - i, 9 - i)})
        for i, (name, size) in enumerate({"a-0.5B": 494_000_000, "a-1.5B": 1_543_000_000}.items())
        for series in ("gsm8k, unsteered", "gsm8k, steered")
    ]
    plot_model_points(models, "two models", path)
    found = drawn(path)
    assert all(found.get(of_hex(colour), 0) > 200 for colour in COLOURS[:2])
    assert found.get(of_hex(COLOURS[2]), 0) == 0


def test_the_response_of_backends(tmp_path: Path) -> None:
    path = tmp_path / "response.png"
    plot_response({"steps": {"F16": [(-1.0, 9.0), (1.0, 5.0)]}, "density": {"F16": [(0.0, 16.0)]}}, 0.5, "demo", path)
    assert len(drawn(path)) > 10


def test_nothing_to_plot_is_said(tmp_path: Path) -> None:
    with pytest.raises(EdgeSteerError, match="no steered cell"):
        plot_heat([Grid("steps", "number", {}, UNSTEERED)], "", tmp_path / "x.png")
    with pytest.raises(EdgeSteerError, match="no models"):
        plot_model_points([], "", tmp_path / "x.png")
    with pytest.raises(EdgeSteerError, match="cannot write"):
        plot_strengths([grid((1,), (1,))], "", tmp_path / "nowhere" / "x.png")
    assert not list(tmp_path.iterdir())


def places(svg: str) -> tuple[dict[str, float], list[float]]:
    """How far across an SVG its words and its round points stand."""
    elements = [(element.tag.rpartition("}")[2], element) for element in ElementTree.fromstring(svg).iter()]
    words = {"".join(text.itertext()): float(text.get("x", "nan")) for tag, text in elements if tag == "text"}
    round_ones = {f"#{path.get('id')}" for tag, path in elements if tag == "path" and "C" in path.get("d", "")}
    uses = [(use.get("{http://www.w3.org/1999/xlink}href"), use) for tag, use in elements if tag == "use"]
    return words, [float(use.get("x", "nan")) for target, use in uses if target in round_ones]


def test_an_svg_suits_the_page_it_stands_in() -> None:
    curve = [(0.0, Point(0.5, 0.4, 0.6)), (1.0, Point(0.75, 0.7, 0.8))]
    svgs = [svg_response(name, curve, [curve, curve], "share") for name in ("first", "second")]
    for svg in svgs:
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg")
        assert root.get("viewBox")
        assert root.get("width") is None
        assert "currentColor" in svg
        assert "font-family" not in svg
        assert not re.search("#000000|#0b0b0c|#fdfdfc|<style|<metadata", svg)
        assert all(colour_of(i).lower() in svg for i in range(2))
        assert colour_of(2).lower() not in svg
        words, _ = places(svg)
        assert {"0", "1", "dose", "60%"} <= {*words}
    ids = [{*re.findall(r'\bid="([^"]*)"', svg)} for svg in svgs]
    assert all(ids)
    assert not ids[0] & ids[1]
    assert all({*re.findall(r"#([\w-]+-[mp][0-9a-f]+)", svg)} <= of for svg, of in zip(svgs, ids, strict=True))
    assert svgs[0] == svg_response("first", curve, [curve, curve], "share")


def test_measured_points_stand_where_their_values_are() -> None:
    rows = [
        ToleranceRow("<a> $x_1$ & $", [Point(1e-4, 1e-5, 1e-3), Point(1e-2, 1e-2, 1e-2)], (None, 1e-1)),
        ToleranceRow("below 0", [Point(-1e-9, -1e-8, 1e-6), None], (None, 1e-1)),
    ]
    words, points = places(svg_tolerances("kl", rows, log=True))
    assert {"<a> $x_1$ & $", "below 0"} <= {*words}
    ticks = [words[power_of_ten(exponent)] for exponent in range(-6, 0)]
    assert points == pytest.approx([ticks[2], ticks[4], ticks[0]], abs=0.01)
    assert power_of_ten(-4) == "10⁻⁴"
