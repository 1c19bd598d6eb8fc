"""evaluate and sweep as a Python caller uses them: names or values, a folder or none."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError, VectorError
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector, Tuning
from edge_steer.evaluation.evaluate import EvaluationSettings, evaluate, evaluate_tasks
from edge_steer.evaluation.figures import compare, figure_text, mean_text, summarise
from edge_steer.evaluation.results import compare_folders, default_folder, load_results
from edge_steer.evaluation.sweep import sweep
from edge_steer.evaluation.sweep_cells import SweepCell
from edge_steer.evaluation.sweep_results import read_partial
from edge_steer.llama.engine import Engine
from edge_steer.models.load import load
from edge_steer.storage import records
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.load import load_task
from edge_steer.tasks.rows import Method, Row

TASK = load_task("wordproblems", limit=3)


@pytest.fixture(scope="module")
def model(bundled_f16: Path) -> Iterator[Engine]:
    with load(bundled_f16, options=EngineOptions(parallel=8, threads=1)) as model:
        yield model


@pytest.fixture(scope="module")
def graders() -> Iterator[Graders]:
    with Graders(1) as graders:
        yield graders


def test_methods_by_name_are_vectors_lists_and_system_messages(
    model: Engine, graders: Graders, bundled_vector: SteeringVector
) -> None:
    layer = bundled_vector.at(5)
    rows = evaluate(
        model,
        "wordproblems",
        {
            "unsteered": None,
            "dense": layer * 0.4,
            "sparse": layer.tuned(strength=-0.4),
            "dense again": [layer * 0.2, Steering(bundled_vector, 0.2, (5,))],
            "asked": Method("any name", system="Reason densely."),
        },
        limit=3,
        graders=graders,
    )
    assert [*rows] == ["unsteered", "dense", "sparse", "dense again", "asked"]
    assert all({row.method for row in of_method} == {name} for name, of_method in rows.items())
    assert [row.id for row in rows["dense"]] == [sample.id for sample in TASK.samples]
    steps = {name: summarise(of_method).steps for name, of_method in rows.items()}
    assert steps["dense"] < steps["unsteered"] < steps["sparse"]
    assert [row.text for row in rows["dense again"]] == [row.text for row in rows["dense"]]
    assert {row.prompt for row in rows["asked"]}.isdisjoint(row.prompt for row in rows["dense"])
    change = compare(rows["unsteered"], rows["dense"]).differences["steps"]
    assert change.mean == pytest.approx(steps["dense"] - steps["unsteered"])
    assert figure_text("steps", change, signed=True) == mean_text("steps", change, signed=True) == f"{change.mean:+.1f}"


def test_rows_keep_both_grades_and_end_at_a_stop_string(model: Engine, graders: Graders) -> None:
    plain, cut = TASK.with_settings(grading="lenient"), TASK.with_settings(stop=["\\boxed"], grading="boxed")
    whole = evaluate(model, plain, {"whole": None}, nll=False, graders=graders)["whole"]
    before = evaluate(model, cut, {"cut": None}, nll=False, graders=graders)["cut"]
    assert [row.text for row in before] == [row.text.partition("\\boxed")[0] for row in whole]
    assert not any(row.correct or row.boxed for row in before)
    assert all(row.correct == row.lenient == row.boxed for row in whole)
    summary = summarise(before)
    assert (summary.accuracy, summary.boxed) == (0, 0)
    assert summary.lenient == sum(bool(row.lenient) for row in before) / 3
    old = [replace(row, boxed=None, lenient=None) for row in whole]
    assert not {"boxed", "lenient"} & {*old[0].record()}
    assert [Row.of(row.record()) for row in old] == old
    assert summarise(old).boxed is None


def test_prompt_and_answer_share_a_context(model: Engine, graders: Graders) -> None:
    prompts = [len(model.chat(TASK.messages(sample))) for sample in TASK.samples]
    task = TASK.with_settings(context=max(prompts) + 4)
    rows = evaluate(model, task, {"short": None}, nll=False, graders=graders)["short"]
    assert [row.tokens for row in rows] == [max(prompts) + 4 - prompt for prompt in prompts]
    assert {row.finish for row in rows} == {"length"}


def test_a_folder_keeps_rows_and_goes_on(
    model: Engine, graders: Graders, bundled_vector: SteeringVector, tmp_path: Path
) -> None:
    methods = {"unsteered": None, "dense": bundled_vector.at(5) * 0.4}
    folder = tmp_path / "run"
    rows = evaluate(model, TASK, methods, folder=str(folder), graders=graders)
    header, cells = load_results(str(folder))
    assert {method: of_method for (_, method), of_method in cells.items()} == rows
    assert header["methods"]["dense"]["steering"][0]["vector"] == (bundled_vector.at(5) * 0.4).digest
    assert header["tasks"] == json.loads(json.dumps({"wordproblems": TASK.described()}))

    path = folder / "rows.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    unscored = json.loads(lines[-1]) | {"nll": None, "ids": list(model.encode(rows["dense"][-1].text, start=False))}
    path.write_text("".join([*lines[:4], json.dumps(unscored) + "\n"]))
    (folder / "summary.json").unlink()
    again = evaluate(model, TASK, methods, folder=folder, graders=graders)
    assert [replace(row, nll=None) for row in again["dense"]] == [replace(row, nll=None) for row in rows["dense"]]
    assert again["dense"][-1].nll == pytest.approx(rows["dense"][-1].nll, abs=1e-6)
    assert again["unsteered"] == rows["unsteered"]
    assert len(records.read(path)[1]) == 6
    assert json.loads((folder / "summary.json").read_text())["comparisons"][0]["problems"] == 3
    [(task, comparison)] = compare_folders(folder, str(folder), ("unsteered", "dense"))
    assert (task, comparison.problems) == ("wordproblems", 3)
    with pytest.raises(EdgeSteerError, match="was made otherwise"):
        evaluate(model, TASK, {"unsteered": None}, folder=folder, graders=graders)


def test_several_tasks_in_one_evaluation(model: Engine, graders: Graders, tmp_path: Path) -> None:
    other = replace(TASK, name="other").limit(1)
    settings = EvaluationSettings.of([TASK.limit(2), other], {"unsteered": None}, nll=False)
    cells = evaluate_tasks(model, settings, graders=graders)
    assert {cell: len(rows) for cell, rows in cells.items()} == {
        ("wordproblems", "unsteered"): 2,
        ("other", "unsteered"): 1,
    }
    assert not any(tmp_path.iterdir())
    folder = default_folder(settings.header(model.provenance), root=tmp_path)
    assert folder.parent == tmp_path / "abacus-F16"
    more = EvaluationSettings.of([TASK.limit(3), other], {"unsteered": None}, nll=False)
    assert default_folder(more.header(model.provenance), root=tmp_path) != folder


def test_what_cannot_be_evaluated_is_said_before_anything_is_written(
    model: Engine, bundled_vector: SteeringVector, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    other_model = replace(bundled_vector, model=replace(bundled_vector.model, block_count=7))
    with pytest.raises(VectorError, match="use one extracted from that model"):
        evaluate(model, TASK, {"dense": other_model}, folder=folder)
    with pytest.raises(VectorError, match="steer is a float"):
        evaluate(model, TASK, {"dense": 0.4}, folder=folder)  # type: ignore[dict-item]
    with pytest.raises(EdgeSteerError, match="no method to evaluate"):
        evaluate(model, TASK, {}, folder=folder)
    with pytest.raises(EdgeSteerError, match="named twice in wordproblems, wordproblems"):
        EvaluationSettings.of([TASK, TASK], {"unsteered": None})
    assert not folder.exists()


def test_a_sweep_gives_the_tuned_vector(
    model: Engine, graders: Graders, bundled_vector: SteeringVector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = load_task("wordproblems").with_settings(max_tokens=60)
    size: dict[str, Any] = {"dev": 2, "test": 1}
    results = sweep(
        model, bundled_vector, task, layers=5, strengths=[0.35, 0], **size, rule="density", margin=1.0, nll=False,
        graders=graders,
    )  # fmt: skip
    assert not [*tmp_path.iterdir()], "without a folder nothing is written"
    assert [*results.cells] == [SweepCell(None, 0.0), SweepCell(5, 0.35)]
    assert results.chosen == SweepCell(5, 0.35)
    assert results.tuned_vector.tuning == Tuning((5,), 0.35, "all")
    assert results.tuned_vector == bundled_vector.at(5)
    kept = sweep(
        model, bundled_vector, task, layers="5", strengths="0.35", **size, rule="density", margin=1.0, nll=False,
        graders=graders, folder="kept",
    )  # fmt: skip
    assert kept.cells == results.cells
    assert json.loads(Path("kept", "summary.json").read_text())["chosen"]["phase"] == "all"
    partial = read_partial("kept")
    assert partial.cells == results.cells
    with pytest.raises(EdgeSteerError, match="no cell of the sweep was chosen"):
        _ = partial.tuned_vector
    with pytest.raises(EdgeSteerError, match="no rule 'luck'"):
        sweep(model, bundled_vector, task, strengths="1", rule="luck", graders=graders)  # type: ignore[arg-type]
    with pytest.raises(EdgeSteerError, match="no strength but 0"):
        sweep(model, bundled_vector, task, strengths=[0.0], graders=graders)
