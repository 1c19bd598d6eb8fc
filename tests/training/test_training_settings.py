"""The trainings on a real model: their settings, and how their problems are chosen."""

import json
import re
from pathlib import Path

import pytest
from paths import ROOT
from training_settings import easy_problems, read_settings, unseen_problems, with_contrast

from edge_steer.core.errors import EdgeSteerError
from edge_steer.tasks.rows import Row

SETTINGS = sorted((ROOT / "benchmarks" / "settings").glob("*-training*.toml"))
LONG = next(path for path in SETTINGS if path.stem.endswith("-long"))


def problems(path: Path, calculations: list[int]) -> Path:
    lines = [
        json.dumps({"question": f"How much is {number}?", "answer": f"{'<<1+1=2>>' * count} #### {number}"})
        for number, count in enumerate(calculations)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def answer(problem: str, repeat: int, *, right: bool) -> Row:
    return Row(
        "gsm8k", problem, repeat, "pool", prompt="", text="", tokens=1, steps=1, correct=True, extracted="",
        finish="stop", error="", seconds=1.0, nll=None, boxed=right, lenient=True,
    )  # fmt: skip


def test_each_training_is_tested_on_other_problems(tmp_path: Path) -> None:
    easy = problems(tmp_path / "test.jsonl", [1, 2, 3] * 200)
    drawn = []
    for path in SETTINGS:
        settings = read_settings(path)
        task = easy_problems(easy, tmp_path / path.stem, settings)
        assert len(task.samples) == 400
        drawn.append({sample.question for sample in unseen_problems(task, settings.test).samples})
    assert len(drawn) == 3
    assert len(set.union(*drawn)) == sum(map(len, drawn))


def test_only_problems_with_right_and_wrong_boxes_have_a_contrast(tmp_path: Path) -> None:
    task = easy_problems(problems(tmp_path / "train.jsonl", [1] * 3), tmp_path / "easy", read_settings(LONG))
    rows = [
        answer(sample.id, repeat, right=repeat < number)
        for number, sample in enumerate(task.samples)  # none right, one, both
        for repeat in range(2)
    ]
    assert with_contrast(task, rows).samples == (task.samples[1],)


def test_settings_with_an_unknown_key_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(LONG.read_text().replace("[pool]", "[pool]\nanswers = 3"))
    with pytest.raises(EdgeSteerError, match=r"pool\.answers: no such key"):
        read_settings(path)


def test_an_unknown_control_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(LONG.read_text().replace('"random vector"', '"rest"'))
    with pytest.raises(EdgeSteerError, match=r"controls: no 'rest'; allowed are shuffled rewards, random vector"):
        read_settings(path)


def test_a_training_a_seed_and_one_with_shuffled_rewards(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(re.sub(r"^seeds = \d", "seeds = 2", LONG.read_text(), flags=re.MULTILINE))
    first, second, shuffled = read_settings(path).trainings()
    assert (first.folder, second.folder, shuffled.folder) == ("trained", "trained-1", "trained-shuffled")
    assert (first.rloo.seed, second.rloo.seed, shuffled.rloo.seed) == (0, 1, 0)
    assert [training.rloo.shuffle_rewards for training in (first, second, shuffled)] == [False, False, True]
