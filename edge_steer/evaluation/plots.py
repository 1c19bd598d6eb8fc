"""Pictures from figures: how a steered model responds to strength, layer and model size as PNG, parity as SVG.

Takes plain numbers, and a path for a PNG; an SVG is an element of a page. The only door to matplotlib; it imports no
runtime and runs no model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge_steer.core.errors import EdgeSteerError, need
from edge_steer.storage.files import replacing

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


@dataclass(frozen=True)
class Point:
    """A mean and the ends of its interval, which is at 95% where nothing else is said."""

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
        steered = [(strength, point) for (at, strength), point in self.cells.items() if at == layer]
        return sorted([*steered, *([(0.0, self.unsteered)] if self.unsteered else [])], key=lambda pair: pair[0])


@dataclass(frozen=True)
class ModelPoint:
    """One model's figure in a plot against model size; `series` is what its line is named."""

    model: str
    parameters: int
    series: str
    values: Mapping[str, Point]


@dataclass(frozen=True)
class AccuracyPoint:
    """One model's accuracy with its mean steps and tokens per step; `series` is what its line is named.

    Each interval is one standard error to either side.
    """

    model: str
    parameters: int
    series: str
    accuracy: Point
    steps: Point
    density: Point


def plot_response(panels: Mapping[str, Mapping[str, Curve]], chosen: float, title: str, path: Path) -> None:
    """One panel a quantity, one line a backend, over the strength; `chosen` is the recipe's strength.

    panels: quantity -> backend -> curve. Errors: EdgeSteerError without matplotlib or for an unwritable path.
    """
    figure, axes = new_figure(1, len(panels), (4.2, 3.4))
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
    figure, axes = new_figure(math.ceil(len(grids) / columns), columns, RESPONSE_SIZE)
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
                spread = _half_widths([point for _, point in curve])
                axis.errorbar(strengths, values, spread, fmt="none", color=colours[layer], alpha=0.4, elinewidth=1)
        if chosen and (point := grid.cells.get(chosen)):
            axis.plot(*(chosen[1], point.value), "o", markersize=13, fillstyle="none", color="black", zorder=9)
        if grid.unsteered:
            axis.axhspan(grid.unsteered.low, grid.unsteered.high, color="0.93", zorder=0)
        axis.axvline(0, color="0.85", linewidth=1, zorder=0)
        axis.set(title=grid.name, xlabel="strength")
        axis.locator_params(axis="x", nbins=6)
        axis.grid(alpha=0.2)
        percent_text(axis, grid.format)
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
    figure, axes = new_figure(1, len(grids), size)
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


def plot_model_points(models: Sequence[ModelPoint], title: str, path: Path) -> None:
    """Each quantity against the number of parameters, one line a series, with 95% intervals.

    Errors: EdgeSteerError for no models, or as plot_response.
    """
    if not models:
        raise EdgeSteerError("no models to plot; name at least one result")
    names = list(dict.fromkeys(name for model in models for name in model.values))
    figure, axes = new_figure(1, len(names), (5.4, 4.0))
    series = list(dict.fromkeys(model.series for model in models))
    sizes: dict[int, list[str]] = {}
    for model in models:
        alike = sizes.setdefault(model.parameters, [])
        if model.model not in alike:
            alike.append(model.model)
    for axis, name in zip(axes, names, strict=True):
        for i, label in enumerate(series):
            curve = sorted((m.parameters, m.values[name]) for m in models if m.series == label and name in m.values)
            if not curve:
                continue
            across, points = zip(*curve, strict=True)
            axis.errorbar(
                across, [p.value for p in points], _half_widths(points), label=label,
                marker=MARKERS[i % len(MARKERS)], markersize=6,
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


def plot_accuracy(points: Sequence[AccuracyPoint], title: str, path: Path) -> None:
    """Accuracy over steps and over tokens per step, a point a model, those of a series joined by rising size.

    Errors: EdgeSteerError for no points, or as plot_response.
    """
    if not points:
        raise EdgeSteerError("no models to plot; name at least one result")
    figure, axes = new_figure(1, 2, (5.4, 4.0))
    series = list(dict.fromkeys(point.series for point in points))
    for axis, name, label in ((axes[0], "steps", "steps"), (axes[1], "density", "tokens per step")):
        for i, line in enumerate(series):
            curve = sorted((point for point in points if point.series == line), key=lambda point: point.parameters)
            across: list[Point] = [getattr(point, name) for point in curve]
            axis.errorbar(
                [p.value for p in across], [point.accuracy.value for point in curve],
                xerr=_half_widths(across), yerr=_half_widths([point.accuracy for point in curve]),
                label=line, marker=MARKERS[i % len(MARKERS)], markersize=6, color=COLOURS[i % len(COLOURS)],
                linewidth=1, elinewidth=1, capsize=3,
            )  # fmt: skip
            for point, place in zip(curve, across, strict=True):
                size = _count(point.parameters) if point.parameters else point.model
                axis.annotate(size, (place.value, point.accuracy.value), (5, 5), textcoords="offset points", fontsize=8)
        axis.set(xlabel=f"mean {label}", ylabel="accuracy")
        axis.margins(x=0.2, y=0.15)
        axis.grid(alpha=0.25)
        percent_text(axis, "share")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(2, len(series)),
                  frameon=False, fontsize=9)  # fmt: skip
    _save(figure, title, path)


def plot_layers(
    norms: Mapping[int, float], separation: Mapping[int, float], stability: Mapping[int, Curve], title: str, path: Path
) -> None:
    """A vector's layers: relative norm and separation by layer, and stability over the number of pairs, a line a layer.

    separation and stability may be empty, and have no panel then. Errors: as plot_response.
    """
    panels = 1 + bool(separation) + bool(stability)
    figure, axes = new_figure(1, panels, RESPONSE_SIZE)
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
    figure, axes = new_figure(1, 1, (1.6 * len(values) + 1.6, 3.8))
    places = range(1, len(values) + 1)
    mean = {"marker": "D", "markerfacecolor": COLOURS[1], "markeredgecolor": COLOURS[1]}
    axes[0].boxplot(list(values.values()), widths=0.5, showmeans=True, showfliers=False, meanprops=mean)
    for place, likelihoods in zip(places, values.values(), strict=True):
        last = max(len(likelihoods) - 1, 1)
        across = [place + 0.18 * (2 * i / last - 1) for i in range(len(likelihoods))]
        axes[0].plot(across, likelihoods, ".", markersize=4, alpha=0.45, color=COLOURS[0])
    axes[0].set_xticks(list(places), list(values))
    axes[0].set(ylabel="NLL per token, nats")
    axes[0].set_ylim(bottom=0)
    axes[0].grid(alpha=0.25, axis="y")
    _save(figure, title, path)


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> "tuple[Figure, list[Axes]]":
    """A figure of equal panels, each of `size` inches."""
    need("plots")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _save(figure: "Figure", title: str, path: Path) -> None:
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png", metadata={"Software": None})


def _half_widths(points: Sequence[Point]) -> list[list[float]]:
    """How far each interval reaches below and above its mean."""
    return [[p.value - p.low for p in points], [p.high - p.value for p in points]]


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


def percent_text(axis: "Axes", format: Format) -> None:
    if format == "share":
        from matplotlib.ticker import PercentFormatter

        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _count(parameters: int) -> str:
    """1543714304 -> 1.54B"""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= size:
            return f"{parameters / size:.3g}{unit}"
    return str(parameters)
