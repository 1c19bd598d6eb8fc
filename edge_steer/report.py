"""Pictures from figures: how a steered model responds to strength, layer and model size as PNG, parity as SVG.

Takes plain numbers, and a path for a PNG; an SVG is an element of a page. The only door to matplotlib; it imports no
runtime and runs no model.
"""

import contextlib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge_steer.errors import EdgeSteerError, need
from edge_steer.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Curve = Sequence[tuple[float, float]]  # (strength, value), by rising strength
Format = Literal["number", "share"]

MARKERS = "os^dvxP*"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
LIGHTEST = 0.88  # of viridis; beyond it yellow vanishes on white
BARS = 6  # more layers than this, and bars of intervals would hide the lines
NAMED = 10  # more layers than this are told by a colour bar
WRITTEN = 15  # heat maps of more columns than this carry no numbers
RESPONSE_SIZE = (5.2, 3.6)

PANEL = (3.4, 2.2)  # inches of an SVG
ROW, AXIS = 0.36, 0.4  # inches of a row, and of the axis below all rows
INK, PAPER = "#0b0b0c", "#fdfdfc"  # stand for the colours of the page, so that an SVG suits light and dark
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "edge-steer", "font.size": 8, "text.parse_math": False,
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "grid.color": INK, "grid.alpha": 0.12, "grid.linewidth": 0.6,
}  # fmt: skip
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Point:
    """A mean and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Grid:
    """A quantity over layer and strength. Missing cells are not there yet; `unsteered` is the cell of strength 0."""

    name: str
    format: Format
    cells: Mapping[tuple[int, float], Point]
    unsteered: Point | None

    def curve(self, layer: int) -> list[tuple[float, Point]]:
        """Strength and value by rising strength, the unsteered cell among them."""
        found = [(strength, point) for (at, strength), point in self.cells.items() if at == layer]
        return sorted([*found, *([(0.0, self.unsteered)] if self.unsteered else [])], key=lambda pair: pair[0])


@dataclass(frozen=True)
class Sized:
    """One model's figure in a plot against model size; `series` is what its line is named."""

    model: str
    parameters: int
    series: str
    values: Mapping[str, Point]


@dataclass(frozen=True)
class Measured:
    """A row of `svg_measured`: a point of each series, None where there is none, and what is allowed, from and to.

    A point without an interval has its value as both ends. allowed: None is without end.
    """

    name: str
    points: Sequence[Point | None]
    allowed: tuple[float | None, float | None]


def plot_response(panels: Mapping[str, Mapping[str, Curve]], chosen: float, title: str, path: Path) -> None:
    """One panel a quantity, one line a backend, over the strength; `chosen` is the recipe's strength.

    panels: quantity -> backend -> curve. Errors: EdgeSteerError without matplotlib or for an unwritable path.
    """
    figure, axes = _figure(1, len(panels), (4.2, 3.4))
    for axis, (quantity, curves) in zip(axes, panels.items(), strict=True):
        for i, (backend, curve) in enumerate(curves.items()):
            strengths, values = zip(*curve, strict=True)
            axis.plot(strengths, values, marker=MARKERS[i % len(MARKERS)], markersize=5, alpha=0.75, label=backend)
        axis.axvline(chosen, color="0.6", linestyle="--", linewidth=1)
        axis.set(title=quantity, xlabel="strength")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    axes[0].legend(frameon=False, fontsize=8)
    _save(figure, title, path)


def plot_strengths(grids: Sequence[Grid], title: str, path: Path, chosen: tuple[int, float] | None = None) -> None:
    """One panel a quantity over the strength, one line a layer, coloured from early to late; a ring at `chosen`.

    Bars are 95% intervals, drawn for few layers; the grey band is that of the unsteered model.
    Errors: as plot_response, and for grids without a cell.
    """
    layers = _layers(grids)
    columns = min(2, len(grids))
    figure, axes = _figure(math.ceil(len(grids) / columns), columns, RESPONSE_SIZE)
    colours = _layer_colours(layers)
    for axis, grid in zip(axes, grids, strict=False):
        for i, layer in enumerate(layers):
            curve = grid.curve(layer)
            if not curve:
                continue
            strengths = [strength for strength, _ in curve]
            marker = MARKERS[i % len(MARKERS)] if len(layers) <= NAMED else "."
            values = [point.value for _, point in curve]
            axis.plot(strengths, values, marker=marker, markersize=4, label=str(layer), color=colours[layer], zorder=3)
            if len(layers) <= BARS:
                spread = [[p.value - p.low for _, p in curve], [p.high - p.value for _, p in curve]]
                axis.errorbar(strengths, values, spread, fmt="none", color=colours[layer], alpha=0.4, elinewidth=1)
        if chosen and (point := grid.cells.get(chosen)):
            axis.plot(*(chosen[1], point.value), "o", markersize=13, fillstyle="none", color="black", zorder=9)
        if grid.unsteered:
            axis.axhspan(grid.unsteered.low, grid.unsteered.high, color="0.93", zorder=0)
        axis.axvline(0, color="0.85", linewidth=1, zorder=0)
        axis.set(title=grid.name, xlabel="strength")
        axis.grid(alpha=0.2)
        _percent(axis, grid.format)
    for axis in axes[len(grids) :]:
        axis.set_visible(False)
    _layer_key(figure, axes, layers)
    _save(figure, title, path)


def plot_heat(grids: Sequence[Grid], title: str, path: Path, chosen: tuple[int, float] | None = None) -> None:
    """One heat map a quantity: layers up, strengths across; the column of strength 0 is the unsteered cell.

    Cells that are not there yet stay white; `chosen` is framed. Errors: as plot_strengths.
    """
    from matplotlib.patches import Rectangle

    layers = _layers(grids)
    strengths = sorted({strength for grid in grids for _, strength in grid.cells} | {0.0})
    wide = len(strengths) <= WRITTEN
    size = max(4.5, (0.5 if wide else 0.26) * len(strengths) + 1.6), max(2.6, 0.3 * len(layers) + 1.3)
    figure, axes = _figure(1, len(grids), size)
    for axis, grid in zip(axes, grids, strict=True):
        values = [[_at(grid, layer, strength) for strength in strengths] for layer in layers]
        image = axis.imshow(values, origin="lower", aspect="auto", cmap="viridis")
        figure.colorbar(image, ax=axis, format=_formatter(grid.format), pad=0.02)
        axis.set_xticks(range(len(strengths)), [f"{s:g}" for s in strengths], rotation=0 if wide else 90, fontsize=8)
        axis.set_yticks(range(len(layers)), [str(layer) for layer in layers], fontsize=8)
        axis.set(title=grid.name, xlabel="strength", ylabel="layer")
        if wide:
            middle = sum(image.get_clim()) / 2
            for row, line in enumerate(values):
                for column, value in enumerate(line):
                    if not math.isnan(value):
                        text = f"{value:.0%}"[:-1] if grid.format == "share" else f"{value:.3g}"
                        colour = "white" if value < middle else "black"
                        axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
        if chosen and chosen[0] in layers and chosen[1] in strengths:
            corner = strengths.index(chosen[1]) - 0.5, layers.index(chosen[0]) - 0.5
            axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#D55E00", linewidth=2.5))
    _save(figure, title, path)


def plot_sizes(models: Sequence[Sized], title: str, path: Path) -> None:
    """Each quantity against the number of parameters, one line a series, with 95% intervals.

    Errors: EdgeSteerError for no models, or as plot_response.
    """
    if not models:
        raise EdgeSteerError("no models to plot; name at least one result")
    names = list(dict.fromkeys(name for model in models for name in model.values))
    figure, axes = _figure(1, len(names), (5.4, 4.0))
    series = list(dict.fromkeys(model.series for model in models))
    sizes: dict[int, list[str]] = {}
    for model in models:
        alike = sizes.setdefault(model.parameters, [])
        if model.model not in alike:
            alike.append(model.model)
    for axis, name in zip(axes, names, strict=True):
        for i, label in enumerate(series):
            found = sorted((m.parameters, m.values[name]) for m in models if m.series == label and name in m.values)
            if not found:
                continue
            across, points = zip(*found, strict=True)
            errors = [[p.value - p.low for p in points], [p.high - p.value for p in points]]
            axis.errorbar(
                across, [p.value for p in points], errors, label=label, marker=MARKERS[i % len(MARKERS)], markersize=6,
                color=COLOURS[i % len(COLOURS)], linewidth=1.4, elinewidth=1, capsize=3,
            )  # fmt: skip
        axis.set_xscale("log")
        ticks = [f"{', '.join(names)}, {_count(size)}" for size, names in sizes.items()]
        axis.set_xticks(list(sizes), ticks, fontsize=8, rotation=20, ha="right", rotation_mode="anchor")
        axis.minorticks_off()
        axis.margins(x=0.15)
        axis.set(title=name, xlabel="model, by parameters")
        axis.grid(alpha=0.25)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(3, len(series)),
                  frameon=False, fontsize=9)  # fmt: skip
    _save(figure, title, path)


def plot_layers(
    norms: Mapping[int, float], separation: Mapping[int, float], stability: Mapping[int, Curve], title: str, path: Path
) -> None:
    """A vector's layers: relative norm and separation by layer, and stability over the number of pairs, a line a layer.

    separation and stability may be empty, and have no panel then. Errors: as plot_response.
    """
    panels = 1 + bool(separation) + bool(stability)
    figure, axes = _figure(1, panels, RESPONSE_SIZE)
    axes[0].plot(list(norms), list(norms.values()), marker="o", markersize=4)
    axes[0].set(title="norm over the states' norm", xlabel="layer")
    axes[0].set_ylim(bottom=0)
    if separation:
        axes[1].plot(list(separation), list(separation.values()), marker="o", markersize=4)
        axes[1].axhline(0.5, color="0.55", linestyle=":", linewidth=1)
        axes[1].set(title="separation of held-out pairs (AUC)", xlabel="layer")
    if stability:
        colours = _layer_colours(sorted(stability))
        for layer, curve in stability.items():
            sizes, cosines = zip(*curve, strict=True)
            axes[-1].plot(sizes, cosines, marker=".", label=str(layer), color=colours[layer])
        axes[-1].set(title="cosine of vectors from two sets of pairs", xlabel="pairs in each set")
        axes[-1].set_ylim(top=1)
        _layer_key(figure, axes[-1:], sorted(stability))
    for axis in axes:
        axis.grid(alpha=0.25)
    _save(figure, title, path)


def plot_likelihoods(values: Mapping[str, Sequence[float]], title: str, path: Path) -> None:
    """NLL per token: for each source a box, its mean as a diamond, and every text. Errors: as plot_response."""
    figure, axes = _figure(1, 1, (1.6 * len(values) + 1.6, 3.8))
    places = range(1, len(values) + 1)
    mean = {"marker": "D", "markerfacecolor": COLOURS[1], "markeredgecolor": COLOURS[1]}
    axes[0].boxplot(list(values.values()), widths=0.5, showmeans=True, showfliers=False, meanprops=mean)
    for place, found in zip(places, values.values(), strict=True):
        across = [place + 0.18 * (2 * i / max(len(found) - 1, 1) - 1) for i in range(len(found))]
        axes[0].plot(across, found, ".", markersize=4, alpha=0.45, color=COLOURS[0])
    axes[0].set_xticks(list(places), list(values))
    axes[0].set(ylabel="NLL per token, nats")
    axes[0].set_ylim(bottom=0)
    axes[0].grid(alpha=0.25, axis="y")
    _save(figure, title, path)


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
        _percent(axis, format)
        return _svg(name, figure)


def svg_measured(name: str, rows: Sequence[Measured], *, log: bool = False) -> str:
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


def _figure(rows: int, columns: int, size: tuple[float, float]) -> "tuple[Figure, list[Axes]]":
    """A figure of equal panels, each of `size` inches."""
    need("plots")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _save(figure: "Figure", title: str, path: Path) -> None:
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png", metadata={"Software": None})


@contextlib.contextmanager
def _drawing(size: tuple[float, float]) -> "Iterator[tuple[Figure, Axes]]":
    """A figure of one panel, in the style of an SVG as long as it is drawn and told."""
    need("plots")
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure, axes = _figure(1, 1, size)
        yield figure, axes[0]


def _svg(name: str, figure: "Figure") -> str:
    """The figure as an element of a page: as wide as there is room, in the page's font and ink."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    text = re.sub(r"<style.*?</style>| font-family: [^;\"]*;", "", text, flags=re.DOTALL)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    return re.sub(r'(id="|#)([mp][0-9a-f]{10}\b)', rf"\1{name}-\2", text)


def _range(rows: Sequence[Measured], log: bool) -> tuple[float, float]:
    """An axis that shows every value, its interval and what is allowed."""
    ends = [end for row in rows for end in row.allowed if end is not None]
    ends += [end for row in rows for point in row.points if point for end in (point.low, point.value, point.high)]
    if log:
        decades = [math.log10(end) for end in ends if end > 0] or [0.0]
        first = math.floor(min(decades))
        return 10.0**first, 10.0 ** max(math.ceil(max(decades)), first + 1)
    margin = 0.05 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


def _layers(grids: Sequence[Grid]) -> list[int]:
    layers = sorted({layer for grid in grids for layer, _ in grid.cells})
    if not layers:
        raise EdgeSteerError("no steered cell to plot yet; let the sweep run on")
    return layers


def _colour_map() -> "Colormap":
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["viridis"]([i / 255 * LIGHTEST for i in range(256)]))


def _layer_colours(layers: Sequence[int]) -> dict[int, tuple[float, float, float, float]]:
    colours, span = _colour_map(), max(layers[-1] - layers[0], 1)
    return {layer: colours((layer - layers[0]) / span) for layer in layers}


def _layer_key(figure: "Figure", axes: "Sequence[Axes]", layers: Sequence[int]) -> None:
    """Which colour is which layer: a legend of few, a colour bar of many."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    if len(layers) <= NAMED:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], title="layer", loc="outside right center", frameon=False)
        return
    scale = ScalarMappable(Normalize(layers[0], layers[-1]), _colour_map())
    figure.colorbar(scale, ax=list(axes), label="layer", pad=0.02, aspect=40)


def _at(grid: Grid, layer: int, strength: float) -> float:
    point = grid.cells.get((layer, strength)) if strength else grid.unsteered
    return point.value if point else math.nan


def _formatter(format: Format) -> object:
    from matplotlib.ticker import PercentFormatter, ScalarFormatter

    return PercentFormatter(1, decimals=0) if format == "share" else ScalarFormatter()


def _percent(axis: "Axes", format: Format) -> None:
    if format == "share":
        from matplotlib.ticker import PercentFormatter

        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _count(parameters: int) -> str:
    """1543714304 -> 1.54B"""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= size:
            return f"{parameters / size:.3g}{unit}"
    return str(parameters)
