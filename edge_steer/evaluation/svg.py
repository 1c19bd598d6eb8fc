"""Plots as SVG, for pages that carry them inline."""

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from edge_steer.core.errors import need
from edge_steer.evaluation.plots import COLOURS, MARKERS, Format, Point, new_figure, percent_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


PANEL = (3.4, 2.2)  # inches of an SVG
ROW, AXIS = 0.36, 0.4  # inches of a row, and of the axis below all rows
INK, PAPER = "#0b0b0c", "#fdfdfc"  # stand for the colours of the page, so that an SVG suits light and dark
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "edge-steer", "font.size": 8, "text.parse_math": False,
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "grid.color": INK, "grid.alpha": 0.12, "grid.linewidth": 0.6,
}  # fmt: skip
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
HREF = f"{{{XLINK}}}href"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)


@dataclass(frozen=True)
class ToleranceRow:
    """A row of `svg_tolerances`: a point of each series, None where there is none, and what is allowed, from and to.

    A point without an interval has its value as both ends. allowed: None is without end.
    """

    name: str
    points: Sequence[Point | None]
    allowed: tuple[float | None, float | None]


def svg_response(
    name: str, reference: Sequence[tuple[float, Point]], others: Sequence[Sequence[tuple[float, Point]]], format: Format
) -> str:
    """One quantity over the dose: the reference broad, with a band of its intervals, the others over it. An <svg>.

    name: letters that its ids begin with, others in each picture of a page. The i-th of the others has the colour
    `colour_of(i)` and the i-th of MARKERS, counted round. Errors: EdgeSteerError without matplotlib.
    """
    with _drawing(PANEL) as (figure, axis):
        doses, points = zip(*reference, strict=True)
        axis.fill_between(doses, [p.low for p in points], [p.high for p in points], color=INK, alpha=0.08, linewidth=0)
        axis.plot(doses, [p.value for p in points], color=INK, alpha=0.3, linewidth=5, solid_capstyle="round")
        for i, curve in enumerate(others):
            marker, values = MARKERS[i % len(MARKERS)], [point.value for _, point in curve]
            axis.plot([dose for dose, _ in curve], values, color=colour_of(i), marker=marker, markersize=4, linewidth=1)
        axis.set_xticks(doses, [f"{dose:g}".replace("-", "\N{MINUS SIGN}") for dose in doses])
        axis.set_xlabel("dose")
        axis.set_ylim(bottom=0)
        percent_text(axis, format)
        return _svg(name, figure)


def svg_tolerances(name: str, rows: Sequence[ToleranceRow], *, log: bool = False) -> str:
    """Rows from the top, each with a point and an interval of every series over a bar of what is allowed. An <svg>.

    name: as in svg_response. Points of the first series are hollow. log: whole decades; what is not positive is drawn
    at the left edge. Errors: EdgeSteerError without matplotlib.
    """
    left, right = _range(rows, log)
    with _drawing((PANEL[0], AXIS + ROW * len(rows))) as (figure, axis):
        for place, row in enumerate(rows):
            low, high = (edge if end is None else end for end, edge in zip(row.allowed, (left, right), strict=True))
            axis.barh(place, high - low, 0.72, low, color=COLOURS[2], alpha=0.16, linewidth=0)
            ends = [end for end in row.allowed if end is not None]
            axis.vlines(ends, place - 0.36, place + 0.36, color=COLOURS[2], linewidth=1.5)
            for i, point in enumerate(row.points):
                if point:
                    across = [max(end, left) for end in (point.low, point.value, point.high)]
                    at = place + 0.28 * (i - (len(row.points) - 1) / 2)
                    axis.plot(across[::2], [at, at], color=INK, linewidth=1)
                    fill = INK if i else PAPER
                    axis.plot(across[1], at, "o", color=INK, markersize=4.5, markerfacecolor=fill, clip_on=False)
        if log:
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter(lambda value, _: power_of_ten(round(math.log10(value))))
            axis.minorticks_off()
        axis.set(xlim=(left, right), ylim=(len(rows) - 0.5, -0.5))
        axis.set_yticks(range(len(rows)), [row.name for row in rows])
        axis.tick_params(axis="y", length=0)
        axis.grid(visible=False, axis="y")
        return _svg(name, figure)


def colour_of(index: int) -> str:
    """The colour of an SVG's line, counted round; black is none of them, it vanishes on a dark page."""
    return COLOURS[index % (len(COLOURS) - 1)]


def power_of_ten(exponent: int) -> str:
    """-4 -> 10⁻⁴"""
    return f"10{str(exponent).translate(RAISED)}"


@contextlib.contextmanager
def _drawing(size: tuple[float, float]) -> "Iterator[tuple[Figure, Axes]]":
    """A figure of one panel, in the style of an SVG while the block runs."""
    need("plots")
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure, axes = new_figure(1, 1, size)
        yield figure, axes[0]


def _svg(name: str, figure: "Figure") -> str:
    """The figure as an element of a page: as wide as there is room, in the page's font and ink."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = ElementTree.fromstring(file.getvalue())
    for attribute in ("width", "height"):
        del root.attrib[attribute]
    for defs in root.iter(f"{{{SVG}}}defs"):
        for style in defs.findall(f"{{{SVG}}}style"):
            defs.remove(style)
    targets = {target for element in root.iter() for target in _references(element)}
    for element in root.iter():
        _adapt(element, name, targets)
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element, name: str, targets: set[str]) -> None:
    """Give an element the page's colours and font, and the ids that others refer to the picture's name in front."""
    if element.get("id") not in targets:
        element.attrib.pop("id", None)
    for attribute, value in element.items():
        if attribute == "id":
            value = f"{name}-{value}"
        elif attribute in (HREF, "clip-path"):
            value = value.replace("#", f"#{name}-")
        elif attribute == "style":
            declarations = (part.strip() for part in value.split(";"))
            value = "; ".join(part for part in declarations if not part.startswith("font-family"))
            value = value.replace(INK, "currentColor").replace(PAPER, "var(--paper)")
        element.set(attribute, value)


def _references(element: ElementTree.Element) -> list[str]:
    """The ids that an element's attributes refer to, as #id and url(#id)."""
    values = (element.get(HREF, ""), element.get("clip-path", "").removeprefix("url(").removesuffix(")"))
    return [value.removeprefix("#") for value in values if value.startswith("#")]


def _range(rows: Sequence[ToleranceRow], log: bool) -> tuple[float, float]:
    """An axis that shows every value, its interval and what is allowed."""
    ends = [end for row in rows for end in row.allowed if end is not None]
    ends += [end for row in rows for point in row.points if point for end in (point.low, point.value, point.high)]
    if log:
        decades = [math.log10(end) for end in ends if end > 0] or [0.0]
        first = math.floor(min(decades))
        return 10.0**first, 10.0 ** max(math.ceil(max(decades)), first + 1)
    margin = 0.05 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin
