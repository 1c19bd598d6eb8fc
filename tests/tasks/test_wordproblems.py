"""Generated problems: right by independent arithmetic, disjoint splits, density as asked."""

import random
import re
import statistics
from itertools import islice
from typing import get_args

import pytest

from edge_steer.core.errors import EdgeSteerError
from edge_steer.tasks import wordproblems
from edge_steer.tasks.load import load_task
from edge_steer.tasks.task import count_steps
from edge_steer.tasks.wordproblems import Split


def test_every_equation_holds_and_chains_to_the_answer() -> None:
    for problem in islice(wordproblems.problems("dev"), 300):
        amount = problem.start
        for operation in problem.operations:
            assert operation.before == amount
            amount = operation.after
            assert 1 <= amount <= 99
        assert amount == problem.answer
        for equation in problem.equations:
            left, right = equation.split(" = ")
            a, operator, b = left.split()
            exact = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) / int(b)}
            assert exact[operator] == int(right)


def test_splits_are_disjoint_and_seeded() -> None:
    questions = {split: [p.question for p in islice(wordproblems.problems(split), 400)] for split in get_args(Split)}
    everything = [question for split in questions.values() for question in split]
    assert len(set(everything)) == len(everything)
    assert questions["test"] == [p.question for p in islice(wordproblems.problems("test"), 400)]
    assert questions["test"] != [p.question for p in islice(wordproblems.problems("test", seed=1), 400)]


def test_density_merges_paragraphs_and_keeps_every_computation() -> None:
    rng = random.Random(0)
    problems = list(islice(wordproblems.problems("train"), 300))
    steps = []
    for density in (0.0, 0.25, 0.5, 0.75, 1.0):
        told = [wordproblems.solution(problem, density, rng) for problem in problems]
        for problem, text in zip(problems, told, strict=True):
            assert tuple(re.findall(r"\d+ [-+*/] \d+ = \d+", text)) == problem.equations
            assert f"\\boxed{{{problem.answer}}}" in text
        steps.append(statistics.fmean(map(count_steps, told)))
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > 10
    assert steps[-1] < 1.5


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(EdgeSteerError, match="no split 'validation'; word problems have train"):
        next(wordproblems.problems("validation"))  # type: ignore[arg-type]


def test_harder_problems_are_none_that_the_bundled_model_knows() -> None:
    plain, long, large, leaps, sums = (
        list(islice(wordproblems.problems("train", difficulty=wordproblems.DIFFICULTIES[name]), 200))
        for name in wordproblems.DIFFICULTIES
    )
    assert {len(problem.operations) for problem in plain} == {2, 3, 4}
    assert max(problem.largest for problem in plain) <= 99
    assert {len(problem.operations) for problem in long} == {5}
    assert all(100 <= problem.largest <= 199 for problem in large)
    for problem in leaps:
        changes = [one.amount for one in problem.operations if one.kind in ("gain", "loss")]
        assert len(changes) >= 2
        assert all(41 <= amount <= 90 for amount in changes)
    assert {operation.kind for problem in sums for operation in problem.operations} == {"gain", "loss"}
    assert {len(problem.operations) for problem in sums} == {5}


def test_a_harder_task_is_drawn_as_the_plain_one() -> None:
    task = load_task("wordproblems-long", split="train", limit=3)
    dev, test = task.split(2, 2)
    assert task.samples[0].id == "train-0-0"
    assert not {sample.question for sample in dev.samples} & {sample.question for sample in test.samples}
    assert all(sample.question.count(".") == 6 for sample in (*task.samples, *dev.samples, *test.samples))
