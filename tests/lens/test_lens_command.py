"""`edge-steer lens` as it is typed."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from paths import ABACUS

from edge_steer.commands.main import main
from edge_steer.core.vector import SteeringVector
from edge_steer.lens.unembedding import read_unembedding
from edge_steer.vectors.write import save

GGUF = ABACUS / "abacus-F16.gguf"
ENGINE = ["--threads", "1", "--kv-type", "f32", "--flash-attention", "off", "--gpu-layers", "0"]


@pytest.fixture(scope="module")
def vector_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    unembedding = read_unembedding(GGUF)
    matrix = unembedding.tensor.whole()
    path = tmp_path_factory.mktemp("lens") / "vector.safetensors"
    save(SteeringVector({2: 50 * matrix[70], 4: 50 * matrix[71]}, unembedding.model), path)
    return path


def lens(*words: object) -> Result:
    return CliRunner().invoke(main, ["lens", *map(str, words)])


def test_the_table_and_the_files(vector_file: Path, tmp_path: Path) -> None:
    result = lens(vector_file, GGUF, "--top", 3, "-o", tmp_path / "a.html", "--texts", tmp_path / "texts")
    assert result.exit_code == 0, result.output
    assert "stable rank" in result.output and "of 20 (seed 0)" in result.output
    assert (tmp_path / "a.html").read_text().startswith("<!DOCTYPE html>")
    assert len(list((tmp_path / "texts").iterdir())) == 4


def test_json_of_chosen_layers_and_a_score(vector_file: Path) -> None:
    result = lens(vector_file, ABACUS, "--layers", 4, "--score", "norm-gain", "--top", 2, "--random", 3, "--json")
    reading = json.loads(result.stdout)
    assert [layer["layer"] for layer in reading["layers"]] == [4]
    assert (reading["score"], reading["null"]["directions"]) == ("norm-gain", 3)
    assert len(reading["layers"][0]["top"]) == len(reading["layers"][0]["bottom"]) == 2


def test_in_context_both_runtimes_say_the_same(vector_file: Path, bundled_f32: Path) -> None:
    words = ("--score", "in-context", "--prompt", "Tom has", "--random", 2, "--top", 1, "--json", *ENGINE)
    readings = []
    for model, runtime in ((bundled_f32, "llama"), (ABACUS, "torch")):
        result = lens(vector_file, model, *words, "--backend", runtime)
        assert result.exit_code == 0, result.output
        readings.append(json.loads(result.stdout))
    assert readings[0]["layers"] == readings[1]["layers"] == [2, 3, 4, 5]
    for ours, theirs in zip(*(reading["cells"] for reading in readings), strict=True):
        assert ours[-1]["kl"] == pytest.approx(theirs[-1]["kl"], rel=1e-3)
        assert ours[-1]["raised"][0]["token"] == theirs[-1]["raised"][0]["token"]


def test_a_dry_run_shows_the_prompt_and_sends_nothing(vector_file: Path) -> None:
    result = lens(vector_file, GGUF, "--dry-run", "--top", 2)
    assert result.exit_code == 0
    assert result.output.startswith("You will be given a list of tokens")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--score", "in-context"], "needs a --prompt"),
        (["--strength", "2"], "are for --score in-context"),
        (["--topics-model", "x.gguf"], "name the file"),
        (["--layers", "3"], "layer 3 asked"),
    ],
)
def test_what_cannot_be_done_is_a_line(vector_file: Path, words: list[str], message: str) -> None:
    result = lens(vector_file, GGUF, *words)
    assert result.exit_code in (1, 2)
    assert message in result.output
