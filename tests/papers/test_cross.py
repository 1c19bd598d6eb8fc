"""The cross table: cells from folders of results, differences to full training, the published one beside it."""

from pathlib import Path

import pytest
from click.testing import CliRunner

import edge_steer as es
from edge_steer.commands.main import main
from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.sampling import Sampling
from edge_steer.core.vector import SteeringVector
from edge_steer.papers.cross import CrossFolder, cross_rows, published_cross
from edge_steer.tasks.grading import Graders

TASKS = [
    es.load_task(name, limit=2).with_settings(max_tokens=25, samples=2, sampling=Sampling(temperature=1.0))
    for name in ("wordproblems", "wordproblems-leaps")
]


@pytest.fixture(scope="module")
def folders(bundled_f16: Path, bundled_vector: SteeringVector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, and one vector in the place of what was trained; full twice, as two seeds."""
    folder = tmp_path_factory.mktemp("cross")
    steers = {"base": None, "vector": bundled_vector.at(3) * 2, "full-0": None, "full-1": bundled_vector.at(3)}
    with es.load(bundled_f16, options=EngineOptions(threads=1)) as model, Graders() as graders:
        for name, steer in steers.items():
            for task in TASKS:
                own = folder / name / task.name
                es.evaluate(model, task, {name: steer}, folder=own, nll=False, graders=graders)
    return folder


def cells(folder: Path, *names: str) -> list[str]:
    kinds = {
        "base": "base",
        "vector": "vector:wordproblems",
        "full-0": "full:wordproblems",
        "full-1": "full:wordproblems",
    }
    return [f"{kinds[name]}={folder / name / task.name}" for name in names for task in TASKS]


def test_a_row_is_a_training_and_a_test(folders: Path) -> None:
    texts = cells(folders, "base", "vector", "full-0", "full-1")
    own, other = cross_rows([CrossFolder.parse(text) for text in texts])
    assert (own.trained, own.tested) == ("wordproblems", "wordproblems")
    assert (other.trained, other.tested) == ("wordproblems", "wordproblems-leaps")
    assert own.model == "abacus F16"
    for row in (own, other):
        vector, full = row.cells["vector"], row.cells["full"]
        assert full.seeds == 2
        assert vector.to_full is not None
        assert vector.to_full.mean == pytest.approx(vector.accuracy.mean - full.accuracy.mean)
        assert row.cells["base"].to_full is None


def test_the_published_rows_are_the_papers() -> None:
    paper, source, rows = published_cross()
    assert "table 4" in paper
    assert "8 answers" in source
    assert len(rows) == 16
    by_key = {(row.model, row.trained, row.tested): row.cells for row in rows}
    cell = by_key["Qwen2.5-1.5B", "math", "math500"]["vector"]
    assert cell.accuracy.mean == pytest.approx(0.5139)
    assert cell.to_full is not None
    assert cell.to_full.mean == pytest.approx(0.5139 - 0.4448)


def test_the_command_prints_both(folders: Path) -> None:
    result = CliRunner().invoke(main, ["table", "cross", *cells(folders, "base", "vector", "full-0")])
    assert result.exit_code == 0, result.output
    assert "here: abacus F16" in result.output
    assert "Llama-3.1-8B-Instruct" in result.output


@pytest.mark.parametrize("text", ["vector=there", "base:math=there", "steering:math=there", "base", "lora:math="])
def test_a_cell_says_what_it_is(text: str) -> None:
    with pytest.raises(EdgeSteerError, match="names no cell"):
        CrossFolder.parse(text)


def test_cells_of_other_problems_are_refused(folders: Path, bundled_f16: Path, tmp_path: Path) -> None:
    with es.load(bundled_f16, options=EngineOptions(threads=1)) as model:
        es.evaluate(model, TASKS[0].limit(1), {"base": None}, folder=tmp_path, nll=False)
    texts = [*cells(folders, "vector"), f"base={tmp_path}"]
    with pytest.raises(EdgeSteerError, match="do not hold the same problems"):
        cross_rows([CrossFolder.parse(text) for text in texts])
    with pytest.raises(EdgeSteerError, match="no folder of a training"):
        cross_rows([CrossFolder.parse(text) for text in cells(folders, "base")])
