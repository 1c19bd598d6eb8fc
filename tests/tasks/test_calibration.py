from dataclasses import replace
from pathlib import Path

import pytest
from heard import Heard

from edge_steer.core.errors import EdgeSteerError
from edge_steer.tasks.calibration import (
    evaluation_tasks,
    leave_out_evaluation_problems,
    load_calibration_task,
    normal_text,
    shared_problems,
)
from edge_steer.tasks.load import load_task
from edge_steer.tasks.task import Sample


def test_problems_are_compared_by_letters_and_digits() -> None:
    mine = [Sample("a", "Mia has  2½ Apples.\nHow many?", "1"), Sample("b", "Mia has 3 apples. How many?", "1")]
    theirs = [Sample("x", "mia has 2½ apples - how many", "1"), Sample("y", "Mia has 30 apples. How many?", "1")]
    assert shared_problems(mine, theirs) == [(mine[0], theirs[0])]
    assert normal_text("$\\frac{1}{2}$ of  a_b") == "frac 1 2 of a b"
    dev, test = (load_task("wordproblems", split=split, limit=50).samples for split in ("dev", "test"))
    assert not shared_problems(dev, test)
    assert len(shared_problems(dev, dev)) == 50


def test_a_calibration_task_takes_the_split_that_no_evaluation_uses() -> None:
    task = load_calibration_task("wordproblems", limit=3)
    assert [sample.id for sample in task.samples] == ["calibration-0-0", "calibration-0-1", "calibration-0-2"]
    assert load_calibration_task("wordproblems", split="dev", limit=1).samples[0].id == "dev-0-0"
    [test] = evaluation_tasks(task)
    assert test.digest == load_task("wordproblems", split="test").digest
    assert [named.samples[0].id for named in evaluation_tasks(task, ["wordproblems"])] == ["test-0-0"]


def test_evaluation_problems_are_left_out_with_a_note_each() -> None:
    task, heard = load_task("wordproblems", split="dev", limit=14), Heard()
    first = load_task("wordproblems", split="dev", limit=12)
    rest = leave_out_evaluation_problems(task, [first, load_task("wordproblems", limit=5)], heard)
    assert [sample.id for sample in rest.samples] == ["dev-0-12", "dev-0-13"]
    assert heard.notes[:3] == [
        "12 of 14 problems are among the 12 of wordproblems",
        "0 of 14 problems are among the 5 of wordproblems",
        "left out: dev-0-0: is wordproblems dev-0-0",
    ]
    assert heard.notes[-1] == "left out: 2 more" and len(heard.notes) == 2 + 10 + 1
    with pytest.raises(EdgeSteerError, match="every problem of wordproblems is an evaluation problem"):
        leave_out_evaluation_problems(first, [task])


def test_what_cannot_be_compared_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, task = Heard(), load_task("wordproblems", limit=2)
    assert leave_out_evaluation_problems(task, [], heard) == task
    assert not heard.notes  # its splits are generated and share no problem
    task = replace(task, draw=None)
    assert leave_out_evaluation_problems(task, [], heard) == task
    assert heard.notes == ["disjointness from evaluation problems was not checked; name the evaluation tasks"]
