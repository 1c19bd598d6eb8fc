"""Sweeps on the bundled model: every cell once, the choice, and the same rows however often a sweep is killed."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edge_steer.commands.main import main
from edge_steer.core.backend import EngineOptions, Request
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.evaluation.figures import Figure, Summary
from edge_steer.evaluation.sweep import SweepSettings
from edge_steer.evaluation.sweep_cells import UNSTEERED_CELL, Rule, SweepCell, choose, parse_strengths, sweep_cells
from edge_steer.evaluation.sweep_plots import model_points
from edge_steer.evaluation.sweep_results import read_partial
from edge_steer.evaluation.units import Plan
from edge_steer.llama.engine import Engine
from edge_steer.recipes.recipe import VectorRecipe
from edge_steer.storage.records import Store
from edge_steer.tasks.load import load_task
from edge_steer.tasks.wordproblems import WORD_PROBLEMS
from edge_steer.vectors import native, read

Rows = dict[tuple[str, str, int], dict[str, Any]]

SWEPT = ("--layers", "4,5", "--strengths", "-0.3,0.35", "--choose", "density", "--phase", "generated")
SIZE = ("--dev-problems", "5", "--test-problems", "2", "--threads", "1", "--parallel", "2", "--task", WORD_PROBLEMS)


def edge_steer(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def rows_of(path: Path) -> Rows:
    """The rows that count in a file, without their times."""
    rows: Rows = {}
    for line in path.read_text().splitlines()[1:]:
        row = json.loads(line)
        if "whole" not in row:
            del row["seconds"]
            rows[row["method"], row["id"], row["repeat"]] = row
    return rows


@pytest.fixture(scope="module")
def vector_file(bundled_vector: SteeringVector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vector") / "dense.safetensors"
    native.save(bundled_vector, path)
    return path


@pytest.fixture(scope="module")
def arguments(bundled_f16: Path, vector_file: Path) -> list[object]:
    return ["sweep", bundled_f16, "--vector", vector_file, *SWEPT, *SIZE, "--no-recipe"]


@pytest.fixture(scope="module")
def undisturbed(arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep that ran through."""
    folder = tmp_path_factory.mktemp("undisturbed")
    result = edge_steer(*arguments, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


def test_every_cell_is_answered_once_and_as_alone(
    undisturbed: Path, bundled_f16: Path, bundled_vector: SteeringVector
) -> None:
    rows = rows_of(undisturbed / "dev.jsonl")
    every = sweep_cells((4, 5), (-0.3, 0.35))
    dev, _ = load_task(WORD_PROBLEMS).split(5, 2)
    assert rows.keys() == {(cell.name, sample.id, 0) for cell in every for sample in dev.samples}
    assert all(row["nll"] > 0 for row in rows.values())
    sample = dev.samples[0]
    with Engine.load(bundled_f16, EngineOptions(threads=1)) as engine:
        prompt = engine.chat(dev.messages(sample))
        for layer, strength in ((None, 0.0), (5, -0.3), (5, 0.35)):
            steering = (Steering(bundled_vector, strength, (layer,), "generated"),) if layer else ()
            [alone] = engine.generate([Request(prompt, 400, steering)])
            row = rows[SweepCell(layer, strength).name, sample.id, 0]
            assert row["text"] == alone.text
            assert row["tokens"] == len(alone.tokens)
            assert row["nll"] == pytest.approx(engine.nll((*prompt, *alone.tokens), len(prompt)).mean(), abs=2e-3)


def test_summary_and_plots(undisturbed: Path) -> None:
    summary = json.loads((undisturbed / "summary.json").read_text())
    found = {(cell["layer"], cell["strength"]): cell["figures"] for cell in summary["cells"]}
    assert len(found) == 5
    rows = rows_of(undisturbed / "dev.jsonl")
    for (layer, strength), figures in found.items():
        own = [row for row in rows.values() if row["method"] == SweepCell(layer, strength).name]
        assert figures["tokens"]["mean"] == pytest.approx(sum(row["tokens"] for row in own) / 5)
        assert figures["accuracy"]["mean"] == sum(row["correct"] for row in own) / 5
    assert summary["chosen"]["layer"] == 5
    assert summary["chosen"]["strength"] == 0.35
    assert "densest on dev" in summary["chosen"]["rule"]
    test = rows_of(undisturbed / "test-layer-5-strength-0.35.jsonl")
    assert {row["method"] for row in test.values()} == {"unsteered", "layer 5, strength 0.35"}
    assert not {row["id"] for row in test.values()} & {row["id"] for row in rows.values()}
    assert summary["test"]["comparison"]["problems"] == 2
    for name in ("strengths.png", "heat.png"):
        assert (undisturbed / name).read_bytes().startswith(b"\x89PNG")


def test_density_against_size_from_results(undisturbed: Path, tmp_path: Path) -> None:
    other = tmp_path / "larger"
    other.mkdir()
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["model"]["parameters"] == 3_672_064
    summary["model"] |= {"name": "larger", "parameters": 36_720_640}
    (other / "summary.json").write_text(json.dumps(summary))
    assert [(model.model, model.series) for model in model_points([undisturbed, other])] == [
        ("abacus", "wordproblems, unsteered"), ("larger", "wordproblems, unsteered")
    ]  # fmt: skip
    assert edge_steer("plot", undisturbed, other, "-o", tmp_path / "sizes.png").exit_code == 0
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")
    del summary["model"]["parameters"]
    (other / "summary.json").write_text(json.dumps(summary))
    refused = edge_steer("plot", other, "-o", tmp_path / "none.png")
    assert refused.exit_code == 1
    assert "parameters" in refused.stderr
    assert not (tmp_path / "none.png").exists()


def test_the_same_command_again_makes_no_row(undisturbed: Path, arguments: list[object]) -> None:
    before = (undisturbed / "dev.jsonl").read_bytes()
    result = edge_steer(*arguments, "--out", undisturbed, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["chosen"]["layer"] == 5
    assert (undisturbed / "dev.jsonl").read_bytes() == before


def test_a_folder_cut_anywhere_is_completed_to_the_same_rows(
    undisturbed: Path, arguments: list[object], tmp_path: Path
) -> None:
    """Cut in the header, and in a row; before that cut one row has another text, as if made elsewhere."""
    whole = (undisturbed / "dev.jsonl").read_bytes()
    header, first, *_ = whole.splitlines(keepends=True)
    changed = {**json.loads(first), "text": "made by another machine"}
    begun = header + json.dumps(changed).encode() + b"\n"
    cut = random.Random(0).randrange(len(header) + len(first), len(whole) // 2)
    for number, left in enumerate((header[:-1], begun + whole[len(header) + len(first) : cut])):
        folder = tmp_path / str(number)
        shutil.copytree(undisturbed, folder)
        (folder / "dev.jsonl").write_bytes(left)
        result = edge_steer(*arguments, "--out", folder)
        assert result.exit_code == 0
        assert ("1 rows came out otherwise" in result.stdout) == (number == 1)
        assert rows_of(folder / "dev.jsonl") == rows_of(undisturbed / "dev.jsonl")
        records = [json.loads(line) for line in (folder / "dev.jsonl").read_text().splitlines()[1:]]
        made = Counter((r["method"], r["id"]) for r in records if "whole" not in r and r["nll"] is not None)
        again = [key for key, count in made.items() if count > 1]
        assert again == ([(changed["method"], changed["id"])] if number == 1 else [])


@pytest.mark.slow  # test_a_folder_cut_anywhere_is_completed_to_the_same_rows has the same path
def test_killed_again_and_again_the_rows_are_the_same(
    undisturbed: Path, arguments: list[object], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "edge_steer", *map(str, arguments), "--out", str(tmp_path)]
    dev = tmp_path / "dev.jsonl"
    killed_at = []
    draw = random.Random(1)
    for rows in (3, 22):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and (not dev.exists() or dev.read_bytes().count(b"\n") <= rows):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
        killed_at.append(dev.read_bytes().count(b"\n"))
    assert killed_at == sorted(killed_at)
    assert subprocess.run(command, capture_output=True).returncode == 0
    for name in ("dev.jsonl", "test-layer-5-strength-0.35.jsonl"):
        assert rows_of(tmp_path / name) == rows_of(undisturbed / name)


def test_partial_results_can_be_read(undisturbed: Path, tmp_path: Path) -> None:
    lines = (undisturbed / "dev.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "dev.jsonl").write_bytes(b"".join(lines[:9]) + b'{"task": "wordpro')
    results = read_partial(tmp_path)
    assert sum(summary.completions for summary in results.cells.values()) == 8
    assert results.chosen is None
    shown = edge_steer("sweep", "--show", tmp_path)
    assert shown.exit_code == 0
    assert "nothing is chosen" in shown.stdout


def test_other_settings_and_a_second_writer_are_refused(
    undisturbed: Path, arguments: list[object], tmp_path: Path
) -> None:
    other = edge_steer(*arguments, "--out", undisturbed, "--phase", "all")
    assert other.exit_code == 1
    assert 'phase is "generated" there and "all" here' in other.stderr
    shutil.copy(undisturbed / "dev.jsonl", tmp_path)
    with Store.open(tmp_path / "dev.jsonl", json.loads((tmp_path / "dev.jsonl").open().readline())):
        second = edge_steer(*arguments, "--out", tmp_path)
        assert edge_steer("sweep", "--show", tmp_path).exit_code == 0
    assert second.exit_code == 1
    assert "another process" in second.stderr


def test_the_recipe_of_the_chosen_cell(
    undisturbed: Path, arguments: list[object], tmp_path: Path, bundled_vector: SteeringVector
) -> None:
    again = [argument for argument in arguments if argument != "--no-recipe"] + ["--out", undisturbed, "--recipe"]
    folder = tmp_path / "export" / "abacus" / "dense"
    assert edge_steer(*again, folder).exit_code == 0
    recipe = VectorRecipe.load(folder)
    assert (recipe.model, recipe.layer, recipe.strength, recipe.phase) == ("abacus", 5, 0.35, "generated")
    assert recipe.pairs is None
    assert "5 wordproblems problems" in recipe.chosen
    exported = read.load(folder / recipe.vector)
    assert exported.layers == (5,)
    assert (exported.directions[5] == bundled_vector.directions[5]).all()
    before = (folder / "recipe.toml").read_bytes()
    assert edge_steer(*again, folder).exit_code == 0
    assert (folder / "recipe.toml").read_bytes() == before

    (folder / "recipe.toml").write_bytes(before.replace(b"0.35", b"0.5"))
    refused = edge_steer(*again, folder)
    assert refused.exit_code == 1
    assert "its strength is 0.5, not 0.35" in refused.stderr
    assert b"0.5" in (folder / "recipe.toml").read_bytes()


def test_the_unsteered_model_is_chosen_where_no_cell_is_better(
    undisturbed: Path, arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(undisturbed / "dev.jsonl", tmp_path)
    again = [argument for argument in arguments if argument != "--no-recipe"]
    result = edge_steer(*again, "--out", tmp_path, "--choose", "accuracy")
    assert result.exit_code == 0
    assert "the mildest of equals): unsteered" in result.stdout
    assert not (tmp_path / "export").exists()


def test_units_follow_from_the_settings_and_hold_each_job_once(bundled_vector: SteeringVector) -> None:
    task = load_task(WORD_PROBLEMS, protocol="bias-only", limit=7)
    task = replace(task, settings=replace(task.settings, samples=3))
    methods = [cell.method(bundled_vector, "generated") for cell in sweep_cells((3, 4), (1.0, 2.0))]
    plan = Plan.of(task, methods, parallel=4)
    assert [len(unit.samples) for unit in plan.units] == [3, 3, 1]  # 8 x 4 requests are two problems of 15 and a bit
    keys = [job.key for unit in plan.units for job in plan.jobs(unit)]
    assert len(keys) == len(set(keys)) == plan.size == 7 * 5 * 3
    first = plan.jobs(plan.units[0])[:15]
    assert {job.sample.id for job in first} == {task.samples[0].id}
    assert [job.method.name for job in first[:5]] == [method.name for method in methods]
    assert Plan.of(task, methods[:1], parallel=1).problems == 3


@pytest.mark.parametrize(
    ("text", "strengths"),
    [
        ("-4:4:2", (-4, -2, 2, 4)),
        ("-0.3:0.3:0.1", (-0.3, -0.2, -0.1, 0.1, 0.2, 0.3)),
        ("0.5, 1,2,1", (0.5, 1, 2)),
        ("1:2:0.5,-8", (-8, 1, 1.5, 2)),
        ("5:5:1", (5,)),
        ("1e-1", (0.1,)),
    ],
)
def test_strengths(text: str, strengths: Sequence[float]) -> None:
    assert parse_strengths(text) == strengths


@pytest.mark.parametrize("text", ["", "a", "1:2", "1:2:0", "2:1:1", "0:1:0.3", "0", "nan", "1,,2", "0:1e9:1", "1e999"])
def test_bad_strengths(text: str) -> None:
    with pytest.raises(EdgeSteerError, match="FIRST:LAST:STEP"):
        parse_strengths(text)


def summary(accuracy: float, density: float, tokens: float = 200) -> Summary:
    means = {"accuracy": accuracy, "density": density, "tokens": tokens}
    figures = {name: Figure(mean, None) for name, mean in means.items()}
    return Summary(samples=100, completions=100, errors=0, truncated=0, figures=figures)


@pytest.mark.parametrize(
    ("rule", "chosen"),
    [("accuracy", SweepCell(3, -1.0)), ("density", SweepCell(4, 2.0)), ("tokens", SweepCell(5, 1.0))],
)
def test_the_rules_of_the_choice(rule: Rule, chosen: SweepCell) -> None:
    found = {
        UNSTEERED_CELL: summary(0.80, 16),
        SweepCell(4, 2.0): summary(0.78, 30),
        SweepCell(4, 4.0): summary(0.77, 40, 100),  # too inaccurate for the last two rules
        SweepCell(5, 1.0): summary(0.78, 20, 150),  # the shortest of those accurate enough
        SweepCell(5, 2.0): summary(0.79, 30),  # as dense, but later
        SweepCell(3, -2.0): summary(0.90, 12),
        SweepCell(3, -1.0): summary(0.90, 14),  # as accurate, but milder
        SweepCell(4, -1.0): summary(0.90, 14),
    }
    assert choose(found, rule, 0.02) == chosen
    assert choose({UNSTEERED_CELL: summary(0.9, 16), SweepCell(4, 1.0): summary(0.9, 16)}, rule, 0.02) == UNSTEERED_CELL


def test_dev_and_test_must_be_disjoint(bundled_vector: SteeringVector) -> None:
    task = load_task(WORD_PROBLEMS, limit=3)
    with pytest.raises(EdgeSteerError, match="must be disjoint"):
        SweepSettings(task, task, bundled_vector, (3,), (1.0,))


@pytest.mark.parametrize(
    ("changed", "says", "status"),
    [
        (("--layers", "9"), "layer 9 asked", 1),
        (("--strengths", "0"), "hold only 0", 1),
        (("--dev-problems", "0"), "x>=1", 2),
        (("--task", "nonesuch"), "nonesuch", 1),
        (("--ray", "127.0.0.1:1"), "no Ray cluster at 127.0.0.1:1", 1),
    ],
)
def test_bad_input_is_said_before_anything_runs(
    arguments: list[object], tmp_path: Path, changed: tuple[str, str], says: str, status: int
) -> None:
    result = edge_steer(*arguments, "--out", tmp_path / "out", *changed)
    assert result.exit_code == status
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_show_of_no_sweep(tmp_path: Path) -> None:
    result = edge_steer("sweep", "--show", tmp_path)
    assert result.exit_code == 1
    assert "no such file" in result.stderr
    assert edge_steer("sweep").exit_code == 2
