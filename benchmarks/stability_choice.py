"""How much the choice of a cell depends on the dev problems: they are drawn again with replacement.

Takes rows of every cell on dev and on test, gives what each draw would choose and what that does. It runs no model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from real_settings import DevSettings

from edge_steer.evaluation.figures import Summary, summarise
from edge_steer.evaluation.sweep_cells import UNSTEERED_CELL, SweepCell, choose
from edge_steer.tasks.rows import Row


def resampled_choices(
    cells: Sequence[SweepCell],
    dev: Sequence[Row],
    test: Mapping[str, Sequence[Row]],
    rule: DevSettings,
    resamples: int,
) -> dict[str, Any]:
    """The cell of each draw, and tokens minus unsteered of every cell on test. test: rows by the name of the cell."""
    tokens = {cell: summarise(test[cell.name]).tokens for cell in cells}
    saved = {cell: value - tokens[UNSTEERED_CELL] for cell, value in tokens.items()}
    rows = {cell: sorted((row for row in dev if row.method == cell.name), key=lambda row: row.id) for cell in cells}
    count, rng = len(rows[UNSTEERED_CELL]), np.random.default_rng(0)
    drawn = [rng.integers(count, size=count) for _ in range(resamples)]
    return {
        "on test": {cell.name: value for cell, value in saved.items()},
        "choices": [_choice(rows, one, saved, rule) for one in drawn],
    }


def _choice(
    dev: Mapping[SweepCell, Sequence[Row]], drawn: np.ndarray, saved: Mapping[SweepCell, float], rule: DevSettings
) -> dict[str, Any]:
    """The cell that the drawn problems choose: its tokens minus unsteered on them, on the others, and on test."""
    cell = choose({one: _summary(rows, drawn) for one, rows in dev.items()}, rule.choose, rule.margin)
    left_out = np.setdiff1d(np.arange(len(dev[cell])), drawn)
    promised, elsewhere = (
        _summary(dev[cell], part).tokens - _summary(dev[UNSTEERED_CELL], part).tokens for part in (drawn, left_out)
    )
    return {"cell": cell.name, "promised": promised, "on others": elsewhere, "on test": saved[cell]}


def _summary(rows: Sequence[Row], drawn: np.ndarray) -> Summary:
    """The figures of the drawn problems, each draw as a problem of its own."""
    return summarise([replace(rows[index], id=f"{number}") for number, index in enumerate(drawn)])
