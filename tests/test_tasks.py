"""Samples, grades and densities."""

import pytest

from edge_steer import tasks
from edge_steer.errors import EdgeSteerError


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("3 + 4 = 7.\n\nThe answer is \\boxed{7}.", True),
        ("The answer is \\boxed{7}. This is the final result.", True),
        ("The answer is \\boxed{\\frac{14}{2}}.", True),
        ("The answer is \\boxed{8}. It is not 7.", False),
        ("", False),
    ],
)
def test_grade(text: str, right: bool) -> None:
    assert tasks.grade(text, "7") is right


def test_every_gold_answer_grades_as_correct() -> None:
    samples = tasks.word_problems("dev", 50)
    assert all(tasks.grade(f"\\boxed{{{sample.answer}}}", sample.answer) for sample in samples)
    assert len({sample.id for sample in samples}) == 50


def test_steps_are_paragraphs() -> None:
    assert tasks.count_steps("a\n\nb\nc\n \n\n\nd\n\n") == 3
    assert tasks.count_steps(" \n\n ") == 0
    assert tasks.density(30, 3) == 10
    with pytest.raises(EdgeSteerError, match="empty text"):
        tasks.density(0, 0)
