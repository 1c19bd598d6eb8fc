"""check_parity: one call from models and texts to a verdict."""

from pathlib import Path

import pytest
from paths import ROOT

from edge_steer.certificates.check import check_parity
from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.vector import SteeringVector
from edge_steer.models.load import load
from edge_steer.pairs.pair import read_pairs
from edge_steer.parity.texts import TokenisedText
from edge_steer.reference.model import Reference

ABACUS = ROOT / "models" / "abacus"
ONE_THREAD = EngineOptions(threads=1)


def test_a_running_model_against_a_named_reference(bundled_f16: Path, bundled_vector: SteeringVector) -> None:
    pairs = read_pairs(ABACUS / "pairs.jsonl")[:5]
    vector = bundled_vector.tuned(5, 0.325)
    with load(bundled_f16, options=ONE_THREAD) as model:
        report = check_parity(model, ABACUS, pairs, vector)
        other = check_parity(model, ABACUS, pairs, vector * 1.1, reference_steer=vector)
    assert (report.quant, report.verdict) == ("F16", "pass")
    assert report.effect
    assert report.effect.placed_norm == pytest.approx(1, abs=1e-5)
    assert other.verdict == "fail"


def test_a_named_exact_file_is_compared_exactly(
    bundled_f32: Path, bundled: Reference, bundled_vector: SteeringVector
) -> None:
    texts: list[str | TokenisedText] = ["Mia has 2 apples.", "Ben has 3 more.", TokenisedText((5, 6, 7), 1)]
    vector = bundled_vector.tuned(5, 0.325)
    report = check_parity(bundled_f32, bundled, texts, vector, options=ONE_THREAD)
    assert {row.layer for row in report.mechanism} == set(range(6))
    assert report.unsteered.texts == 3
    with load(bundled_f32, options=ONE_THREAD) as model, pytest.raises(EdgeSteerError, match="is compared exactly"):
        check_parity(model, bundled, texts, vector)


def test_what_is_no_text_is_refused(bundled_f16: Path, bundled: Reference) -> None:
    with pytest.raises(EdgeSteerError, match="a int is no text to compare on"):
        check_parity(bundled_f16, bundled, [3], options=ONE_THREAD)  # type: ignore[list-item]
