"""certificate.json as a value: what was written before is read, what is no certificate is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from edge_steer.certificates.certificate import Certificate, check_steering, read_certificate, read_certified_texts
from edge_steer.certificates.recheck import IN_ROUNDINGS, recheck
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.steering import Steering
from edge_steer.parity.baseline import SteeringRecord
from edge_steer.vectors.read import load

COMMITTED = ROOT / "export" / "abacus" / "dense" / "certificate.json"


@pytest.fixture
def record() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(COMMITTED.read_text())
    return record


def covers(new: object, old: object) -> bool:
    """Whether everything in `old` is in `new`, which may have keys of its own."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and covers(new[key], value) for key, value in old.items())
    if isinstance(old, list):
        return isinstance(new, list) and len(new) == len(old) and all(map(covers, new, old))
    return new == old


def test_the_committed_certificate_is_read_and_written_as_it_is(record: dict[str, Any], tmp_path: Path) -> None:
    certificate = read_certificate(COMMITTED)
    assert [entry.quant for entry in certificate.files] == ["F32", "F16", "Q8_0", "Q6_K", "Q4_K_M"]
    assert certificate.verdict == record["verdict"]
    assert [entry.verdict for entry in certificate.files] == [entry["verdict"] for entry in record["files"]]
    effect = certificate.files[0].report.effect
    assert effect
    assert effect.cosine == record["files"][0]["effect"]["cosine"]
    assert certificate.files[0].conditions.options.kv_type == "f32"
    written = certificate.write(tmp_path)
    assert covers(json.loads(written.read_text()), record)
    assert read_certificate(written) == certificate


def test_its_texts_and_its_vector_lie_beside_it() -> None:
    certificate = read_certificate(COMMITTED)
    unsteered, steered = read_certified_texts(COMMITTED.parent, certificate.texts)
    assert (len(unsteered), len(steered)) == (certificate.texts.unsteered, certificate.texts.steered)
    vector = load(COMMITTED.parent / certificate.vectors[0])
    [recorded] = certificate.steering
    steering = Steering(vector, recorded.strength, recorded.layers, recorded.phase)
    check_steering(certificate.steering, [SteeringRecord.of(steering)])
    stronger = SteeringRecord.of(Steering(vector, 1.0, recorded.layers, recorded.phase))
    with pytest.raises(EdgeSteerError, match=r"another steering: strength is 0\.325, not 1\.0"):
        check_steering(certificate.steering, [stronger])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "edge-steer certificate 2"}, "expected the format"),
        ({"files": None}, "files"),
        ({"reference": {}}, r"reference\.name: Field required"),
        ({"doses": ["often"]}, r"doses\.0"),
        ({"texts": 3}, "texts"),
    ],
)
def test_what_is_no_certificate_is_refused_in_one_line(
    record: dict[str, Any], tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps({**record, **change}))
    with pytest.raises(EdgeSteerError, match=reason) as refused:
        read_certificate(path)
    assert "\n" not in str(refused.value)
    path.write_text("{")
    with pytest.raises(EdgeSteerError, match="is no certificate"):
        read_certificate(path)


def test_a_damaged_entry_is_named(record: dict[str, Any]) -> None:
    record["files"][1]["unsteered"]["kl"]["mean"] = "small"
    with pytest.raises(EdgeSteerError, match=r"files\.1\.unsteered\.kl\.mean"):
        Certificate.from_json(record)


@pytest.mark.parametrize(("roundings", "holds"), [(5.0, True), (50.0, False)])
def test_what_an_older_certificate_was_not_asked_is_said_and_still_has_its_limit(roundings: float, holds: bool) -> None:
    entry = read_certificate(COMMITTED).files[0]
    assert entry.quant == "F32"
    assert all(row.rounding is None for row in entry.report.mechanism)
    largest = max(row.max for row in entry.report.mechanism)
    rows = tuple(replace(row, rounding=largest / roundings) for row in entry.report.mechanism)
    again = recheck(entry, replace(entry.report, mechanism=rows))
    [figure] = [one for one in again if one.figure == IN_ROUNDINGS]
    assert (figure.recorded, figure.holds) == (None, holds)
    assert figure.measured == pytest.approx(roundings)
    assert all(one.holds for one in again if one is not figure)
