"""What several answers to a problem give by a vote."""

import pytest
from training_report import figures, vote_figures
from training_vote import majority, mean_figure, votes

from edge_steer.tasks.rows import Row


def answers(problem: str, extracted: str, right: str) -> list[Row]:
    """One for each letter; a point is an answer that cannot be read."""
    return [
        Row(
            "gsm8k", problem, repeat, "untrained", prompt="", text="", tokens=1, steps=1, correct=answer in right,
            extracted=answer.replace(".", ""), finish="stop", error="", seconds=1.0, nll=None,
        )
        for repeat, answer in enumerate(extracted)
    ]  # fmt: skip


def test_the_commonest_answer_wins_and_equals_share() -> None:
    rows = answers("won", "aab", "a") + answers("lost", "abb", "a") + answers("drawn", "ab", "a")
    assert votes(rows) == {"won": 1, "lost": 0, "drawn": 0.5}
    assert majority(rows) == 0.5


def test_right_answers_count_together_however_they_are_written() -> None:
    assert votes(answers("one", "aAbb.", "aA")) == {"one": 0.5}


def test_an_answer_that_cannot_be_read_has_no_vote() -> None:
    assert votes(answers("one", "...a", "a")) == {"one": 1}
    assert votes(answers("none", "..", "a")) == {"none": 0}


def test_so_many_answers_in_turn_make_a_vote_and_a_rest_none() -> None:
    rows = answers("one", "aabbbbbb", "a")
    assert votes(rows, 3) == {"one": 0.5}
    assert votes(rows, 1) == {"one": 0.25}
    assert votes(rows) == {"one": 0}


def test_the_interval_is_over_problems() -> None:
    figure = mean_figure({str(number): float(number % 2) for number in range(10)})
    assert figure.mean == 0.5
    assert figure.interval
    assert figure.interval[0] < 0.5 < figure.interval[1]


def test_a_vote_stands_beside_one_answer_of_the_vector() -> None:
    voters = [row for problem in "12345" for row in answers(problem, "aabbb", "a")]
    vector = [row for problem in "12345" for row in answers(problem, "aaab", "a")]
    summary = vote_figures(voters, vector, 5)
    assert [summary[count]["right"]["mean"] for count in (1, 4, 5)] == [0.4, 0.5, 0]
    assert [summary[count]["ahead"]["mean"] for count in (1, 4, 5)] == pytest.approx([0.35, 0.25, 0.75])
    assert [summary[count]["ahead by a vote"]["mean"] for count in (1, 4, 5)] == pytest.approx([0.6, 0.5, 1])


def test_a_gain_is_over_the_untrained_model_and_ahead_is_the_vector() -> None:
    before, rows, vector = (answers("1", text, "a") for text in ("abbb", "aabb", "aaab"))
    cell = figures(rows, before, vector)
    assert cell["accuracy"]["mean"] == 0.5
    assert cell["gain"]["mean"] == cell["ahead"]["mean"] == 0.25
    assert cell["vote"] == 0.5
