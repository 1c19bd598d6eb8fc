"""The command extract: tables, the report folder, both kinds of models, one line for what is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from paths import ABACUS

from edge_steer.commands.main import main
from edge_steer.core.stats import cosine
from edge_steer.core.vector import spans
from edge_steer.pairs.pair import read_pairs, write_pairs
from edge_steer.storage.digests import digest
from edge_steer.vectors import native


def edge_steer(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    write_pairs(read_pairs(ABACUS / "pairs.jsonl")[:12], path)
    return path


def test_a_report_of_a_gguf(pairs: Path, bundled_f16: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out, report = tmp_path / "v.safetensors", tmp_path / "a" / "report"
    options = ("--pooling", "last:2", "--layers", "1-4", "--report", report, "--threads", 1)
    result = edge_steer("extract", bundled_f16, pairs, "-o", out, *options)
    assert result.exit_code == 0, result.output
    assert "mean_difference, pooling last:2, 12 pairs" in result.stdout
    assert "cosine 5" in result.stdout and "cosine 6" in result.stdout and "12 / all" in result.stdout
    vector = native.load(out)
    assert (vector.layers, vector.pooling, vector.model.revision) == ((1, 2, 3, 4), "last:2", digest(bundled_f16))
    figures = json.loads((report / "layers.json").read_text())
    assert figures["vector"] == vector.digest
    assert [layer["layer"] for layer in figures["layers"]] == [1, 2, 3, 4]
    for layer in figures["layers"]:
        assert layer["norm"] == pytest.approx(vector.norms[layer["layer"]], rel=1e-5)
        assert 0 <= layer["separation"] <= 1 and set(layer["stability"]) == {"5", "6"}
    assert f"suggested to try first: layers {spans(figures['suggested'])};" in result.stdout
    assert (report / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_torch_and_gguf_by_another_method(pairs: Path, bundled_f16: Path, tmp_path: Path) -> None:
    vectors = []
    for model in (ABACUS, bundled_f16):
        out = tmp_path / f"{model.stem}.safetensors"
        options = ("--method", "logistic", "--pooling", "mean", "--normalise", "--threads", 1)
        result = edge_steer("extract", model, pairs, "-o", out, *options)
        assert result.exit_code == 0, result.output
        vectors.append(native.load(out))
    torch, llama = vectors
    assert (torch.method, torch.pooling, torch.normalised) == ("logistic", "mean", True)
    for layer in torch.layers:
        assert cosine(torch.directions[layer], llama.directions[layer]) > 0.9999
        assert np.linalg.norm(llama.directions[layer]) == pytest.approx(1, rel=1e-5)


def test_few_pairs_have_no_figures(bundled_f16: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    write_pairs(read_pairs(ABACUS / "pairs.jsonl")[:3], few)
    pytest.importorskip("matplotlib")
    options = ("--threads", 1, "--report", tmp_path / "report")
    result = edge_steer("extract", bundled_f16, few, "-o", tmp_path / "v.safetensors", *options)
    assert result.exit_code == 0
    figures = json.loads((tmp_path / "report" / "layers.json").read_text())
    assert figures["suggested"] == [] and figures["layers"][0]["separation"] is None
    assert (tmp_path / "report" / "layers.png").is_file()
    assert "AUC" not in result.stdout and "suggested" not in result.stdout
    assert "3 pairs are too few" in result.stderr


def test_what_is_wrong_is_said_in_one_line(pairs: Path, bundled_f16: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.safetensors"
    for options, words in (
        (("--method", "median"), "no method 'median'; methods are mean_difference, pca"),
        (("--pooling", "first"), "no pooling 'first'; poolings are last"),
        (("--layers", "6"), "layer 6 asked; abacus has blocks 0-5"),
        (("--pooling", "token:999"), "pair 1: an answer of"),
        (("--report", bundled_f16 / "folder"), "cannot make the folder"),
    ):
        result = edge_steer("extract", bundled_f16, pairs, "-o", out, "--threads", 1, *options)
        assert result.exit_code == 1, options
        assert words in result.stderr and result.stderr.strip().count("\n") == 0
    assert edge_steer("extract", "no.gguf", pairs, "-o", out).stderr.strip() == (
        "edge-steer: no such file: no.gguf; expected a GGUF model"
    )
    refused = edge_steer("extract", bundled_f16, pairs, "-o", out, "--revision", "f" * 40)
    assert refused.exit_code == 2 and "MODEL is a GGUF file" in refused.stderr
    assert not out.exists()
