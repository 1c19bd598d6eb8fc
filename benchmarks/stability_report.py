"""The tables and the figure of a stability run.

Takes the summary that real_stability.py writes, gives Markdown and a picture. It runs no model.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from real_report import markdown

FIGURES = ("tokens", "steps", "density", "sentence")
LABELS = ("tokens", "steps", "density", "tokens a sentence")
BETWEEN = "between draws"


def tables(summary: Mapping[str, Any]) -> str:
    """The tables of the parts that were run: temperature, number of pairs, whose pairs, the choice on dev."""
    parts = []
    if "temperature" in summary:
        parts.append(temperature_table(summary["temperature"]))
    if "draws" in summary:
        parts += [count_table(summary["draws"]), origin_table(summary["draws"] | summary["random"])]
    if "choice" in summary:
        parts.append(choice_table(summary["choice"]))
    return "\n\n".join(parts)


def temperature_table(temperatures: Mapping[str, Any]) -> str:
    """Steered minus unsteered at each temperature, with paired intervals over problems."""
    rows = [
        [temperature, str(one["unsteered"]["completions"]), f"{one['unsteered']['figures']['tokens']['mean']:.1f}",
         *(_difference(one["change"], name) for name in FIGURES)]
        for temperature, one in temperatures.items()
    ]  # fmt: skip
    return markdown(["temperature", "answers", "tokens unsteered", *LABELS], rows)


def count_table(draws: Mapping[str, Any]) -> str:
    """For each number of pairs: how alike the draws' vectors are, and how far their effects spread."""
    rows = []
    for count, between in draws[BETWEEN].items():
        some = _draws(draws, count)
        with_all = [one["cosine"]["all written"] for one in some]
        saved = [_mean(one, "tokens") for one in some]
        spread = f"{np.std(saved, ddof=1):.1f}" if len(saved) > 1 else ""
        rows.append([count, str(len(some)), _range(between), _range(with_all), _range(saved, "+.0f"), spread])
    head = ["pairs", "draws", "cosine between draws", "cosine with all", "tokens minus unsteered", "its deviation"]
    return markdown(head, rows)


def origin_table(draws: Mapping[str, Any]) -> str:
    """Vectors of other origin, at the same place and norm: cosine with that of all written solutions, and effect."""
    rows = [
        [name, *(f"{one['cosine'][other]:.2f}" if "cosine" in one else "" for other in ("all written", "terse")),
         *(_difference(one["change"], figure) for figure in FIGURES)]
        for name, one in draws.items()
        if name != BETWEEN and "draw" not in name
    ]  # fmt: skip
    return markdown(["vector", "cosine with written", "with terse", *LABELS], rows)


def choice_table(kinds: Mapping[str, Any]) -> str:
    """What resamples of dev choose and promise, and what it does on other problems: tokens minus unsteered."""
    rows = []
    for kind, of_kind in kinds.items():
        choices, on_test = of_kind["choices"], of_kind["on test"]
        picked = Counter(one["cell"] for one in choices).most_common()
        means = [f"{np.mean([one[key] for one in choices]):+.1f}" for key in ("promised", "on others", "on test")]
        best = min(on_test, key=lambda cell: float(on_test[cell]))
        cells = "; ".join(f"{cell} ({on_test[cell]:+.0f}): {number}" for cell, number in picked)
        rows.append([kind, cells, *means, f"{on_test[best]:+.1f} ({best})"])
    head = [
        "vector",
        "chosen cells (on test): how often",
        "promised",
        "on problems left out",
        "on test",
        "best on test",
    ]
    return markdown(head, rows)


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Tokens saved by temperature, and by the number of pairs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
    for number, one in enumerate(summary["temperature"].values()):
        change = one["change"]["differences"]["tokens"]
        mean, (low, high) = change["mean"], change["interval"]
        left.errorbar(number, mean, [[mean - low], [high - mean]], fmt="o", capsize=3, color="C0")
    left.set(xlabel="temperature", ylabel="tokens minus unsteered", xticks=range(len(summary["temperature"])))
    left.set_xticklabels(summary["temperature"])
    counts = [*summary["draws"][BETWEEN]]
    for number, count in enumerate(counts):
        saved = [_mean(one, "tokens") for one in _draws(summary["draws"], count)]
        right.plot([number] * len(saved), saved, "o", color="C1", alpha=0.7)
    right.set(xlabel="pairs in a draw", xticks=range(len(counts)))
    right.set_xticklabels(counts)
    for axis in (left, right):
        axis.axhline(0, color="0.55", linestyle=":", linewidth=1)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draws(draws: Mapping[str, Any], count: str) -> list[Any]:
    return [one for name, one in draws.items() if name.startswith(f"{count} pairs")]


def _mean(one: Mapping[str, Any], figure: str) -> float:
    return float(one["change"]["differences"][figure]["mean"])


def _difference(change: Mapping[str, Any], name: str) -> str:
    difference = change["differences"][name]
    low, high = difference["interval"]
    return f"{difference['mean']:+.1f} ({low:+.1f} to {high:+.1f})"


def _range(values: Sequence[float], form: str = ".2f") -> str:
    """The median and the range; "" for none."""
    if not values:
        return ""
    return f"{np.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"
