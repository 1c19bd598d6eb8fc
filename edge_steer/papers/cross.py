"""The cross table of Bias-Only Adaptation (table 4): trained on one kind of problems, tested on that and on another.

Takes folders of results, each with what it was trained on, gives rows beside the published ones. It runs no model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from edge_steer.core.errors import EdgeSteerError
from edge_steer.evaluation.figures import Figure, compare, figure_text, summarise
from edge_steer.evaluation.results import load_results, model_of
from edge_steer.tasks.rows import Row

Trained = Literal["base", "full", "vector", "lora"]
COLUMNS: tuple[Trained, ...] = get_args(Trained)  # the paper's, in its order
FULL: Trained = "full"


@dataclass(frozen=True)
class CrossFolder:
    """A folder of results. column: what was trained. task: on which; "" for the base, which is trained on none."""

    column: Trained
    task: str
    folder: Path

    @classmethod
    def parse(cls, text: str) -> "CrossFolder":
        """From "base=FOLDER", or COLUMN:TASK=FOLDER as "vector:gsm8k=FOLDER". Errors: EdgeSteerError for another."""
        name, equals, folder = text.partition("=")
        kind, colon, task = name.partition(":")
        column = next((column for column in COLUMNS if column == kind), None)
        if not equals or not folder or column is None or bool(colon and task) == (column == "base"):
            raise EdgeSteerError(
                f"{text!r} names no cell; write base=FOLDER, or vector:TASK=FOLDER with the task that was trained on; "
                "lora and full likewise"
            )
        return cls(column, task, Path(folder))


@dataclass(frozen=True)
class CrossCell:
    """accuracy: a share, the mean over problems of the mean over answers, of all training seeds together. to_full: the
    difference to full training, paired by problem; None where there is none, and for the base. Published ones have no
    interval."""

    accuracy: Figure
    to_full: Figure | None = None
    seeds: int = 1

    def __str__(self) -> str:
        seeds = f", {self.seeds} seeds" if self.seeds > 1 else ""
        difference = f" [{figure_text('accuracy', self.to_full, signed=True)}]" if self.to_full else ""
        return figure_text("accuracy", self.accuracy) + difference + seeds


@dataclass(frozen=True)
class CrossRow:
    """A model that was trained on one task and tested on one; cells: by column, those that are known."""

    model: str
    trained: str
    tested: str
    cells: Mapping[Trained, CrossCell]
    published: bool = False


def cross_rows(folders: Sequence[CrossFolder]) -> list[CrossRow]:
    """A row for each task that was trained on and each that it was tested on, its own first.

    Several folders of one cell are training seeds, whose answers are joined. Errors: EdgeSteerError for a folder
    without results, of several methods, or with other problems of a task than another; or no folder of a training.
    """
    answers: dict[tuple[Trained, str, str], list[list[Row]]] = {}
    names: list[str] = []
    for one in folders:
        header, cells = load_results(one.folder)
        names.append(str(header["model"]["name"]) if one.column == FULL else model_of(header))
        if len({method for _, method in cells}) > 1:
            raise EdgeSteerError(f"{one.folder} has the rows of several methods; a cell is of one")
        for (task, _), answered in cells.items():
            answers.setdefault((one.column, one.task, task), []).append(answered)
    trained = list(dict.fromkeys(one.task for one in folders if one.task))
    if not trained:
        raise EdgeSteerError("no folder of a training; name one, as vector:TASK=FOLDER")
    tested = list(dict.fromkeys(task for _, _, task in answers))
    _check_problems(answers)
    rows = []
    for task in trained:
        for test in sorted(tested, key=lambda test: test != task):
            cells_of_row = _cells(task, test, answers)
            if cells_of_row.keys() - {"base"}:
                rows.append(CrossRow(names[0], task, test, cells_of_row))
    return rows


def published_cross() -> tuple[str, str, list[CrossRow]]:
    """The paper's name, where its figures were read, and its rows."""
    file = resources.files("edge_steer.papers") / "published_cross.json"
    table = json.loads(file.read_text("utf-8"))
    rows = []
    for row in table["rows"]:
        shares = {column: row["cells"][column] / 100 for column in COLUMNS}
        cells = {
            column: CrossCell(
                Figure(share, None), None if column in ("base", FULL) else Figure(share - shares[FULL], None)
            )
            for column, share in shares.items()
        }
        rows.append(CrossRow(row["model"], row["trained"], row["tested"], cells, published=True))
    return table["paper"], table["source"], rows


def _cells(
    task: str, test: str, answers: Mapping[tuple[Trained, str, str], Sequence[Sequence[Row]]]
) -> dict[Trained, CrossCell]:
    cells: dict[Trained, CrossCell] = {}
    full = answers.get((FULL, task, test))
    for column in COLUMNS:
        by_seed = answers.get((column, "" if column == "base" else task, test))
        if not by_seed:
            continue
        rows = [row for of_seed in by_seed for row in of_seed]
        to_full = None
        if full and column not in ("base", FULL):
            to_full = compare([row for of_seed in full for row in of_seed], rows).differences["accuracy"]
        cells[column] = CrossCell(summarise(rows).figures["accuracy"], to_full, len(by_seed))
    return cells


def _check_problems(answers: Mapping[tuple[Trained, str, str], Sequence[Sequence[Row]]]) -> None:
    problems: dict[str, set[str]] = {}
    for (_, _, test), by_seed in answers.items():
        for rows in by_seed:
            here = {row.id for row in rows}
            if problems.setdefault(test, here) != here:
                raise EdgeSteerError(f"{test}: the folders do not hold the same problems")
