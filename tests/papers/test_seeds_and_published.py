"""Scores over seeds against the formula, the papers' own averages, and the table that sets measured figures beside."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from edge_steer.commands.main import main
from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.sampling import Sampling
from edge_steer.evaluation.evaluate import EvaluationSettings
from edge_steer.evaluation.results import load_results
from edge_steer.llama.engine import Engine
from edge_steer.models.load import load
from edge_steer.papers.published import PAPERS, Paper, read_published
from edge_steer.papers.seeds import MethodScores, Score, evaluate_seeds, load_scores
from edge_steer.tasks.load import load_task

TASK = load_task("wordproblems", limit=4).with_settings(sampling=Sampling(temperature=2.0), max_tokens=120, samples=2)
DENSESTEER = {"gsm8k": 1319, "math500": 500, "amc23": 40, "olympiadbench": 675, "aime24": 30}


@pytest.fixture(scope="module")
def model(bundled_f16: Path) -> Iterator[Engine]:
    with load(bundled_f16, options=EngineOptions(parallel=8, threads=1)) as model:
        yield model


def measured(model: str, method: str, shares: dict[str, float], problems: dict[str, int] | None = None) -> MethodScores:
    return MethodScores(model, method, {task: {0: share} for task, share in shares.items()}, problems or DENSESTEER)


def test_seeds_are_joined_to_mean_and_population_deviation(model: Engine, tmp_path: Path) -> None:
    settings = EvaluationSettings.of([TASK], {"unsteered": None}, nll=False)
    (scores,) = evaluate_seeds(model, settings, [3, 4, 5], tmp_path)
    rows = [load_results(tmp_path / f"seed-{seed}")[1]["wordproblems", "unsteered"] for seed in (3, 4, 5)]
    assert len({tuple(row.text for row in of_seed) for of_seed in rows}) == 3
    percent = [100 * statistics.fmean(row.correct for row in of_seed) for of_seed in rows]
    assert scores.score("wordproblems") == Score(statistics.fmean(percent), statistics.pstdev(percent))
    assert scores.problems == {"wordproblems": 4}
    assert load_scores([tmp_path / f"seed-{seed}" for seed in (3, 4, 5)]) == load_scores([tmp_path]) == [scores]
    with pytest.raises(EdgeSteerError, match="with seed 3 is in another folder too"):
        load_scores([tmp_path, tmp_path / "seed-3"])
    for wrong in ([], [1, 1]):
        with pytest.raises(EdgeSteerError, match="at least one is needed, each once"):
            evaluate_seeds(model, settings, wrong, tmp_path)
    greedy = EvaluationSettings.of([load_task("wordproblems", limit=1)], {"unsteered": None})
    with pytest.raises(EdgeSteerError, match="every seed gives the same texts"):
        evaluate_seeds(model, greedy, [0, 1], tmp_path / "greedy")
    assert not (tmp_path / "greedy").exists()


def test_averages_are_over_each_seed_and_never_over_missing_tasks() -> None:
    scores = MethodScores("m", "steered", {"a": {0: 0.5, 1: 0.7}, "b": {0: 0.1, 1: 0.2}}, {"a": 10, "b": 30})
    unweighted, weighted = (scores.average(["a", "b"], weighted=by_problems) for by_problems in (False, True))
    assert unweighted
    assert weighted
    assert (unweighted.mean, unweighted.std) == pytest.approx((37.5, 7.5))
    assert (weighted.mean, weighted.std) == pytest.approx((26.25, 6.25))
    assert scores.average(["a", "b", "c"]) is None
    assert MethodScores("m", "s", {"a": {0: 0.5}, "b": {0: 0.1, 1: 0.2}}).average(["a", "b"]) is None
    assert (str(Score(12.34)), str(Score(12.34, 0.26))) == ("12.3", "12.3 ± 0.3")


@pytest.mark.parametrize("paper", PAPERS)
def test_published_averages_recompute(paper: Paper) -> None:
    table = read_published(paper)
    whole = [row for row in table.rows if {*row.cells} == {*table.labels}]
    assert len(whole) == {"densesteer": 7, "bias-only": 21}[paper]
    for row in whole:
        weights = [table.problems[task] if table.weighted else 1 for task in table.labels]
        mean = statistics.fmean([row.cells[task].mean for task in table.labels], weights=weights)
        assert row.average is not None
        assert row.average.mean == pytest.approx(mean, abs=0.1), (row.model, row.name)
    assert all(row.average is None for row in table.rows if row not in whole and row.cells)
    if paper == "densesteer":
        assert table.problems == DENSESTEER


def test_measured_rows_stand_beside_the_published_ones() -> None:
    table = read_published("densesteer")
    rows = table.beside(
        [
            measured("Qwen/qwen2.5-3b-instruct Q4_K_M", "dense", dict.fromkeys(DENSESTEER, 0.5)),
            measured("Qwen2.5-3B-Instruct", "mine", {"gsm8k": 0.25}),
            measured("Qwen2.5-3B", "unsteered", {"gsm8k": 0.25}),
            measured("abacus", "unsteered", {"wordproblems": 1.0}),
        ]
    )
    assert [*rows] == ["Qwen2.5-3B-Instruct", "Llama-3.2-3B-Instruct", "Qwen2.5-3B"]
    published = [row.name for row in rows["Qwen2.5-3B-Instruct"] if row.published]
    assert [row.name for row in rows["Qwen2.5-3B-Instruct"]] == [*published, "dense", "mine"]
    dense, mine = rows["Qwen2.5-3B-Instruct"][-2:]
    assert dense.average
    assert dense.average.mean == pytest.approx(50)
    assert (mine.cells, mine.average) == ({"gsm8k": Score(25.0)}, None)
    few = measured("m", "dense", {"gsm8k": 1.0}, {"gsm8k": 100})
    assert table.partial([few]) == ["m, dense: 100 problems of gsm8k, where the paper has 1319"]


def edge_steer(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_eval_with_seeds_and_the_table(bundled_f16: Path, tmp_path: Path) -> None:
    gsm8k = tmp_path / "gsm8k.jsonl"
    gsm8k.write_text('{"question": "Mia has 3 pens. Mia buys 2 more pens. How many?", "answer": "#### 5"}\n')
    command = ("eval", bundled_f16, "--task", f"gsm8k={gsm8k}", "--protocol", "bias-only", "--threads", 1, "-n", 30)
    printed = edge_steer(*command, "--no-nll", "--seeds", "0,1", "--out", tmp_path / "runs")
    assert "mean and population standard deviation over seeds" in printed
    assert "±" in printed
    rows = json.loads(edge_steer("table", "densesteer", tmp_path / "runs", "--json"))
    (ours,) = [row for row in rows if not row["published"]]
    assert (ours["method"], [*ours["cells"]], ours["average"]) == ("unsteered", ["gsm8k"], None)
    printed = edge_steer("table", "densesteer", tmp_path / "runs")
    assert "here: unsteered" in printed
    assert "1 problems of gsm8k, where the paper has 1319" in printed
    for seeds in ("1,a", "1,1"):
        assert CliRunner().invoke(main, [*map(str, command), "--seeds", seeds]).exit_code
    assert "64.6" in edge_steer("table", "densesteer")
