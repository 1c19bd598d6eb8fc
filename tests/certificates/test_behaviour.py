"""Both sides on the same problems: doses, paired figures, where texts part."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from heard import Heard

from edge_steer.certificates import behaviour
from edge_steer.core.backend import EngineOptions, Tokens
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.llama.engine import Engine
from edge_steer.parity.texts import TokenisedText
from edge_steer.tasks.load import load_task
from edge_steer.tasks.rows import Row
from edge_steer.tasks.task import Task
from edge_steer.tasks.wordproblems import WORD_PROBLEMS


def row(identity: str, text: str, *, correct: bool = True) -> Row:
    return Row("t", identity, 0, "dose 1", "", text, len(text), 1, correct, "", "stop", "", 0.0, 0.5)


def letters(text: str) -> Tokens:
    return tuple(map(ord, text))


def test_where_texts_part_and_what_is_lost() -> None:
    reference = [row(str(i), "abcdef") for i in range(8)]
    other = [row("0", "abXdef"), row("1", "abcdefgh"), *(row(str(i), "abcdef", correct=i > 2) for i in range(2, 8))]
    [dose] = behaviour.compare_doses({1.0: reference}, {1.0: other}, letters)
    assert dose.equal == 6
    assert dose.parted == (("0", 2), ("1", 6))
    assert dose.median_parted == 4
    assert dose.comparison.lost == 1
    assert dose.comparison.differences["tokens"].mean == 2 / 8
    [found] = behaviour.accuracy_findings([dose], most_lost=0.5)
    assert (found.value, found.verdict) == (1 / 8, "pass")
    [found] = behaviour.accuracy_findings([dose], most_lost=0.05)
    assert found.verdict == "not enough data"
    none = [row(str(i), "", correct=False) for i in range(8)]
    [found] = behaviour.accuracy_findings(
        behaviour.compare_doses({0.0: reference}, {0.0: none}, letters), most_lost=0.5
    )
    assert found.verdict == "fail"
    [same] = behaviour.compare_doses({0.5: reference}, {0.5: reference}, letters)
    assert same.median_parted is None
    assert behaviour.accuracy_findings([same], most_lost=0.0) == []


@pytest.fixture(scope="module")
def engine(bundled_f16: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f16, EngineOptions(threads=1)) as engine:
        yield engine


def test_rows_of_every_dose_are_kept(engine: Engine, bundled_vector: SteeringVector, tmp_path: Path) -> None:
    task: Task = load_task(WORD_PROBLEMS, split="dev", limit=3)
    task = replace(task, settings=replace(task.settings, max_tokens=40))
    steering = [Steering(bundled_vector, 0.325, (5,))]
    heard = Heard()
    asked = behaviour.Behaviour(task, (0.0, 1.0), tuple(steering))
    header = asked.header("digest", {"threads": 1})
    first, second = (asked.answers(engine, tmp_path / "rows.jsonl", header, heard) for _ in range(2))
    assert first == second
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1 + 2 * 3 + 3  # the steered are scored later
    assert {rows[0].method for rows in first.values()} == {"dose 0", "dose 1"}
    assert [r.text for r in first[0.0]] != [r.text for r in first[1.0]]
    texts: list[TokenisedText] = behaviour.answer_texts(engine, task, first[1.0])
    assert [engine.decode(text.tokens[text.prompt :]) for text in texts] == [r.text for r in first[1.0]]
    assert behaviour.dose_method(steering, -0.5).steering[0].strength == pytest.approx(-0.1625)
    assert behaviour.dose_method(steering, 0).steering == ()
