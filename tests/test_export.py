"""export.py and gguf_header.py: golden bytes, an independent reader, exact round trips, and hostile files."""

import random
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from edge_steer import export
from edge_steer.errors import EdgeSteerError, VectorError
from edge_steer.gguf_header import read_header
from edge_steer.vector import ModelIdentity, SteeringVector

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
STRING, ARRAY, U32, F32 = 8, 9, 4, 0


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...] = (4,), kind: int = F32, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


CONTROL = key("general.architecture", STRING, text("controlvector"))


def build(
    keys: tuple[bytes, ...] = (CONTROL,),
    tensors: tuple[bytes, ...] = (tensor("direction.1"),),
    data: bytes = bytes(32),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_keys: int | None = None,
) -> bytes:
    """A GGUF by hand, from the specification and not from our writer."""
    counts = (len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys)
    front = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return front + bytes(-len(front) % 32) + data


def floats(*values: float, kind: str = "<f4") -> bytes:
    raw = np.array(values, kind).tobytes()
    return raw + bytes(-len(raw) % 32)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        (tmp_path / "hostile.gguf").write_bytes(content)
        return tmp_path / "hostile.gguf"

    return write


def test_golden_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_version", lambda: "0.0.0")
    path = tmp_path / "vector.gguf"
    export.write(TINY, path, strength=0.5)
    assert path.read_bytes() == GOLDEN.read_bytes()
    assert export.read(GOLDEN).digest == (TINY * 0.5).digest


def test_round_trip_is_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = ModelIdentity("m", "llama", 96, 12)
    vector = SteeringVector({i: rng.standard_normal(96).astype(np.float32) for i in range(1, 12)}, model)
    written = export.write(vector, tmp_path / "v.gguf")
    assert written.left_out == ()
    again = export.read(tmp_path / "v.gguf")
    assert again.digest == vector.digest == written.vector.digest
    assert again.model == model
    assert all(np.array_equal(again.directions[layer], vector.directions[layer]) for layer in vector.layers)


@pytest.mark.parametrize("name", ["", "with 'quotes' and \n newline", "Ünï/cödé"])
def test_round_trip_of_every_text_field(tmp_path: Path, name: str) -> None:
    model = replace(MODEL, name=name, revision=name, architecture=None)
    vector = replace(TINY, model=model, method=name, pooling=name, pairs_digest=name, provenance=(name,) * 2000)
    export.write(vector, tmp_path / "v.gguf")
    assert export.read(tmp_path / "v.gguf").digest == vector.digest


def test_an_independent_reader_sees_keys_and_values(tmp_path: Path) -> None:
    export.write(TINY, tmp_path / "v.gguf", layers=[3], strength=-2)
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
    written = export.write(vector, tmp_path / "v.gguf")
    assert written.left_out == (0,)
    assert export.read(tmp_path / "v.gguf").layers == (1, 3)
    with pytest.raises(VectorError, match=r"no layer 0.*choose from layers 1, 3"):
        export.write(vector, tmp_path / "w.gguf", layers=[0, 1])
    with pytest.raises(VectorError, match="no layer 0"):
        export.write(vector.restrict([0]), tmp_path / "w.gguf")
    assert not (tmp_path / "w.gguf").exists()


@pytest.mark.parametrize("strength", [0.0, float("nan"), float("inf")])
def test_a_strength_that_cannot_be_baked_in_is_refused(tmp_path: Path, strength: float) -> None:
    with pytest.raises(VectorError, match="strength"):
        export.write(TINY, tmp_path / "v.gguf", strength=strength)


def test_writer_refuses_missing_layers_overflow_and_unwritable_paths(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match="layer 2 asked"):
        export.write(TINY, tmp_path / "v.gguf", layers=[1, 2])
    with pytest.raises(VectorError, match="no layer asked"):
        export.write(TINY, tmp_path / "v.gguf", layers=[])
    with np.errstate(over="ignore"), pytest.raises(VectorError, match="NaN or Inf"):
        export.write(TINY, tmp_path / "v.gguf", strength=3e38)
    with pytest.raises(EdgeSteerError, match="cannot write"):
        export.write(TINY, tmp_path / "absent" / "v.gguf")
    assert not list(tmp_path.iterdir())


def test_load_tells_the_two_kinds_of_vector_file_apart(tmp_path: Path) -> None:
    export.write(TINY, tmp_path / "v.safetensors")  # a GGUF, whatever its name says
    TINY.save(tmp_path / "v.gguf")
    for path in tmp_path.iterdir():
        assert export.load(path).digest == TINY.digest
        assert export.describe_model(path) is None
    with pytest.raises(EdgeSteerError, match="no such file"):
        export.load(tmp_path / "absent")


def test_a_file_of_another_tool_is_read(written: Callable[[bytes], Path]) -> None:
    keys = (CONTROL, key("controlvector.model_hint", STRING, text("qwen2")))
    tensors = (tensor("direction.2"), tensor("direction.1", offset=32))
    vector = export.read(written(build(keys, tensors, floats(1, 2, 3, 4) + floats(5, 6, 7, 8))))
    assert vector.model == ModelIdentity("unknown", "qwen2", hidden_size=4, block_count=0)
    assert vector.directions[1].tolist() == [5, 6, 7, 8]


def test_half_precision_is_read(written: Callable[[bytes], Path]) -> None:
    tensors = (tensor("direction.1", kind=1), tensor("direction.2", kind=30, offset=32))
    bfloat16 = (np.array([1.5, -2, 0, 3], np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    vector = export.read(written(build(tensors=tensors, data=floats(0.5, 1, 2, 3, kind="<f2") + bfloat16 + bytes(24))))
    assert vector.directions[1].tolist() == [0.5, 1, 2, 3]
    assert vector.directions[2].tolist() == [1.5, -2, 0, 3]


QWEN2 = key("general.architecture", STRING, text("qwen2"))
TWO = (tensor("direction.1"), tensor("direction.2", offset=32))
MANY = 10**9
HOSTILE = {
    "empty": (b"", "is empty"),
    "magic": (build(magic=b"GGML"), "does not begin with"),
    "three bytes": (b"GGU", "does not begin with"),
    "version 1": (build(version=1), "version 1; versions 2 and 3"),
    "version 4": (build(version=4), "version 4; versions 2 and 3"),
    "big-endian": (build(version=3 << 24), "big-endian"),
    "many tensors": (build(n_tensors=MANY), "claims 1000000000 tensors"),
    "many keys": (build(n_keys=MANY), "claims 1000000000 keys"),
    "2^64-1 keys": (build(n_keys=2**64 - 1), "keys, more than it can hold"),
    "no keys": (build(keys=()), "without general.architecture"),
    "a model": (build((QWEN2,)), "architecture 'qwen2', not 'controlvector'"),
    "architecture is a number": (build((key("general.architecture", U32, bytes(4)),)), "architecture 0"),
    "long key": (build((struct.pack("<Q", MANY) + b"abc",)), "truncated or damaged"),
    "empty key": (build((key("", U32, bytes(4)),)), "empty or stands there twice"),
    "long value": (build((key("general.architecture", STRING, struct.pack("<Q", MANY)),)), "1000000000 bytes"),
    "same key twice": (build((CONTROL, CONTROL)), "stands there twice"),
    "key not UTF-8": (build((key("general.architecture", STRING, text(b"\xff\xfe")),)), "not UTF-8"),
    "unknown value type": (build((CONTROL, key("a", 99, b""))), "unknown type 99"),
    "nested array": (build((CONTROL, key("a", ARRAY, struct.pack("<IQ", ARRAY, 1)))), "unknown type 9"),
    "long array": (build((CONTROL, key("a", ARRAY, struct.pack("<IQ", U32, MANY)))), "1000000000 array items"),
    "many strings": (build((CONTROL, key("a", ARRAY, struct.pack("<IQ", STRING, MANY)))), "1000000000 array items"),
    "strings past the end": (
        build((CONTROL, key("a", ARRAY, struct.pack("<IQ", STRING, 2000) + text("x" * 20000) + b"\xff" * 20000))),
        "within an array of 2000 strings",
    ),
    "alignment 0": (build((CONTROL, key("general.alignment", U32, bytes(4)))), "power of two"),
    "alignment 48": (build((CONTROL, key("general.alignment", U32, struct.pack("<I", 48)))), "power of two"),
    "alignment 2^31": (build((CONTROL, key("general.alignment", U32, struct.pack("<I", 2**31)))), "truncated"),
    "no tensors": (build(tensors=()), "holds no directions"),
    "no dimensions": (build(tensors=(tensor("direction.1", ()),)), "0 dimensions"),
    "many dimensions": (
        build(tensors=(text("direction.1") + struct.pack("<I", MANY) + bytes(64),)),
        "1000000000 dimensions",
    ),
    "two dimensions": (build(tensors=(tensor("direction.1", (2, 2)),)), r"shapes \[\(2, 2\)\]"),
    "width 0": (build(tensors=(tensor("direction.1", (0,)),), data=b""), "shapes"),
    "width 10^9": (build(tensors=(tensor("direction.1", (MANY,)),)), "truncated"),
    "width 2^63": (build(tensors=(tensor("direction.1", (2**63,)),)), "truncated"),
    "two widths": (build(tensors=(TWO[0], tensor("direction.2", (5,), offset=32)), data=bytes(64)), "shapes"),
    "quantised": (build(tensors=(tensor("direction.1", kind=8),)), "ggml type 8"),
    "unknown type": (build(tensors=(tensor("direction.1", kind=4_000_000),)), "ggml type 4000000"),
    "offset outside": (build(tensors=(tensor("direction.1", offset=2**40),)), "offset 1099511627776"),
    "offset unaligned": (build(tensors=(tensor("direction.1", offset=4),)), "offset 4, expected 0"),
    "overlapping": (build(tensors=(TWO[0], tensor("direction.2"))), "offset 0, expected 32"),
    "a hole": (build(tensors=(TWO[0], tensor("direction.2", offset=64)), data=bytes(96)), "expected 32"),
    "bytes after the end": (build(data=bytes(40)), "its header says"),
    "same name twice": (build(tensors=(TWO[0], tensor("direction.1", offset=32)), data=bytes(64)), "same name"),
    "direction.0": (build(tensors=(tensor("direction.0"),)), "llama.cpp has no layer 0"),
    "direction.01": (build(tensors=(tensor("direction.01"),)), "only direction.N"),
    "direction.-1": (build(tensors=(tensor("direction.-1"),)), "only direction.N"),
    "direction.1000000": (build(tensors=(tensor("direction.1000000"),)), "only direction.N"),
    "arabic digit": (build(tensors=(tensor("direction.1\u0663"),)), "only direction.N"),
    "other tensor": (build(tensors=(TWO[0], tensor("bias.2", offset=32)), data=bytes(64)), "'bias.2'"),
    "long name": (build(tensors=(tensor("d" * 64),)), "64 characters"),
    "NaN": (build(data=floats(1, float("nan"), 2, 3)), "NaN or Inf"),
    "Inf": (build(data=floats(1, float("-inf"), 2, 3)), "NaN or Inf"),
    "another convention": (build((CONTROL, key("edge_steer.layer_convention", STRING, text("odd")))), "'odd'"),
    "our key alone": (build((CONTROL, key("edge_steer.pairs", U32, bytes(4)))), "counts layers by None"),
    "keys missing": (
        build((CONTROL, key("edge_steer.layer_convention", STRING, text("block-output")))),
        "edge_steer.model.name is None",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(written: Callable[[bytes], Path], name: str) -> None:
    content, words = HOSTILE[name]
    path = written(content)
    began = time.monotonic()
    with pytest.raises(EdgeSteerError, match=words) as caught:
        export.read(path)
    assert time.monotonic() - began < 1
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_the_hostile_files_are_one_step_from_a_good_one(written: Callable[[bytes], Path]) -> None:
    assert export.read(written(build())).layers == (1,)


def test_truncation_at_every_byte_is_refused(written: Callable[[bytes], Path]) -> None:
    content = GOLDEN.read_bytes()
    for length in range(len(content)):
        with pytest.raises(EdgeSteerError):
            export.read(written(content[:length]))


def test_random_damage_never_escapes(written: Callable[[bytes], Path]) -> None:
    """Every mutation is refused, or touched only what the digest does not cover (versions, hints, padding)."""
    rng = random.Random(0)
    good, expected = GOLDEN.read_bytes(), export.read(GOLDEN).digest
    for _ in range(1500):
        content = bytearray(good)
        for _ in range(rng.choice((1, 1, 4))):
            content[rng.randrange(len(content))] = rng.choice((0, 0xFF, rng.randrange(256)))
        try:
            assert export.read(written(bytes(content))).digest == expected
        except EdgeSteerError as error:
            assert "\n" not in str(error)


def test_a_changed_value_is_found_by_the_digest(written: Callable[[bytes], Path]) -> None:
    content = bytearray(GOLDEN.read_bytes())
    content[-32] ^= 1
    with pytest.raises(VectorError, match="own digest"):
        export.read(written(bytes(content)))


def test_a_huge_sparse_file_costs_little(tmp_path: Path) -> None:
    """8 GB of zeros behind a header that claims strings: refused without walking or loading them."""
    path = tmp_path / "sparse.gguf"
    for array in (struct.pack("<IQ", STRING, MANY), None):
        with path.open("wb") as file:
            file.write(build((CONTROL, key("a", ARRAY, array))) if array else build(tensors=(tensor("direction.1"),)))
            file.truncate(2**33)
        began = time.monotonic()
        with pytest.raises(VectorError):
            export.read(path)
        assert time.monotonic() - began < 1
    path.unlink()


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(EdgeSteerError, match="no such file"):
            export.read(path)


def test_header_of_a_large_vocabulary_passes_over_it(written: Callable[[bytes], Path]) -> None:
    tokens = key("tokens", ARRAY, struct.pack("<IQ", STRING, 300_000) + text("token") * 300_000)
    scores = key("scores", ARRAY, struct.pack("<IQ", U32, 300_000) + bytes(1_200_000))
    last = key("last", ARRAY, struct.pack("<IQ2I", U32, 2, 5, 6))
    path = written(build((QWEN2, tokens, scores, last)))
    header = read_header(path)
    assert header.architecture == "qwen2"
    assert header.metadata == {"general.architecture": "qwen2", "last": (5, 6)}
    assert header.tensors[0].shape == (4,)
