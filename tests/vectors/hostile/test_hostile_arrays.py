"""safetensors and npz files that lie or hold objects: each refused at once, in one line, with little memory."""

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from limited import Outcome, outcomes

ONE = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
HUGE = 2**31


def tensors(header: Any, data: bytes = bytes(16), length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def npz(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(literal: str, data: bytes = bytes(16), length: int | None = None) -> bytes:
    raw = literal.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw) if length is None else length) + raw + data


def array(shape: str = "(4,)", kind: str = "'<f4'", order: str = "False", data: bytes = bytes(16)) -> bytes:
    return npz(**{"0": npy(f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}", data)})


def objects() -> bytes:
    file = io.BytesIO()
    np.savez(file, **{"0": np.array([print, {}], dtype=object)})  # type: ignore[arg-type]
    return file.getvalue()


def bomb() -> bytes:
    """A gigabyte of zeros in a megabyte."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("0.npy", "w") as member:
        member.write(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (268435456,), }", b""))
        for _ in range(2**10):
            member.write(bytes(2**20))
    return file.getvalue()


OURS = {
    "format": "edge-steer vector 1",
    "model": {"name": "m", "architecture": None, "hidden_size": 4, "block_count": 2},
}
HOSTILE: dict[str, tuple[bytes, str]] = {
    "safetensors: header of 2 GB": (tensors({"0": ONE}, length=HUGE), f"header has {HUGE} bytes"),
    "safetensors: header of 2^63": (tensors({"0": ONE}, length=2**63), "header has"),
    "safetensors: header of 2^64-1": (tensors({"0": ONE}, length=2**64 - 1), "header has"),
    "safetensors: 4 MB of header": (tensors(b'{"a":' + b" " * 2**22 + b"1}"), "header has"),
    "safetensors: a deep header": (tensors(b"[" * 100_000 + b"]" * 100_000), "not a steering vector"),
    "safetensors: header not UTF-8": (tensors(b'{"\xff": 1}'), "not a steering vector"),
    "safetensors: header a list": (tensors([1, 2]), "not a steering vector"),
    "safetensors: header a number": (tensors(b"1e999"), "not a steering vector"),
    "safetensors: 10^9 values": (tensors({"0": {**ONE, "shape": [10**9]}}), "not a steering vector"),
    "safetensors: 10^9 dimensions": (tensors({"0": {**ONE, "shape": [1] * 100_000}}), "no tensor|not a steering"),
    "safetensors: shape past 2^64": (tensors({"0": {**ONE, "shape": [2**62, 2**62]}}), "not a steering vector"),
    "safetensors: overlapping": (tensors({"0": ONE, "1": ONE}), "not a steering vector"),
    "safetensors: a hole": (tensors({"0": {**ONE, "data_offsets": [16, 32]}}, bytes(32)), "not a steering vector"),
    "safetensors: offsets swapped": (tensors({"0": {**ONE, "data_offsets": [16, 0]}}), "not a steering vector"),
    "safetensors: past the end": (tensors({"0": {**ONE, "data_offsets": [0, 2**40]}}), "not a steering vector"),
    "safetensors: bytes after the end": (tensors({"0": ONE}, bytes(32)), "not a steering vector"),
    "safetensors: whole numbers": (tensors({"0": {**ONE, "dtype": "I32"}}), "I32; F16, BF16, F32, F64 are read"),
    "safetensors: no tensors": (tensors({}, b""), "neither a dict"),
    "safetensors: two numbers in a name": (tensors({"a.1.b.2": ONE}), "names with one number"),
    "safetensors: no number in a name": (tensors({"direction": ONE}), "names with one number"),
    "safetensors: names of two kinds": (
        tensors({"a.1": ONE, "b.1": {**ONE, "data_offsets": [16, 32]}}, bytes(32)),
        "differ in more",
    ),
    "safetensors: newlines in a name": (tensors({"a\nb": ONE}), r"a\\nb"),
    "safetensors: layer 99999": (
        tensors({"__metadata__": {"edge_steer": json.dumps(OURS)}, "0": ONE}),
        "only direction",
    ),
    "safetensors: a deep header of ours": (
        tensors({"__metadata__": {"edge_steer": "[" * 50_000}, "direction.1": ONE}),
        "not a steering vector",
    ),
    "safetensors: text for a number": (
        tensors(
            {"__metadata__": {"edge_steer": json.dumps({**OURS, "provenance": [], "pairs": "7"})}, "direction.1": ONE}
        ),
        "'pairs' is '7'",
    ),
    "npz: objects": (objects(), "no array of little-endian floats"),
    "npz: a bomb": (bomb(), "unpacks to more than"),
    "npz: 10^9 values": (array("(1000000000,)"), "no array"),
    "npz: 10^9 by 0": (array("(999999999, 0)", data=b""), "more than 1024 tensors"),
    "npz: 10^9 dimensions": (array("(" + "1, " * 20_000 + ")"), "no array"),
    "npz: whole numbers": (array(kind="'<i4'"), "no array of little-endian floats"),
    "npz: big-endian": (array(kind="'>f4'"), "no array of little-endian floats"),
    "npz: a structure": (array(kind="[('a', '<f4')]"), "no array of little-endian floats"),
    "npz: a program": (array("__import__('os')"), "no array of little-endian floats"),
    "npz: a deep literal": (array("(" * 30_000 + ")" * 30_000), "no array of little-endian floats"),
    "npz: a long literal": (array("(" + "9" * 60_000 + ",)"), "no array of little-endian floats"),
    "npz: header past the end": (npz(**{"0": npy("{}", length=65_535)}), "no array"),
    "npz: empty member": (npz(**{"0": b""}), "no array"),
    "npz: no members": (npz(), "no array|neither|header"),
    "npz: truncated member": (array(data=bytes(15)), "15 bytes"),
    "npz: NaN": (array(data=struct.pack("<4f", 1, float("nan"), 0, 0)), "NaN or Inf"),
    "npz: past float32": (array("(2,)", "'<f8'", data=struct.pack("<2d", 1e300, 1)), "NaN or Inf"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("arrays")
    paths = [folder / f"{index}.bin" for index in range(len(HOSTILE))]
    for path, (content, _) in zip(paths, HOSTILE.values(), strict=True):
        path.write_bytes(content)
    return dict(zip(HOSTILE, outcomes(paths), strict=True))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(found: dict[str, Outcome], name: str) -> None:
    found[name].assert_refused(HOSTILE[name][1])


def test_huge_sparse_files_cost_little(tmp_path: Path) -> None:
    """8 GB of zeros behind a plausible front."""
    fronts = {"a": tensors({"0": ONE}), "b": tensors({"0": ONE}, length=HUGE), "c": array()}
    for name, front in fronts.items():
        with (tmp_path / name).open("wb") as file:
            file.write(front)
            file.truncate(2**33)
    for outcome in outcomes([tmp_path / name for name in fronts]):
        outcome.assert_refused("bytes")


def test_the_hostile_files_are_one_step_from_good_ones(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(tensors({"0": ONE}))
    (tmp_path / "b").write_bytes(array())
    (tmp_path / "c").write_bytes(array("(2, 2)", order="True"))
    assert [outcome.kind for outcome in outcomes([tmp_path / name for name in "abc"])] == ["read"] * 3
