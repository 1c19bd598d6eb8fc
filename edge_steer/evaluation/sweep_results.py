"""What a sweep found: the figures of every cell, the chosen one, and how it did on the test problems.

Takes figures, gives the tuned vector and summary.json; reads what a folder holds so far. It runs no model.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.vector import SteeringVector
from edge_steer.evaluation.figures import Comparison, Summary, summarise
from edge_steer.evaluation.results import SUMMARY
from edge_steer.evaluation.sweep_cells import SweepCell, sweep_cells
from edge_steer.evaluation.units import read_rows
from edge_steer.storage.files import write_json
from edge_steer.storage.records import Record
from edge_steer.tasks.rows import Row

FORMAT = "edge-steer sweep 1"
DEV = "dev.jsonl"


@dataclass(frozen=True)
class HeldOutResult:
    """The chosen cell on the test split, beside the unsteered model. Both are the same where nothing was chosen."""

    unsteered: Summary
    chosen: Summary
    comparison: Comparison | None


@dataclass(frozen=True)
class SweepResults:
    """A sweep as far as it is. header: what its rows depend on. chosen, rule and test: None while dev is not whole.

    problems: of the dev split. cells: the figures of each there. vector: what was swept; None for a sweep read from
    its folder. changed: how many rows came out otherwise when an unfinished unit was made again.
    """

    header: Record
    problems: int
    cells: Mapping[SweepCell, Summary]
    rule: str | None = None
    chosen: SweepCell | None = None
    test: HeldOutResult | None = None
    vector: SteeringVector | None = None
    changed: int = 0

    @property
    def tuned_vector(self) -> SteeringVector:
        """The vector at the chosen layer alone, tuned: with the chosen strength and the phase of the sweep.

        Errors: EdgeSteerError where nothing was chosen but the unsteered model, or the sweep was read from its folder.
        """
        if self.chosen is None or self.chosen.layer is None:
            raise EdgeSteerError("no cell of the sweep was chosen over the unsteered model; there is no tuned vector")
        if self.vector is None:
            raise EdgeSteerError("a folder of a sweep does not hold its vector; run the sweep again to have it tuned")
        layer = self.chosen.layer
        return self.vector.at(layer).tuned(layer, self.chosen.strength, self.header["phase"])


def read_partial(folder: str | Path) -> SweepResults:
    """What a folder holds of the dev split, also while the sweep runs. Errors: EdgeSteerError for no sweep there."""
    header, rows = read_rows(Path(folder) / DEV, FORMAT)
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        by_method.setdefault(row.method, []).append(row)
    summaries = {
        cell: summarise(by_method[cell.name])
        for cell in sweep_cells(header["layers"], header["strengths"])
        if any(row.answered for row in by_method.get(cell.name, ()))
    }
    return SweepResults(header, header["task"]["problems"], summaries)


def write_summary(results: SweepResults, folder: str | Path) -> Path:
    """summary.json: what the rows depend on, every cell, the choice with its rule, and the test split."""
    chosen, test = results.chosen, results.test
    summary: dict[str, object] = {
        **results.header,
        "split": "dev",
        "cells": [{"layer": c.layer, "strength": c.strength, **asdict(s)} for c, s in results.cells.items()],
        "chosen": chosen
        and {
            "layer": chosen.layer,
            "strength": chosen.strength,
            "phase": results.header["phase"],
            "rule": results.rule,
        },
        "test": test and asdict(test),
        "rows that changed when made again": results.changed,
    }
    return write_json(Path(folder) / SUMMARY, summary)
