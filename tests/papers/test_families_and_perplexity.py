"""Accuracy over steps and density against slow formulas; texts scored alone against another route."""

import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from matplotlib.image import imread

from edge_steer.commands.main import main
from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.sampling import Sampling
from edge_steer.core.stats import log_softmax
from edge_steer.core.vector import SteeringVector
from edge_steer.evaluation.evaluate import evaluate
from edge_steer.evaluation.plots import AccuracyPoint, Point, plot_accuracy
from edge_steer.evaluation.sweep import sweep
from edge_steer.llama.engine import Engine
from edge_steer.models.load import load
from edge_steer.papers.families import accuracy_points
from edge_steer.papers.perplexity import folder_perplexities, text_perplexity
from edge_steer.tasks.load import load_task
from edge_steer.tasks.rows import Row

TASK = load_task("wordproblems", limit=4).with_settings(
    sampling=Sampling(temperature=0.7, top_p=0.95), samples=2, max_tokens=150
)


@pytest.fixture(scope="module")
def model(bundled_f16: Path) -> Iterator[Engine]:
    with load(bundled_f16, options=EngineOptions(parallel=8, threads=1)) as model:
        yield model


@pytest.fixture(scope="module")
def folder(model: Engine, bundled_vector: SteeringVector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("family") / "run"
    evaluate(model, TASK, {"unsteered": None, "dense": bundled_vector.at(5) * 0.4}, folder=path, nll=False)
    return path


def rows_of(folder: Path, method: str) -> list[Row]:
    records = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()[1:]]
    return [Row.of(record) for record in records if record["method"] == method]


def test_points_are_means_over_problems_with_one_standard_error(folder: Path) -> None:
    points = accuracy_points([folder])
    assert [point.series for point in points] == [
        f"{points[0].model}, wordproblems, {method}" for method in ("unsteered", "dense")
    ]
    rows = rows_of(folder, "unsteered")
    by_problem = [[row for row in rows if row.id == sample.id] for sample in TASK.samples]
    assert all(len(of_problem) == 2 for of_problem in by_problem)
    steps = [statistics.fmean(row.steps for row in of_problem) for of_problem in by_problem]
    error = math.sqrt(sum((value - statistics.fmean(steps)) ** 2 for value in steps) / 3) / 2
    point = points[0].steps
    assert (point.value, point.high - point.value) == pytest.approx((statistics.fmean(steps), error))
    assert point.value - point.low == pytest.approx(error)
    density = [statistics.fmean(row.tokens / row.steps for row in of_problem) for of_problem in by_problem]
    assert points[0].density.value == pytest.approx(statistics.fmean(density))
    assert points[1].density.value > points[0].density.value


def test_models_of_a_family_are_one_line(folder: Path, tmp_path: Path) -> None:
    for name, size in (("Qwen2.5-0.5B-Instruct", 5), ("Qwen2.5-3B-Instruct", 30)):
        lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
        header = json.loads(lines[0])
        header["model"] |= {"name": f"Qwen/{name}", "parameters": size}
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text("".join([json.dumps(header) + "\n", *lines[1:]]))
    folders = sorted(path for path in tmp_path.iterdir())
    points = accuracy_points(folders)
    assert {point.series for point in points} == {
        "Qwen2.5-Instruct, wordproblems, unsteered",
        "Qwen2.5-Instruct, wordproblems, dense",
    }
    output = tmp_path / "figure1.png"
    command = ["plot", *map(str, folders), "--figure", "accuracy", "-o", str(output)]
    assert CliRunner().invoke(main, command, catch_exceptions=False).output == f"wrote {output}\n"
    assert imread(output).shape[1] > 1000


def test_nothing_and_one_problem_make_no_figure(model: Engine, tmp_path: Path) -> None:
    with pytest.raises(EdgeSteerError, match="no models to plot"):
        plot_accuracy([], "", tmp_path / "x.png")
    evaluate(model, TASK.limit(1), {"unsteered": None}, folder=tmp_path / "one", nll=False)
    with pytest.raises(EdgeSteerError, match="needs 2 answered problems"):
        accuracy_points([tmp_path / "one"])
    point = Point(1, 1, 1)
    plot_accuracy([AccuracyPoint("m", 0, "s", point, point, point)], "one model", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_texts_are_scored_without_their_prompt(model: Engine, folder: Path) -> None:
    results = {result.method: result for result in folder_perplexities(model, folder)}
    assert [*results] == ["unsteered", "dense"]
    perplexities = []
    for row in rows_of(folder, "dense"):
        tokens = model.encode(row.text)
        logits = log_softmax(model.logits(tokens, 1))
        likelihoods = [logits[i, token] for i, token in enumerate(tokens[1:])]
        perplexities.append(math.exp(-statistics.fmean(likelihoods)))
    assert results["dense"].texts == 8
    assert results["dense"].log_mean == pytest.approx(math.log(statistics.fmean(perplexities)), abs=1e-2)
    assert json.loads((folder / "perplexity.json").read_text())[1]["log_mean"] == results["dense"].log_mean
    assert text_perplexity(model, "") is None


def test_the_command_scores_a_sweep_and_draws_it(
    model: Engine, bundled_f16: Path, bundled_f32: Path, bundled_vector: SteeringVector, tmp_path: Path
) -> None:
    task = load_task("wordproblems").with_settings(max_tokens=60)
    sweep(model, bundled_vector, task, layers=5, strengths=[-0.3, 0.3], dev=2, test=1, nll=False, folder=tmp_path)
    command = ["perplexity", str(bundled_f16), str(tmp_path), "--threads", "1", "--json"]
    results = json.loads(CliRunner().invoke(main, command, catch_exceptions=False).stdout)
    assert [result["method"] for result in results] == [
        "unsteered",
        "layer 5, strength -0.3",
        "layer 5, strength 0.3",
    ]
    assert (tmp_path / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    other = CliRunner().invoke(main, ["perplexity", str(bundled_f32), str(tmp_path)])
    assert other.exit_code == 1
    assert "score them with the same file" in other.stderr
