"""The experiment on real models: its settings, its problems, and the tolerances that follow from what it measured."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from paths import ROOT
from real_settings import read_problems, read_settings
from real_tolerances import worst
from style_settings import read_style

from edge_steer.core.errors import EdgeSteerError
from edge_steer.parity.tolerances import TOLERANCES

FOLDER = ROOT / "benchmarks" / "settings"
OTHERS = ("-stability", "-long", "-training", "-plain", "-terse")  # settings of runs that follow the experiment
SETTINGS = sorted(path for path in FOLDER.glob("*.toml") if not any(part in path.stem for part in OTHERS))


def gsm8k(path: Path, questions: list[str]) -> str:
    path.write_text("".join(json.dumps({"question": q, "answer": f"#### {i}"}) + "\n" for i, q in enumerate(questions)))
    return f"gsm8k={path}"


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_no_problem_is_in_two_parts(path: Path, tmp_path: Path) -> None:
    settings = read_settings(path)
    train = gsm8k(tmp_path / "train.jsonl", [f"How much is {i} and 1?" for i in range(200)])
    test = gsm8k(
        tmp_path / "test.jsonl", [f"How much is {i} and 1?" for i in range(3)] + [f"Count to {i}!" for i in range(600)]
    )
    rewrites = tmp_path / "rewrites.jsonl"
    rewrites.write_text(json.dumps({"doc_id": 7, "negative": "It is 4.\n\nSo 4.", "positive": "It is 4."}) + "\n")
    problems = read_problems(settings, train, test, rewrites)
    asked = [{sample.question for sample in part.samples} for part in (problems.pairs, problems.dev, problems.test)]
    assert [len(asked[0]), len(asked[0]) + len(asked[1])] == [settings.pairs.problems, 200 - 3]
    assert not asked[0] & asked[1]
    assert not asked[2] & (asked[0] | asked[1])
    assert "Count to 4!" not in asked[2]
    assert [pair.question.startswith("Count to 4!") for pair in problems.rewrites] == [True]


def test_what_earlier_runs_asked_is_asked_no_more(tmp_path: Path) -> None:
    train = gsm8k(tmp_path / "train.jsonl", [f"How much is {i} and 1?" for i in range(200)])
    test = gsm8k(tmp_path / "test.jsonl", [f"Count to {i}!" for i in range(600)])
    name = "qwen2.5-coder-0.5b-instruct"
    earlier, full = (read_settings(FOLDER / f"{one}.toml") for one in (name, f"{name}-full"))
    runs = {"first": earlier, "style": read_style(FOLDER / f"{name}-terse.toml").experiment, "full": full}
    asked = {
        run: {sample.id for sample in read_problems(settings, train, test, None).test.samples}
        for run, settings in runs.items()
    }
    first = read_problems(earlier, train, test, None).test.limit(earlier.test.block * earlier.test.blocks)
    assert (len(asked["full"]), len(asked["style"])) == (400, 100)
    blocks = read_problems(replace(full, test=replace(full.test, further=0)), train, test, None).test.samples
    assert read_problems(full, train, test, None).test.samples[:100] == blocks  # the first draw stays where it was
    assert not asked["full"] & (asked["style"] | {sample.id for sample in first.samples})
    assert not asked["style"] & {sample.id for sample in first.samples}


@pytest.mark.parametrize("seen", ["64", "64 of many", "64 of 320 of 9"])
def test_an_earlier_run_is_written_as_a_number_of_a_number(seen: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text((FOLDER / "smollm2-135m-instruct-full.toml").read_text().replace("96 of 320", seen))
    with pytest.raises(EdgeSteerError, match=rf"test\.seen: '{seen}' is not like '64 of 320'"):
        read_settings(path)


def test_settings_with_an_unknown_key_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SETTINGS[0].read_text().replace("[dev]", "[dev]\nlayer = 3"))
    with pytest.raises(EdgeSteerError, match=r"dev\.layer: no such key"):
        read_settings(path)


def test_the_worst_ends_are_taken_over_logits_and_states() -> None:
    cell = {
        "quant": "Q8_0", "cosine": [0.99, [0.98, 0.995]], "residual cosine": [0.97, [0.95, 0.98]],
        "length": [1.0, [0.9, 1.05]], "residual length": [1.1, [1.0, 1.2]],
        "KL": [0.01, [0.008, 0.02]], "KL steered": [0.01, [0.009, 0.015]], "KL ratio": 1.3,
    }  # fmt: skip
    milder = cell | {"residual cosine": [0.99, [0.985, 0.995]], "KL ratio": 1.1}
    assert worst([milder, cell]) == {
        "Q8_0": {"cosine": 0.95, "length off": pytest.approx(0.2), "KL": 0.02, "KL ratio": 1.3}
    }


def test_the_tolerances_follow_the_rule() -> None:
    files = (ROOT / "docs" / "real").glob("*-tolerances.json")
    measured = worst([cell for path in files for cell in json.loads(path.read_text())["cells"]])
    assert {*measured} == {"F16", "Q8_0", "Q6_K", "Q4_K_M"}
    for quant, ends in measured.items():
        allowed = TOLERANCES[quant]
        assert allowed.cosine <= 1 - 1.5 * (1 - ends["cosine"]) < allowed.cosine + 0.01
        assert allowed.norm >= 1.5 * ends["length off"]
        assert allowed.kl >= 1.5 * ends["KL"]
    ratio = 1.5 * max(ends["KL ratio"] for ends in measured.values())
    assert {allowed.kl_ratio for allowed in TOLERANCES.values()} == {math.ceil(2 * ratio) / 2}
