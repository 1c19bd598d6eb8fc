"""Two runs of the harness from the samples they logged: pairing, tests and what cannot be compared."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edge_steer.commands.main import main
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.stats import bootstrap, mcnemar
from edge_steer.evaluation.harness import compare_samples, read_samples

DATE = "2026-01-02T03-04-05.678901"


def logged(folder: Path, task: str, values: Mapping[int, float], *, date: str = DATE, metric: str = "acc") -> Path:
    """A file as the harness writes it, with a metric that is no number beside the given one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"samples_{task}_{date}.jsonl"
    samples = [
        {
            "doc_id": number, "doc": {}, "target": "A", "resps": [["A"]], "filter": "none",
            "metrics": [metric, "bits"], metric: value, "bits": [1.0, 2], "doc_hash": f"{task} {number}",
        }
        for number, value in values.items()
    ]  # fmt: skip
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path


def test_runs_are_paired_by_question(tmp_path: Path) -> None:
    before = {0: 1.0, 1: 1.0, 2: 0.0, 3: 0.0, 4: 1.0, 5: 1.0, 9: 1.0}
    after = {5: 0.0, 4: 1.0, 3: 1.0, 2: 0.0, 1: 0.0, 0: 0.0}
    logged(tmp_path / "a" / "model", "mmlu_law", before)
    logged(tmp_path / "b" / "model", "mmlu_law", after)
    (c,) = compare_samples(tmp_path / "a", tmp_path / "b")
    assert (c.task, c.filter, c.metric, c.questions, c.left_out) == ("mmlu_law", "none", "acc", 6, 1)
    assert (c.before, c.after, c.difference) == pytest.approx((4 / 6, 2 / 6, -2 / 6))
    assert (c.lost, c.gained, c.p_value) == (3, 1, mcnemar(3, 1))
    assert c.interval == bootstrap(np.array([-1.0, -1, 0, 1, 0, -1]))


def test_several_tasks_are_compared_together_too(tmp_path: Path) -> None:
    for run, value in (("a", 0.25), ("b", 0.75)):
        logged(tmp_path / run, "bbh_one", {0: value, 1: value}, metric="f1")
        logged(tmp_path / run, "bbh_two", {0: 1.0}, metric="f1")
    comparisons = compare_samples(tmp_path / "a", tmp_path / "b")
    assert [c.task for c in comparisons] == ["bbh_one", "bbh_two", ""]
    assert comparisons[-1].questions == 3
    assert comparisons[-1].difference == pytest.approx(1 / 3)
    assert comparisons[0].p_value is None
    assert comparisons[0].interval is None


def test_another_question_of_the_same_number_is_not_compared(tmp_path: Path) -> None:
    one, other = (logged(tmp_path / run, "t", {0: 1.0, 1: 1.0}) for run in "ab")
    lines = other.read_text().splitlines(keepends=True)
    other.write_text(lines[0].replace("t 0", "changed") + lines[1])
    (c,) = compare_samples(one, other)
    assert (c.questions, c.left_out) == (1, 2)


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    one = logged(tmp_path / "a", "t", {0: 1.0})
    other = logged(tmp_path / "b", "u", {0: 1.0})
    with pytest.raises(EdgeSteerError, match="no question and metric in common"):
        compare_samples(one, other)
    with pytest.raises(EdgeSteerError, match="run the harness with its samples logged"):
        read_samples(tmp_path / "nowhere")
    logged(tmp_path / "a", "t", {0: 1.0}, date="2027-01-02T03-04-05.678901")
    with pytest.raises(EdgeSteerError, match="two runs of t; name one of the files"):
        read_samples(tmp_path / "a")
    other.write_text('{"doc_id": 0}\n')
    with pytest.raises(EdgeSteerError, match="line 1 is no sample of the harness"):
        read_samples(other)


def test_the_command_compares_runs_of_the_harness(tmp_path: Path) -> None:
    one, other = logged(tmp_path / "a", "t", {0: 1.0, 1: 0.0}), logged(tmp_path / "b", "t", {0: 1.0, 1: 1.0, 2: 1.0})
    printed = CliRunner().invoke(main, ["compare", str(one), str(tmp_path / "b")], catch_exceptions=False).stdout
    assert "+0.5000" in printed
    assert "left out 1 values" in printed
    result = CliRunner().invoke(main, ["compare", str(one), str(other), "--json"], catch_exceptions=False)
    assert json.loads(result.stdout)[0]["gained"] == 1
