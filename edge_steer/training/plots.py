"""A training as a picture: reward, length, norms, and the gap between sampler and policy, over the steps.

Takes a TrainingLog, writes a PNG by matplotlib. It runs no model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edge_steer.core.errors import EdgeSteerError, need
from edge_steer.storage.files import replacing
from edge_steer.training.records import SMOOTHED, TrainingLog, smoothed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE = "#0072B2"  # Okabe and Ito
LIGHTEST = 0.88  # of viridis; beyond it yellow vanishes on white
NAMED_LAYERS = 10


def plot_training(log: TrainingLog, path: str | Path) -> Path:
    """Four panels as PNG; the path. Errors: EdgeSteerError without matplotlib, or for a log without a step."""
    need("plots")
    if not log.steps:
        raise EdgeSteerError("the training has made no step yet; there is nothing to plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    steps = log.steps
    _line(axes[0], "reward", {step.step: step.reward for step in steps})
    axes[0].set_ylim(0, 1)
    _line(axes[1], "tokens of an answer", {step.step: step.length for step in steps})
    _norms(axes[2], log)
    _line(axes[3], "|log p in PyTorch - in llama.cpp|", {step.step: step.gap.mean for step in steps if step.gap})
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
    figure.suptitle(log.title, fontsize=10)
    path = Path(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path


def _line(axis: "Axes", title: str, by_step: Mapping[int, float]) -> None:
    """A figure of the steps that have it."""
    steps, values = list(by_step), list(by_step.values())
    axis.plot(steps, values, ".", color=BLUE, alpha=0.35, markersize=4)
    axis.plot(steps, smoothed(values), color=BLUE, label=f"mean of {SMOOTHED} steps")
    axis.set_title(title)
    axis.legend(frameon=False, fontsize=8)


def _norms(axis: "Axes", log: TrainingLog) -> None:
    from matplotlib import colormaps

    layers = list(log.steps[0].norms)
    for place, layer in enumerate(layers):
        colour = colormaps["viridis"](LIGHTEST * place / max(1, len(layers) - 1))
        norms = [step.norms[layer] for step in log.steps]
        axis.plot(range(1, len(norms) + 1), norms, color=colour, label=f"layer {layer}")
    axis.set_title("norm of what is trained")
    if len(layers) <= NAMED_LAYERS:
        axis.legend(frameon=False, fontsize=7, ncols=2)
