"""The command parity on the bundled model: a certificate, what it says, and what running it again says."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from paths import ROOT

from edge_steer.certificates.certificate import FORMAT, read_certificate, read_certified_texts, summary
from edge_steer.certificates.recheck import RECHECK_TOLERANCES
from edge_steer.commands.main import main
from edge_steer.core.vector import SteeringVector
from edge_steer.storage import records as storage_records
from edge_steer.storage.digests import digest
from edge_steer.vectors import gguf_writer
from edge_steer.vectors.read import load

ABACUS = ROOT / "models" / "abacus"
DENSE = ROOT / "export" / "abacus" / "dense" / "vector.gguf"
PROBLEMS = 6


def parity(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["parity", "--threads", "1", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of two types, with the reference saved beside it."""
    folder = tmp_path_factory.mktemp("certified") / "dense"
    folder.mkdir()
    shutil.copy(DENSE, folder)
    made = parity(
        ABACUS, "--quants", "F16,Q4_K_M", "--reference", ABACUS, "--vector", f"{folder / 'vector.gguf'}:0.325",
        "--task", "wordproblems", "--split", "dev", "--problems", PROBLEMS, "--doses", "0,1", "--out", folder,
        "--save-reference", folder / "saved",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    assert "F16: within tolerance" in made.stdout
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "certificate.json").read_text())
    return record


def test_a_certificate_says_what_was_compared(folder: Path, told: dict[str, Any]) -> None:
    assert told["format"] == FORMAT
    assert [entry["quant"] for entry in told["files"]] == ["F16", "Q4_K_M"]
    assert told["files"][0]["digest"] == digest(ABACUS / "abacus-F16.gguf")
    assert told["steering"] == told["reference_steering"]
    assert told["steering"][0] == {
        "vector": load(DENSE).digest, "strength": 0.325, "layers": [5], "phase": "all",
    }  # fmt: skip
    assert told["vectors"] == ["vector.gguf"]
    assert (folder / told["reference"]["source"]).resolve() == ABACUS
    assert told["reference"]["revision"]
    assert told["versions"]["llama-cpp-python"]
    assert told["task"]["problems"] == PROBLEMS
    assert told["texts"]["unsteered"] == told["texts"]["steered"] == PROBLEMS
    for entry in told["files"]:
        assert entry["conditions"]["threads"] == 1
        assert entry["conditions"]["kv_type"] == "f16"
        assert entry["unsteered"]["texts"] == PROBLEMS
        assert entry["verdict"] in ("pass", "not enough data")
        assert all(found["verdict"] != "fail" for found in entry["findings"])
        assert [dose["dose"] for dose in entry["behaviour"]] == [0, 1]
    f16, q4 = told["files"]
    assert f16["verdict"] == "pass"
    assert f16["steered"]["kl"]["mean"] < q4["steered"]["kl"]["mean"]
    assert f16["effect"]["cosine"] > q4["effect"]["cosine"] > 0.97


def test_the_rows_of_both_sides_lie_beside_it(folder: Path, told: dict[str, Any]) -> None:
    names = {"reference.jsonl"} | {Path(entry["rows"]).name for entry in told["files"]}
    assert {path.name for path in (folder / "rows").iterdir()} == names
    for name in names:
        _, records = storage_records.read(folder / "rows" / name)
        done = {(record["method"], record["id"]) for record in records}
        assert len(done) == 2 * PROBLEMS
        assert {method for method, _ in done} == {"dose 0", "dose 1"}
    certificate = read_certificate(folder / "certificate.json")
    unsteered, steered = read_certified_texts(folder, certificate.texts)
    assert len(unsteered) == len(steered) == PROBLEMS
    text = (folder / "summary.md").read_text()
    assert text == summary(certificate)
    assert "| F16 |" in text
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_run_again_it_holds(folder: Path) -> None:
    again = parity("--check", folder / "certificate.json", "--json")
    assert again.exit_code == 0, again.output
    figures = json.loads(again.stdout)
    assert {figure["file"] for figure in figures} == {
        entry.file for entry in read_certificate(folder / "certificate.json").files
    }
    assert len(figures) == 2 * len(RECHECK_TOLERANCES)
    assert all(figure["holds"] for figure in figures)


def test_run_again_with_other_figures_it_does_not_hold(folder: Path, told: dict[str, Any], tmp_path: Path) -> None:
    shutil.copy(folder / "texts.jsonl", tmp_path)
    changed = json.loads(json.dumps(told))
    changed["files"] = changed["files"][:1]
    changed["files"][0]["effect"]["norm"] = 1.1
    (tmp_path / "certificate.json").write_text(json.dumps(changed))
    again = parity(
        "--check", tmp_path / "certificate.json", ABACUS / "abacus-F16.gguf", "--reference", ABACUS, "--vector", DENSE
    )  # fmt: skip
    assert again.exit_code == 1
    assert "IT DOES NOT HOLD" in again.output
    assert again.output.count("DIFFERS") == 1


def test_a_certificate_of_something_else_is_refused(
    folder: Path, told: dict[str, Any], bundled_f32: Path, bundled_vector: SteeringVector, tmp_path: Path
) -> None:
    path = folder / "certificate.json"
    other = gguf_writer.write(bundled_vector * 1.1, tmp_path / "other.gguf", layers=[5]).path
    (tmp_path / "certificate.json").write_text("{}")
    shorter = {**told, "texts": {**told["texts"], "digest": "0" * 64}}
    (folder / "shorter.json").write_text(json.dumps(shorter))
    for arguments, said in (
        ((path, bundled_f32), "the certificate is not for"),
        ((path, "--vector", other), "another steering: vector is"),
        ((path, "--vector", other, "--vector", DENSE), "for 1 vectors; 2 given"),
        ((tmp_path / "certificate.json",), "no certificate that this edge-steer reads"),
        ((folder / "shorter.json",), "holds other texts"),
    ):
        refused = parity("--check", *arguments)
        assert refused.exit_code == 1
        assert said in refused.output, refused.output


def test_a_saved_reference_gives_the_same_figures(folder: Path, told: dict[str, Any], tmp_path: Path) -> None:
    asked = ("--saved-reference", folder / "saved", "--vector", f"{DENSE}:0.325", "--doses", "0,1", "--out", tmp_path)
    found = parity(
        ABACUS / "abacus-F16.gguf", *asked, "--task", "wordproblems", "--split", "dev", "--problems", PROBLEMS, "--json"
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    [ours], theirs = json.loads(found.stdout)["files"], told["files"][0]
    for name in ("unsteered", "steered"):
        assert ours[name]["kl"]["mean"] == pytest.approx(theirs[name]["kl"]["mean"], abs=1e-6)
        assert ours[name]["perplexity"] == pytest.approx(theirs[name]["perplexity"], rel=1e-6)
    assert ours["effect"]["cosine"] == pytest.approx(theirs["effect"]["cosine"], abs=1e-6)
    assert [dose["equal"] for dose in ours["behaviour"]] == [dose["equal"] for dose in theirs["behaviour"]]
    other = parity(ABACUS / "abacus-F16.gguf", *asked, "--task", "wordproblems", "--problems", 3)
    assert other.exit_code == 1
    assert "no answers to these problems" in other.output
    task = ("--task", "wordproblems", "--split", "dev", "--problems", PROBLEMS)
    otherwise = parity(ABACUS / "abacus-F16.gguf", *asked, *task, "--prompt", "Say. {question}", "--stop", "Now")
    assert otherwise.exit_code == 1
    assert "was asked these problems otherwise" in otherwise.output


def test_an_f32_file_has_its_mechanism_checked(bundled_f32: Path) -> None:
    exact = parity(
        bundled_f32, "--reference", ABACUS, "--text-file", ABACUS / "pairs.jsonl", "--texts", 2, "--vector",
        f"{DENSE}:0.325", "--json",
    )  # fmt: skip
    assert exact.exit_code == 0, exact.output
    [entry] = json.loads(exact.stdout)["files"]
    assert {row["layer"] for row in entry["mechanism"]} == set(range(6))
    assert {row["phase"] for row in entry["mechanism"]} == {"all", "generated"}
    assert entry["conditions"]["kv_type"] == "f32"
    assert entry["conditions"]["flash_attention"] == "off"
    assert entry["verdict"] == "not enough data"
    mechanism = [found for found in entry["findings"] if found["name"].startswith("mechanism")]
    assert [found["verdict"] for found in mechanism] == ["pass"] * 4
    assert 0 < next(found["value"] for found in mechanism if found["name"].endswith("in roundings")) < 30


def test_out_of_tolerance_is_status_1(bundled_f16: Path) -> None:
    options = ("--reference", ABACUS, "--text-file", ABACUS / "pairs.jsonl", "--texts", 2)
    strict = parity(bundled_f16, *options, "--tolerance", "1e-12")
    assert strict.exit_code == 1
    assert "OUT OF TOLERANCE" in strict.output
    loose = parity(bundled_f16, *options, "--json")
    assert loose.exit_code == 0
    assert json.loads(loose.stdout)["files"][0]["steered"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give a --reference"),
        (("m.gguf", "--reference", "r"), "name a --text-file or a --task"),
        (("m.gguf", "--reference", "r", "--task", "wordproblems"), "name a folder with --out"),
        (("--reference", "r", "--text-file", "t"), "name a MODEL"),
        (("m.gguf", "--reference", "r", "--text-file", "t", "--allow", "cosine"), "NAME=VALUE"),
        (("m.gguf", "--reference", ABACUS, "--text-file", "t", "--doses", "1,2", "--vector", DENSE), "0 and 1 must be"),
    ],
)
def test_what_cannot_be_asked_is_said(arguments: tuple[object, ...], said: str) -> None:
    refused = parity(*arguments)
    assert refused.exit_code != 0
    assert said in refused.output
