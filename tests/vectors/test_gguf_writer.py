"""export.py, gguf_vectors.py and gguf_header.py: golden bytes, an independent reader, exact round trips, damage."""

import random
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_bytes import ARRAY, CONTROL, STRING, U32, build, floats, key, tensor, text

from edge_steer.core.errors import EdgeSteerError, VectorError
from edge_steer.core.vector import ModelIdentity, SteeringVector
from edge_steer.models import describe
from edge_steer.storage.gguf_header import read_header
from edge_steer.vectors import gguf_reader, gguf_writer, native, read
from edge_steer.vectors.layer_counting import UncountedVector

GOLDEN = Path(__file__).parent / "golden" / "vector.gguf"
MODEL = ModelIdentity("tiny", "qwen2", hidden_size=4, block_count=4, revision="abc")
TINY = SteeringVector(
    {1: np.array([1.0, -2.0, 0.5, 3.0], np.float32), 3: np.array([0.1, 0.2, 0.3, 1e-30], np.float32)},
    MODEL,
    method="mean-difference",
    pooling="last",
    pairs=7,
    pairs_digest="d" * 64,
)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        (tmp_path / "hostile.gguf").write_bytes(content)
        return tmp_path / "hostile.gguf"

    return write


def test_golden_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_writer, "_version", lambda: "0.0.0")
    path = tmp_path / "vector.gguf"
    gguf_writer.write(TINY, path, strength=0.5)
    assert path.read_bytes() == GOLDEN.read_bytes()
    assert read.load(GOLDEN).digest == (TINY * 0.5).digest


def test_round_trip_is_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = ModelIdentity("m", "llama", 96, 12)
    vector = SteeringVector({i: rng.standard_normal(96).astype(np.float32) for i in range(1, 12)}, model)
    written = gguf_writer.write(vector, tmp_path / "v.gguf")
    assert written.left_out == ()
    again = read.load(tmp_path / "v.gguf")
    assert again.digest == vector.digest == written.vector.digest
    assert again.model == model
    assert all(np.array_equal(again.directions[layer], vector.directions[layer]) for layer in vector.layers)


@pytest.mark.parametrize("name", ["", "with 'quotes' and \n newline", "Ünï/cödé"])
def test_round_trip_of_every_text_field(tmp_path: Path, name: str) -> None:
    model = replace(MODEL, name=name, revision=name, architecture=None)
    vector = replace(TINY, model=model, method=name, pooling=name, pairs_digest=name, provenance=(name,) * 2000)
    gguf_writer.write(vector, tmp_path / "v.gguf")
    assert read.load(tmp_path / "v.gguf").digest == vector.digest


def test_an_independent_reader_sees_keys_and_values(tmp_path: Path) -> None:
    gguf_writer.write(TINY, tmp_path / "v.gguf", layers=[3], strength=-2)
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    values = {name: field.contents() for name, field in reader.fields.items()}
    assert values["general.architecture"] == "controlvector"
    assert values["controlvector.model_hint"] == "qwen2"
    assert values["controlvector.layer_count"] == 1
    assert values["edge_steer.layer_convention"] == "block-output"
    assert values["edge_steer.model.name"] == "tiny"
    assert values["edge_steer.model.block_count"] == 4
    assert values["edge_steer.strength"] == -2.0
    assert values["edge_steer.source_digest"] == TINY.digest
    (direction,) = reader.tensors
    assert direction.name == "direction.3"
    assert direction.tensor_type == gguf.GGMLQuantizationType.F32
    assert np.array_equal(direction.data, TINY.directions[3] * np.float32(-2))


def test_layer_0_is_left_out_and_said_or_refused_when_asked_for(tmp_path: Path) -> None:
    vector = replace(TINY, directions={0: np.ones(4, np.float32), **TINY.directions})
    written = gguf_writer.write(vector, tmp_path / "v.gguf")
    assert written.left_out == (0,)
    assert read.load(tmp_path / "v.gguf").layers == (1, 3)
    with pytest.raises(VectorError, match=r"no layer 0.*choose from layers 1, 3"):
        gguf_writer.write(vector, tmp_path / "w.gguf", layers=[0, 1])
    with pytest.raises(VectorError, match="no layer 0"):
        gguf_writer.write(vector.at([0]), tmp_path / "w.gguf")
    assert not (tmp_path / "w.gguf").exists()


@pytest.mark.parametrize("strength", [0.0, float("nan"), float("inf")])
def test_a_strength_that_cannot_be_baked_in_is_refused(tmp_path: Path, strength: float) -> None:
    with pytest.raises(VectorError, match="strength"):
        gguf_writer.write(TINY, tmp_path / "v.gguf", strength=strength)


def test_writer_refuses_missing_layers_overflow_and_unwritable_paths(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match="layer 2 asked"):
        gguf_writer.write(TINY, tmp_path / "v.gguf", layers=[1, 2])
    with pytest.raises(VectorError, match="no layer asked"):
        gguf_writer.write(TINY, tmp_path / "v.gguf", layers=[])
    with np.errstate(over="ignore"), pytest.raises(VectorError, match="NaN or Inf"):
        gguf_writer.write(TINY, tmp_path / "v.gguf", strength=3e38)
    with pytest.raises(EdgeSteerError, match="cannot write"):
        gguf_writer.write(TINY, tmp_path / "absent" / "v.gguf")
    assert not list(tmp_path.iterdir())


def test_load_tells_the_two_kinds_of_vector_file_apart(tmp_path: Path) -> None:
    gguf_writer.write(TINY, tmp_path / "v.safetensors")  # a GGUF, whatever its name says
    native.save(TINY, tmp_path / "v.gguf")
    for path in tmp_path.iterdir():
        assert read.load(path).digest == TINY.digest
        assert describe.describe_model(path) is None
    with pytest.raises(EdgeSteerError, match="no such file"):
        read.load(tmp_path / "absent")


def test_a_file_of_another_tool_is_read(written: Callable[[bytes], Path]) -> None:
    keys = (CONTROL, key("controlvector.model_hint", STRING, text("qwen2")))
    tensors = (tensor("direction.2"), tensor("direction.1", offset=32))
    path = written(build(keys, tensors, floats(1, 2, 3, 4) + floats(5, 6, 7, 8)))
    vector = read.read(path, convention="block").vector
    assert vector.model == ModelIdentity("unknown", "qwen2", hidden_size=4, block_count=0)
    assert vector.directions[1].tolist() == [5, 6, 7, 8]


def test_half_precision_is_read(written: Callable[[bytes], Path]) -> None:
    tensors = (tensor("direction.1", kind=1), tensor("direction.2", kind=30, offset=32))
    bfloat16 = (np.array([1.5, -2, 0, 3], np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    path = written(build(tensors=tensors, data=floats(0.5, 1, 2, 3, kind="<f2") + bfloat16 + bytes(24)))
    vector = read.read(path, convention="block").vector
    assert vector.directions[1].tolist() == [0.5, 1, 2, 3]
    assert vector.directions[2].tolist() == [1.5, -2, 0, 3]


QWEN2 = key("general.architecture", STRING, text("qwen2"))
MANY = 10**9


def test_the_hostile_files_are_one_step_from_a_good_one(written: Callable[[bytes], Path]) -> None:
    found = gguf_reader.read(written(build()))
    assert isinstance(found, UncountedVector)
    assert list(found.directions) == [1]


def test_truncation_at_every_byte_is_refused(written: Callable[[bytes], Path]) -> None:
    content = GOLDEN.read_bytes()
    for length in range(len(content)):
        with pytest.raises(EdgeSteerError):
            gguf_reader.read(written(content[:length]))


def test_random_damage_never_escapes(written: Callable[[bytes], Path]) -> None:
    """Every mutation is refused, or touched only what the digest does not cover (versions, hints, padding)."""
    rng = random.Random(0)
    good, expected = GOLDEN.read_bytes(), read.load(GOLDEN).digest
    for _ in range(1500):
        content = bytearray(good)
        for _ in range(rng.choice((1, 1, 4))):
            content[rng.randrange(len(content))] = rng.choice((0, 0xFF, rng.randrange(256)))
        try:
            assert read.load(written(bytes(content))).digest == expected
        except EdgeSteerError as error:
            assert "\n" not in str(error)


def test_a_changed_value_is_found_by_the_digest(written: Callable[[bytes], Path]) -> None:
    content = bytearray(GOLDEN.read_bytes())
    content[-32] ^= 1
    with pytest.raises(VectorError, match="own digest"):
        gguf_reader.read(written(bytes(content)))


def test_a_huge_sparse_file_costs_little(tmp_path: Path) -> None:
    """8 GB of zeros behind a header that claims strings: refused without walking or loading them."""
    path = tmp_path / "sparse.gguf"
    for array in (struct.pack("<IQ", STRING, MANY), None):
        with path.open("wb") as file:
            file.write(build((CONTROL, key("a", ARRAY, array))) if array else build(tensors=(tensor("direction.1"),)))
            file.truncate(2**33)
        began = time.monotonic()
        with pytest.raises(VectorError):
            gguf_reader.read(path)
        assert time.monotonic() - began < 1
    path.unlink()


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(EdgeSteerError, match="no such file"):
            gguf_reader.read(path)


def test_header_of_a_large_vocabulary_passes_over_it(written: Callable[[bytes], Path]) -> None:
    tokens = key("tokens", ARRAY, struct.pack("<IQ", STRING, 300_000) + text("token") * 300_000)
    scores = key("scores", ARRAY, struct.pack("<IQ", U32, 300_000) + bytes(1_200_000))
    last = key("last", ARRAY, struct.pack("<IQ2I", U32, 2, 5, 6))
    path = written(build((QWEN2, tokens, scores, last)))
    header = read_header(path)
    assert header.architecture == "qwen2"
    assert header.metadata == {"general.architecture": "qwen2", "last": (5, 6)}
    assert header.tensors[0].shape == (4,)
