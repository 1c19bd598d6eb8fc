"""certify and save_reference from Python: stopped and gone on with, from vectors in memory, refusals."""

import json
from pathlib import Path

import pytest
from heard import Heard
from paths import ROOT

from edge_steer.certificates.certificate import Certificate, read_certificate
from edge_steer.certificates.make import certify
from edge_steer.certificates.recheck import check_again
from edge_steer.certificates.reference_side import save_reference
from edge_steer.certificates.reports import REPORTS
from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.models.quantize import quantize
from edge_steer.pairs.pair import read_pairs
from edge_steer.reference.model import Reference

ABACUS = ROOT / "models" / "abacus"
ONE_THREAD = EngineOptions(threads=1)
TEXTS = 2


class Stopped(Heard):
    """Stops the work like Ctrl-C when it begins something for the second time."""

    def __init__(self, doing: str) -> None:
        super().__init__()
        self._doing = doing
        self._times = 0

    def __call__(self, doing: str, done: int = 0, total: int = 1) -> None:
        super().__call__(doing, done, total)
        self._times += doing == self._doing and done == 0
        if self._times == 2:
            raise KeyboardInterrupt


@pytest.fixture
def files(bundled_f16: Path, tmp_path: Path) -> list[Path]:
    return [bundled_f16, quantize(bundled_f16, "Q8_0", tmp_path / "q8.gguf")]


def made(
    files: list[Path], reference: Reference, vector: SteeringVector, folder: Path | None, progress: Progress = SILENT
) -> Certificate:
    return certify(
        files,
        reference,
        steer=Steering(vector, 0.325, (5,)),
        texts=read_pairs(ABACUS / "pairs.jsonl"),
        most_texts=TEXTS,
        folder=folder,
        options=ONE_THREAD,
        progress=progress,
    )


def test_a_stopped_certificate_goes_on_and_a_finished_one_measures_nothing_again(
    files: list[Path], bundled: Reference, bundled_vector: SteeringVector, tmp_path: Path
) -> None:
    folder = tmp_path / "certified"
    with pytest.raises(KeyboardInterrupt):
        made(files, bundled, bundled_vector, folder, Stopped("comparing texts"))
    assert not (folder / "certificate.json").exists()
    [unfinished] = (folder / REPORTS).glob("Q8_0-*.jsonl")
    assert {path.name for path in (folder / REPORTS).iterdir()} == {"reference", "F16.json", unfinished.name}
    resumed = Heard()
    certificate = made(files, bundled, bundled_vector, folder, resumed)
    assert "F16: compared already" in resumed.notes
    assert "Q8_0: compared already" not in resumed.notes
    assert not any(step[0].startswith("the reference on") for step in resumed.steps)
    again = Heard()
    assert made(files, bundled, bundled_vector, folder, again) == certificate
    assert {"F16: compared already", "Q8_0: compared already"} <= {*again.notes}
    assert not any("comparing" in step[0] for step in again.steps)
    assert {path.name for path in (folder / REPORTS).iterdir()} == {"F16.json", "Q8_0.json"}
    (folder / REPORTS / "F16.json").write_text("{")
    assert made(files, bundled, bundled_vector, folder) == certificate
    assert read_certificate(folder / "certificate.json") == certificate


def test_a_vector_in_memory_is_kept_beside_the_certificate(
    bundled_f16: Path, bundled: Reference, bundled_vector: SteeringVector, tmp_path: Path
) -> None:
    certificate = made([bundled_f16], bundled, bundled_vector, tmp_path)
    assert certificate.vectors == ("vector-1.safetensors",)
    assert certificate.task is None
    figures = check_again(tmp_path / "certificate.json", [bundled_f16], reference=bundled, options=ONE_THREAD)
    assert all(figure.holds for figure in figures)
    record = json.loads((tmp_path / "certificate.json").read_text())
    record["files"][0]["effect"]["norm"] = 1.1
    (tmp_path / "certificate.json").write_text(json.dumps(record))
    figures = check_again(tmp_path / "certificate.json", [bundled_f16], reference=bundled, options=ONE_THREAD)
    assert [figure.figure for figure in figures if not figure.holds] == ["effect length"]


def test_other_tolerances_judge_the_same_figures(
    bundled_f16: Path, bundled: Reference, bundled_vector: SteeringVector, tmp_path: Path
) -> None:
    saved, pairs = tmp_path / "saved", read_pairs(ABACUS / "pairs.jsonl")
    steer = Steering(bundled_vector, 0.325, (5,))
    save_reference(saved, bundled, steer=steer, texts=pairs, most_texts=TEXTS)
    loose, strict = (
        certify(bundled_f16, saved_reference=saved, steer=steer, tolerances=tolerances, options=ONE_THREAD)
        for tolerances in ({}, {"kl": 1e-12})
    )
    assert loose.verdict != "fail"
    assert strict.verdict == "fail"
    assert strict.files[0].report.unsteered == loose.files[0].report.unsteered
    assert strict.reference.name == "abacus"


def test_what_cannot_be_certified_is_refused_before_anything_runs(
    bundled_f16: Path, bundled_vector: SteeringVector, tmp_path: Path
) -> None:
    texts = ["Mia has 3 apples."]
    with pytest.raises(EdgeSteerError, match="needs a reference"):
        certify(bundled_f16, texts=texts)
    with pytest.raises(EdgeSteerError, match="on texts or on a task"):
        certify(bundled_f16, ABACUS)
    with pytest.raises(EdgeSteerError, match="name at least one"):
        certify([], ABACUS, texts=texts)
    with pytest.raises(EdgeSteerError, match="two files are of the same type"):
        certify([bundled_f16, bundled_f16], ABACUS, texts=texts)
    with pytest.raises(EdgeSteerError, match="no tolerance 'size'"):
        certify(bundled_f16, ABACUS, texts=texts, tolerances={"size": 1})
    with pytest.raises(EdgeSteerError, match="0 and 1 must be among the doses"):
        certify(bundled_f16, ABACUS, task="wordproblems", doses=(0.5,), folder=tmp_path / "certified")
    with pytest.raises(EdgeSteerError, match="no type 'Q9'"):
        certify(bundled_f16, ABACUS, texts=texts, steer=bundled_vector, quants=["Q9"], folder=tmp_path / "certified")
    assert not (tmp_path / "certified").exists()
