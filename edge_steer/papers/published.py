"""The figures that the papers print, and measured ones beside them.

Takes the name of a paper and measured scores, gives rows of its main table. A cell that the source does not print, or
that was not measured, stays empty. It runs no model.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, get_args

from edge_steer.core.errors import EdgeSteerError
from edge_steer.papers.seeds import MethodScores, Score

Paper = Literal["densesteer", "bias-only"]
QUANT = r"([ .-](b?f\d\d|i?q\d\w*|gguf))*"
PAPERS: tuple[Paper, ...] = get_args(Paper)


@dataclass(frozen=True)
class TableRow:
    """One line: a method on a model. cells: by task, those that are known. published: from the paper, or measured."""

    model: str
    name: str
    method: str
    cells: Mapping[str, Score]
    average: Score | None
    published: bool


@dataclass(frozen=True)
class PublishedTable:
    """A paper's main table. labels, problems: by task, in the order of its columns.

    source: where the figures were read. weighted: whether the average is by problems.
    """

    paper: str
    source: str
    labels: Mapping[str, str]
    problems: Mapping[str, int]
    weighted: bool
    rows: tuple[TableRow, ...]

    def measured(self, scores: MethodScores) -> TableRow:
        """A measured line; its average is there once every task of the table is."""
        cells = {task: score for task in self.labels if (score := scores.score(task))}
        average = scores.average([*self.labels], weighted=self.weighted)
        return TableRow(scores.model, scores.method, scores.method, cells, average, published=False)

    def beside(self, measured: Sequence[MethodScores]) -> dict[str, list[TableRow]]:
        """By model the published rows, each followed by the measured ones of its method; then the other measured ones.

        A model is the published one in whatever quant: "Qwen2.5-3B-Instruct Q4_K_M" is Qwen2.5-3B-Instruct.
        """
        rest = [self.measured(scores) for scores in measured if {*scores.accuracies} & {*self.labels}]
        groups: dict[str, list[TableRow]] = {}
        for published in self.rows:
            groups.setdefault(published.model, []).append(published)
        for model, rows in groups.items():
            alike = [row for row in rest if _is_model(row.model, model)]
            rest = [row for row in rest if row not in alike]
            ordered = [row for line in rows for row in (line, *(one for one in alike if one.method == line.method))]
            groups[model] = ordered + [row for row in alike if row not in ordered]
        for row in rest:
            groups.setdefault(row.model, []).append(row)
        return groups

    def partial(self, measured: Sequence[MethodScores]) -> list[str]:
        """What was not asked as in the paper: a line for each task with another number of problems."""
        return [
            f"{scores.model}, {scores.method}: {count} problems of {task}, where the paper has {self.problems[task]}"
            for scores in measured
            for task, count in scores.problems.items()
            if task in self.problems and count != self.problems[task]
        ]


def read_published(paper: Paper) -> PublishedTable:
    """The main table of a paper. Errors: EdgeSteerError for an unknown one."""
    if paper not in PAPERS:
        raise EdgeSteerError(f"no paper {paper!r}; known are {', '.join(PAPERS)}")
    file = resources.files("edge_steer.papers") / f"published_{paper.replace('-', '_')}.json"
    table = json.loads(file.read_text("utf-8"))
    return PublishedTable(
        paper=table["paper"],
        source=table["source"],
        labels={column["task"]: column["label"] for column in table["tasks"]},
        problems={column["task"]: column["problems"] for column in table["tasks"]},
        weighted=table["weighted"],
        rows=tuple(_row(row) for row in table["rows"]),
    )


def _row(row: Mapping[str, Any]) -> TableRow:
    cells = {task: Score(*cell) for task, cell in row["cells"].items()}
    average = Score(*row["average"]) if row["average"] else None
    return TableRow(row["model"], row["name"], row["method"], cells, average, published=True)


def _is_model(measured: str, published: str) -> bool:
    """Whether a name, which may have an owner, a quant and a file ending, is the published model's."""
    name = measured.rpartition("/")[2]
    return bool(re.fullmatch(re.escape(published) + QUANT, name, re.IGNORECASE))
