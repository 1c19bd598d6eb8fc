"""Pictures from figures: the response of a steered model to the strength, as PNG.

Takes plain numbers and a path. The only door to matplotlib; it imports no runtime and runs no model.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_steer.errors import need
from edge_steer.files import replacing

Curve = Sequence[tuple[float, float]]  # (strength, value), by rising strength


def plot_response(panels: Mapping[str, Mapping[str, Curve]], chosen: float, title: str, path: Path) -> None:
    """One panel a quantity, one line a backend, over the strength; `chosen` is the recipe's strength.

    panels: quantity -> backend -> curve. Errors: EdgeSteerError without matplotlib or for an unwritable path.
    """
    need("plots")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    markers = "os^dvx"
    for axis, (quantity, curves) in zip(axes, panels.items(), strict=True):
        for i, (backend, curve) in enumerate(curves.items()):
            strengths, values = zip(*curve, strict=True)
            axis.plot(strengths, values, marker=markers[i % len(markers)], markersize=5, alpha=0.75, label=backend)
        axis.axvline(chosen, color="0.6", linestyle="--", linewidth=1)
        axis.set(title=quantity, xlabel="strength")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png", metadata={"Software": None})
