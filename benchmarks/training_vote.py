"""What more answers are worth without training: several answers to a problem vote, and the commonest is its answer.

Takes rows, gives shares of problems. It runs no model.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from edge_steer.core.stats import bootstrap
from edge_steer.evaluation.figures import Figure
from edge_steer.tasks.rows import Row

RIGHT = None  # what all right answers are counted as, however they are written


def majority(rows: Sequence[Row]) -> float:
    """The share of problems whose commonest answer is right, of answers equally common the share."""
    return statistics.fmean(votes(rows).values())


def votes(rows: Sequence[Row], count: int | None = None) -> dict[str, float]:
    """By problem the share of votes that are right; each `count` answers in turn make one, None is all of them."""
    by_problem: dict[str, list[Row]] = {}
    for row in rows:
        by_problem.setdefault(row.id, []).append(row)
    shares = {}
    for problem, answers in by_problem.items():
        size = count or len(answers)
        starts = range(0, len(answers) - size + 1, size)
        shares[problem] = statistics.fmean(_vote(answers[start : start + size]) for start in starts)
    return shares


def mean_figure(by_problem: Mapping[str, float]) -> Figure:
    values = np.array([*by_problem.values()])
    return Figure(float(values.mean()), bootstrap(values))


def _vote(answers: Sequence[Row]) -> float:
    """An answer that cannot be read has no vote."""
    counts = Counter(RIGHT if row.correct else row.extracted for row in answers if row.correct or row.extracted)
    commonest = [answer for answer, count in counts.items() if count == max(counts.values())]
    return (RIGHT in commonest) / max(1, len(commonest))
