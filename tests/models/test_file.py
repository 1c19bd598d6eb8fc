"""file.py, describe.py, machine.py and load.py: a model file as a value, in words, and running."""

import hashlib
from pathlib import Path

import pytest
from paths import ABACUS, DENSE, ROOT

from edge_steer.core.backend import EngineOptions, available_cores
from edge_steer.core.errors import ModelError
from edge_steer.core.vector import SteeringVector
from edge_steer.llama.engine import Engine
from edge_steer.models.describe import describe_model, describe_vector
from edge_steer.models.file import ModelFile
from edge_steer.models.load import load
from edge_steer.models.machine import describe_machine, repacks_weights, system_info
from edge_steer.models.quantize import quantize
from edge_steer.reference.model import Reference

VECTOR = ROOT / "tests" / "vectors" / "golden" / "vector.gguf"


def test_a_model_file_says_its_type_and_digest(bundled_f16: Path) -> None:
    file = ModelFile(bundled_f16)
    assert file.quant == "F16"
    assert file.header.architecture == "qwen2"
    assert file.digest == hashlib.sha256(bundled_f16.read_bytes()).hexdigest()


def test_the_header_is_read_once(bundled_f16: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bundled_f16.read_bytes())
    file = ModelFile(path)
    header = file.header
    path.unlink()
    assert file.header is header
    assert file.quant == "F16"


@pytest.mark.parametrize("content", [None, b"", b"GGUF", b"text"])
def test_what_is_no_model_file_is_refused_when_it_is_asked(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.gguf"):
        _ = ModelFile(path).quant


def test_a_vector_is_no_model() -> None:
    with pytest.raises(ModelError, match="'controlvector' with"):
        _ = ModelFile(VECTOR).header


def test_what_is_no_model_is_not_described_as_one(bundled_f16: Path) -> None:
    assert describe_model(VECTOR) is None
    assert describe_model(ABACUS / "model.safetensors") is None
    assert describe_model(DENSE) is None
    model = describe_model(str(bundled_f16))
    assert model is not None
    assert model["bytes"] == bundled_f16.stat().st_size


def test_a_vector_is_described_with_its_tuning(bundled_vector: SteeringVector) -> None:
    plain = describe_vector(bundled_vector)
    assert (plain["tuning"], plain["pairs"]) == (None, bundled_vector.pairs)
    tuned = describe_vector(bundled_vector.tuned(5, 0.3, "generated"))
    assert tuned["tuning"] == {"layers": (5,), "strength": 0.3, "phase": "generated"}
    assert (tuned["digest"], tuned["norms"]) == (plain["digest"], plain["norms"])


def test_the_machine_is_described(bundled_f16: Path) -> None:
    machine = describe_machine()
    assert machine["cores this process may use"] == available_cores()
    assert machine.items() >= system_info().items()
    assert repacks_weights(ModelFile(bundled_f16)) is True  # nothing is laid out anew in a file of floats


def test_a_name_runs_in_either_runtime(bundled_f16: Path) -> None:
    with load(str(ABACUS), options=EngineOptions(threads=1, context=64)) as engine:
        assert isinstance(engine, Engine)
        assert engine.provenance.model["digest"] == ModelFile(bundled_f16).digest
    with load(ABACUS, runtime="torch") as reference:
        assert isinstance(reference, Reference)
        assert reference.model.block_count == engine.model.block_count


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(ModelError, match="leave out the quant"):
        load(ABACUS, "Q8_0", runtime="torch")
    with pytest.raises(ModelError, match="no runtime 'jax'"):
        load(ABACUS, runtime="jax")  # type: ignore[call-overload]


def test_an_importance_matrix_is_checked_like_anything_else(bundled_f16: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no importance matrix"):
        quantize(bundled_f16, "Q4_0", tmp_path / "q.gguf", imatrix=str(bundled_f16), threads=1)
    quantised = quantize(str(bundled_f16), "q8_0", str(tmp_path / "q8.gguf"), threads=1)
    with pytest.raises(ModelError, match="is quantised already"):
        quantize(quantised, "Q4_0", imatrix=bundled_f16)
    with pytest.raises(ModelError, match="no model"):
        quantize(VECTOR, "Q4_0", imatrix=bundled_f16)
    assert [path.name for path in tmp_path.iterdir()] == ["q8.gguf"]
