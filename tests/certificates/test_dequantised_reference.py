"""A certificate whose reference is the dequantised weights of a GGUF says so, and is run again with them alone."""

import json
from pathlib import Path

import pytest
from paths import ABACUS

from edge_steer.certificates.make import certify
from edge_steer.certificates.recheck import check_again
from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.models.quantize import quantize
from edge_steer.pairs.pair import read_pairs
from edge_steer.storage.digests import digest

OPTIONS = EngineOptions(context=512, threads=1)


def test_the_reference_is_named_by_the_file_it_was_dequantised_from(bundled_f16: Path, tmp_path: Path) -> None:
    q8 = quantize(bundled_f16, "Q8_0", tmp_path / "abacus-Q8_0.gguf", threads=1)
    f32 = quantize(q8, "F32", tmp_path / "abacus-Q8_0-F32.gguf", threads=1)
    texts = read_pairs(ABACUS / "pairs.jsonl")[:4]
    certificate = certify([f32, q8], q8, texts=texts, folder=tmp_path / "same", options=OPTIONS)
    sha256 = digest(q8)
    assert certificate.reference.revision == f"dequantised from {sha256}"
    same, quantised = (entry.report.unsteered.kl["mean"] for entry in certificate.files)
    assert same < 1e-6 < quantised  # the engine alone, and what it computes with Q8_0 activations beside
    written = json.loads((tmp_path / "same" / "certificate.json").read_text())
    assert written["reference"]["revision"] == f"dequantised from {sha256}"
    words = f"in PyTorch, float32, dequantised from {sha256[:12]}"
    assert words in (tmp_path / "same" / "summary.md").read_text()
    assert f">dequantised from {sha256[:12]}<" in (tmp_path / "same" / "report.html").read_text()
    path = tmp_path / "same" / "certificate.json"
    assert all(figure.holds for figure in check_again(path, options=OPTIONS))
    with pytest.raises(EdgeSteerError, match=f"dequantised from {sha256[:12]}, not revision [0-9a-f]{{12}};"):
        check_again(path, reference=ABACUS, options=OPTIONS)
