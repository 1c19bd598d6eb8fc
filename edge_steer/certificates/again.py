"""A certificate run again: which of its figures still hold.

Takes a certificate and the report of a new run, gives figure by figure whether they agree. It runs nothing itself.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edge_steer.parity.compare import Report

# What a figure may differ by when a certificate is run again: relative and absolute. The same machine gives the same
# figures; another processor rounds otherwise.
AGAIN = {
    "unsteered mean KL": (0.2, 1e-6),
    "steered mean KL": (0.2, 1e-6),
    "unsteered same first choice": (0.0, 0.005),
    "steered same first choice": (0.0, 0.005),
    "effect cosine": (0.0, 0.003),
    "effect length": (0.0, 0.005),
}


@dataclass(frozen=True)
class Again:
    """A figure of a certificate and what it is now. holds: whether that is the same, see AGAIN."""

    file: str
    figure: str
    recorded: float
    found: float
    holds: bool


def again(entry: Mapping[str, Any], report: Report) -> list[Again]:
    """The figures of a file's entry against those of a new report."""
    recorded, found = _figures(entry), _figures(asdict(report))
    return [
        Again(entry["file"], name, recorded[name], found[name], _holds(recorded[name], found[name], *AGAIN[name]))
        for name in recorded
        if name in found
    ]


def _figures(told: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name in ("unsteered", "steered"):
        if told[name]:
            found[f"{name} mean KL"] = told[name]["kl"]["mean"]
            found[f"{name} same first choice"] = told[name]["top1"]
    if told["effect"]:
        found |= {"effect cosine": told["effect"]["cosine"], "effect length": told["effect"]["norm"]}
    return found


def _holds(recorded: float, found: float, relative: float, absolute: float) -> bool:
    return abs(found - recorded) <= relative * abs(recorded) + absolute
