"""What a training on a real model gained and cost: figures for a summary, and tables of them.

Takes rows and logs, gives JSON values and prints. It runs no model.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from training import boxed, ended, share
from training_vote import majority, mean_figure, votes

from edge_steer.evaluation.figures import by_problem, compare, figure_text, mean_text, summarise
from edge_steer.tasks.rows import Row
from edge_steer.terminal.tables import print_table
from edge_steer.training.records import TrainingLog

FIGURES = ("accuracy", "tokens", "steps", "density")
PARTS = ("swap", "rollouts", "grading", "gradient", "update")
SHARES = ("reward", "boxed", "finished", "alike")
SHOWN = 6  # steps of a row
VOTES = (1, 4, 8, 16)  # of how many answers, beside all there are


def cost(log: TrainingLog) -> dict[str, Any]:
    """Tokens of all steps, a step's seconds in the median, and the log."""
    answers = log.header["settings"]["prompts"] * log.header["settings"]["generations"]
    return {
        "steps": len(log.steps),
        "answers": answers * len(log.steps),
        "tokens": round(sum(step.length * answers for step in log.steps)),
        "seconds": {part: statistics.median(getattr(step.seconds, part) for step in log.steps) for part in PARTS},
        "log": [step.record() for step in log.steps],
    }


def show_log(name: str, log: TrainingLog) -> None:
    """Means of so many steps at a time."""
    table = []
    for start in range(0, len(log.steps), SHOWN):
        steps = log.steps[start : start + SHOWN]
        shares = [f"{statistics.fmean(getattr(step, part) for step in steps):.1%}" for part in SHARES]
        length, surprise = (statistics.fmean(getattr(step, part) for step in steps) for part in ("length", "surprise"))
        table.append([f"{steps[0].step}-{steps[-1].step}", *shares, f"{length:.0f}", f"{surprise:.2f}"])
    print_table([name, *SHARES, "length", "surprise"], table)


def figures(rows: Sequence[Row], before: Sequence[Row], vector: Sequence[Row]) -> dict[str, Any]:
    """Of one cell: means with intervals over problems; gain and ahead are paired by problem, ahead is how far the
    vector is."""
    known = {name: asdict(figure) for name, figure in summarise(rows).figures.items() if name in FIGURES}
    gain, ahead = (compare(*pair).differences["accuracy"] for pair in ((before, rows), (rows, vector)))
    return known | {"gain": asdict(gain), "ahead": asdict(ahead)} | shares(rows)


def shares(rows: Sequence[Row]) -> dict[str, float]:
    in_box = [row for row in rows if boxed(row)]
    return {
        "vote": majority(rows),
        "boxed": share(rows, boxed),
        "right if boxed": share(in_box, lambda row: row.correct) if in_box else 0.0,
        "finished": share(rows, ended),
    }


def show(title: str, cells: Mapping[str, Sequence[Row]], before: Sequence[Row], vector: Sequence[Row]) -> None:
    """The figures of each cell."""
    table = []
    for name, rows in cells.items():
        known = summarise(rows).figures
        gain, ahead = (compare(*pair).differences["accuracy"] for pair in ((before, rows), (rows, vector)))
        table.append(
            [
                name,
                figure_text("accuracy", known["accuracy"]),
                *(figure_text("accuracy", difference, signed=True) for difference in (gain, ahead)),
                *(f"{value:.1%}" for value in shares(rows).values()),
                *(mean_text(figure, known[figure]) for figure in FIGURES[1:]),
            ]
        )
    names = ("vote", "boxed", "right if boxed", "finished")
    print_table([title, "accuracy", "gain", "vector ahead by", *names, *FIGURES[1:]], table)


def vote_figures(voters: Sequence[Row], vector: Sequence[Row], most: int) -> dict[int, Any]:
    """By how many answers vote: problems of which the vote is right, and how far the vector is ahead on these with one
    answer, and with a vote of all that it gave."""
    one = {problem: mean for (_, problem), mean in by_problem(vector, lambda row: float(row.correct)).items()}
    summary, table = {}, []
    for count in (*(count for count in VOTES if count < most), most):
        right = votes(voters, count)
        parts = {"right": mean_figure(right)}
        for name, known in (("ahead", one), ("ahead by a vote", votes(vector))):
            parts[name] = mean_figure({problem: known[problem] - share for problem, share in right.items()})
        summary[count] = {name: asdict(figure) for name, figure in parts.items()}
        texts = [figure_text("accuracy", figure, signed=name != "right") for name, figure in parts.items()]
        table.append([str(count), *texts])
    print_table(["untrained, answers that vote", "right", "vector: one is ahead by", "its vote is ahead by"], table)
    return summary
