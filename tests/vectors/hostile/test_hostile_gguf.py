"""GGUF control vectors that lie: each refused at once, in one line, with little memory."""

import struct

import pytest
from gguf_bytes import ARRAY, CONTROL, STRING, U32, build, floats, key, tensor, text
from limited import Outcome, outcomes

QWEN2 = key("general.architecture", STRING, text("qwen2"))
TWO = (tensor("direction.1"), tensor("direction.2", offset=32))
MANY = 10**9
HOSTILE = {
    "empty": (b"", "is empty"),
    "magic": (build(magic=b"GGML"), "not a steering vector"),
    "three bytes": (b"GGU", "not a steering vector"),
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


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("gguf")
    for number, (content, _) in enumerate(HOSTILE.values()):
        (folder / f"{number}.gguf").write_bytes(content)
    return dict(zip(HOSTILE, outcomes([folder / f"{n}.gguf" for n in range(len(HOSTILE))]), strict=True))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(found: dict[str, Outcome], name: str) -> None:
    found[name].assert_refused(HOSTILE[name][1])
