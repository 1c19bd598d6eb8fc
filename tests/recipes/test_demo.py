"""The main path from end to end on the bundled model, with few problems."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from paths import ROOT

from edge_steer.commands.main import main
from edge_steer.core.vector import Tuning
from edge_steer.vectors import read


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the vector's recipe alone, in a tree of its own."""
    monkeypatch.setenv("EDGE_STEER_CACHE", str(tmp_path / "cache"))
    shutil.copytree(
        ROOT / "models" / "abacus", tmp_path / "models" / "abacus", ignore=shutil.ignore_patterns("training")
    )
    folder = tmp_path / "export" / "abacus" / "dense"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "export" / "abacus" / "dense" / "recipe.toml", folder)
    return folder


def test_the_demo_writes_vector_table_and_plot(out: Path) -> None:
    model = out.parents[2] / "models" / "abacus"
    result = CliRunner().invoke(main, ["demo", "--model", str(model), "--problems", "4"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["recipe.toml", "response.png", "table.json", "vector.gguf"]
    table = json.loads((out / "table.json").read_text())
    vector = read.load(out / "vector.gguf")
    assert vector.layers == (table["layer"],)
    assert vector.pairs == 50
    assert vector.tuning == Tuning((table["layer"],), table["strength"], table["phase"])
    cells = {(cell["backend"], cell["strength"]): cell for cell in table["cells"]}
    assert {backend for backend, _ in cells} == {"torch float32", "F16", "Q8_0", "Q4_K_M"}
    assert len(cells) == 4 * 7
    kl = {backend: cells[backend, 0.0]["parity"]["kl"]["mean"] for backend in ("F16", "Q8_0", "Q4_K_M")}
    assert kl["F16"] < kl["Q8_0"] < kl["Q4_K_M"] < 0.1
    assert (out / "response.png").read_bytes().startswith(b"\x89PNG")
    assert not list((out.parents[2] / "cache" / "demo").iterdir())


def test_steering_works_in_the_shipped_figures() -> None:
    """Steps, density and accuracy on 500 held-out problems, and both directions in the demo's table."""
    measured = json.loads((ROOT / "models" / "abacus" / "measured.json").read_text())
    table = json.loads((ROOT / "export" / "abacus" / "dense" / "table.json").read_text())
    assert measured["vector"] == table["vector"]["digest"] == read.load(ROOT / "export/abacus/dense/vector.gguf").digest
    assert measured["problems"] == 500
    for backend in ("torch float32", "F16", "Q8_0", "Q4_K_M"):
        plain, dense = measured[backend]["unsteered"], measured[backend]["steered"]
        assert plain["accuracy"] >= 0.8
        assert dense["density"] >= 1.4 * plain["density"]
        assert dense["steps"] <= 0.75 * plain["steps"]
        assert dense["accuracy"] >= plain["accuracy"] - 0.03
    cells = {(cell["backend"], cell["strength"]): cell["summary"] for cell in table["cells"]}
    for backend in ("torch float32", "Q4_K_M"):
        plain, sparse = cells[backend, 0.0], cells[backend, -table["strength"]]
        assert sparse["density"] < plain["density"]
        assert sparse["steps"] > plain["steps"]
