"""Torch files that run code, take memory or lie about their tensors: each refused at once, and nothing is run."""

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from limited import Outcome, outcomes

MARKER = "code-was-run"
COMMAND = f"touch {MARKER}"

# opcodes, from the list at the head of pickletools
PROTO, STOP, MARK, TUPLE, TUPLE1, TUPLE2 = b"\x80\x02", b".", b"(", b"t", b"\x85", b"\x86"
DICT, LIST, SETITEM, SETITEMS, APPENDS = b"}", b"]", b"s", b"u", b"e"
REDUCE, BUILD, NEWOBJ, PERSID, FALSE = b"R", b"b", b"\x81", b"Q", b"\x89"
SYSTEM = b"cos\nsystem\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
VECTOR = b"csteering_vectors.steering_vector\nSteeringVector\n)\x81"


class Payload:
    """Unpickling it calls `function(*arguments)`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def word(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + raw


def storage(count: int, kind: bytes = b"FloatStorage", key: str = "0") -> bytes:
    return (
        MARK + word("storage") + b"ctorch\n" + kind + b"\n" + word(key) + word("cpu") + number(count) + TUPLE + PERSID
    )


def tensor(count: int, first: int, size: tuple[int, ...], stride: tuple[int, ...], key: str = "0") -> bytes:
    shapes = b"".join(MARK + b"".join(map(number, numbers)) + TUPLE for numbers in (size, stride))
    ordered = b"ccollections\nOrderedDict\n)R"
    return REBUILD + MARK + storage(count, key=key) + number(first) + shapes + FALSE + ordered + TUPLE + REDUCE


def layers(*tensors: bytes) -> bytes:
    return PROTO + DICT + MARK + b"".join(number(i) + item for i, item in enumerate(tensors)) + SETITEMS + STOP


def torch_file(data: bytes, storages: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for key, content in ({"0": bytes(64)} if storages is None else storages).items():
            archive.writestr(f"archive/data/{key}", content)
    return file.getvalue()


def pickled(value: object, protocol: int = 2) -> bytes:
    return torch_file(pickle.dumps(value, protocol))


def bomb() -> bytes:
    """A gigabyte of zeros in a megabyte, honestly declared."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", layers(tensor(2**28, 0, (2**28,), (1,))))
        with archive.open("archive/data/0", "w") as member:
            for _ in range(2**10):
                member.write(bytes(2**20))
    return file.getvalue()


def declared(content: bytes, size: int) -> bytes:
    """The zip file with another unpacked size of its last member in the directory."""
    at = content.rindex(b"PK\x01\x02")
    return content[: at + 24] + struct.pack("<I", size) + content[at + 28 :]


def with_flag(content: bytes, flag: int) -> bytes:
    at = content.rindex(b"PK\x01\x02")
    return content[: at + 8] + struct.pack("<H", flag) + content[at + 10 :]


def many_members(claimed: int) -> bytes:
    """An end record that claims so many members, over a directory of as many bytes."""
    content = torch_file(layers(tensor(16, 0, (16,), (1,))))
    at = content.rindex(b"PK\x05\x06")
    directory = struct.unpack_from("<I", content, at + 16)[0]
    filler = bytes(46) * claimed
    counts = min(claimed, 65535)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, counts, counts, len(filler), directory, 0)
    return content[:directory] + filler + end


GOOD = tensor(16, 0, (16,), (1,))
SHARED = (
    number(1) + MARK + b")q\x00" + b"h\x00h\x00\x86q\x00" * 200 + TUPLE + SETITEM
)  # the memo holds 2^200 tuples, shared
HOSTILE: dict[str, tuple[bytes, str]] = {
    **{
        f"os.system, protocol {protocol}": (pickled(Payload(os.system, COMMAND), protocol), "system'|opcode")
        for protocol in range(6)
    },
    "eval": (pickled(Payload(eval, f"__import__('os').system({COMMAND!r})")), "eval', which is no tensor"),
    "within a dict of layers": (pickled({0: Payload(os.system, COMMAND)}), "which is no tensor"),
    "as a dict's key": (pickled({Payload(os.system, COMMAND): 0}), "which is no tensor"),
    "after a good tensor": (torch_file(layers(GOOD)[:-1] + SYSTEM + word(COMMAND) + TUPLE1 + REDUCE + STOP), "system'"),
    "name from pieces": (
        torch_file(PROTO + word("os") + word("system") + b"\x93" + word(COMMAND) + b"\x85R."),
        "system",
    ),
    "name through the memo": (
        torch_file(PROTO + word("system") + b"q\x07" + word("os") + b"h\x07\x93" + word(COMMAND) + b"\x85R."),
        "system",
    ),
    "a name with a dot": (
        torch_file(PROTO + word("torch") + word("serialization.os.system") + b"\x93."),
        "serialization",
    ),
    "an attribute of a known module": (
        torch_file(PROTO + b"ctorch._utils\nannotations\n."),
        "torch._utils.annotations",
    ),
    "opcode INST": (torch_file(b"(S'" + COMMAND.encode() + b"'\nios\nsystem\n."), "opcode STRING"),
    "opcode OBJ": (torch_file(b"(" + SYSTEM + word(COMMAND) + b"o."), "system"),
    "opcode EXT1": (torch_file(b"\x82\x01."), "opcode EXT1"),
    "opcode NEWOBJ_EX": (torch_file(PROTO + b"ctorch\nFloatStorage\n)}\x92."), "opcode NEWOBJ_EX"),
    "opcode PERSID": (torch_file(b"Pname\n."), "opcode PERSID"),
    "opcode DUP": (torch_file(PROTO + b"}2."), "opcode DUP"),
    "a call of a storage": (
        torch_file(PROTO + b"ctorch\nFloatStorage\n" + number(10**9) + b"\x85R."),
        "builds no tensor",
    ),
    "an OrderedDict of arguments": (torch_file(PROTO + b"ccollections\nOrderedDict\n]\x85R."), "builds no tensor"),
    "attributes of a function": (torch_file(PROTO + REBUILD + DICT + BUILD + STOP), "no object takes"),
    "an object of a function": (torch_file(PROTO + REBUILD + b")\x81."), "no steering vector"),
    "attributes that are no dict": (torch_file(PROTO + VECTOR + b"]b."), "no object takes"),
    "a foreign reference": (torch_file(PROTO + word("storage") + PERSID + STOP), "no tensor's storage"),
    "an empty pickle": (torch_file(b""), "damaged"),
    "no end": (torch_file(PROTO + DICT), "damaged"),
    "an empty stack": (torch_file(PROTO + STOP), "damaged"),
    "behind its mark": (torch_file(PROTO + DICT + MARK + number(1) + STOP[:0] + BUILD + STOP), "damaged"),
    "an unknown memo": (torch_file(PROTO + b"h\x05."), "damaged"),
    "a memo of 2^32": (torch_file(PROTO + word("a") + b"r\xff\xff\xff\xff" + STOP), "neither a dict"),
    "a long of 2 GB": (torch_file(PROTO + b"\x8b\xff\xff\xff\x7f" + bytes(100)), "damaged"),
    "a negative long": (torch_file(PROTO + b"\x8b\xff\xff\xff\xff" + bytes(100)), "damaged"),
    "bytes of 2^60": (torch_file(b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + bytes(100)), "damaged"),
    "text of 2^63": (torch_file(b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + bytes(100)), "damaged"),
    "text of 4 GB": (torch_file(PROTO + b"X\xff\xff\xff\xff" + bytes(100)), "damaged"),
    "a frame of 2^60": (torch_file(b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}."), "neither a dict|damaged"),
    "digits without end": (torch_file(b"I" + b"9" * 100_000 + b"\n."), "damaged|opcode"),
    "a deep nest": (torch_file(PROTO + b")" + TUPLE1 * 100_000 + STOP), "neither a dict"),
    "a deep nest as key": (torch_file(PROTO + DICT + b")" + TUPLE1 * 100_000 + number(1) + SETITEM + STOP), "a tuple"),
    "shared without end": (torch_file(PROTO + DICT + SHARED + b"h\x00" + number(1) + SETITEM + STOP), "a tuple"),
    "a list of itself": (torch_file(PROTO + LIST + b"q\x00" + MARK + b"h\x00" + APPENDS + STOP), "neither a dict"),
    "a dict of itself": (torch_file(PROTO + DICT + b"q\x00" + number(1) + b"h\x00" + SETITEM + STOP), "no tensor"),
    "shape of a deep nest": (
        torch_file(
            layers(REBUILD + MARK + storage(16) + number(0) + b")" + TUPLE1 * 50_000 + b")\x89})" + TUPLE + REDUCE)
        ),
        "damaged",
    ),
    "a pickle of a megabyte": (torch_file(PROTO + b"N0" * 2**19 + STOP), "1048579 bytes"),
    "10^9 values of one": (torch_file(layers(tensor(16, 0, (10**9,), (0,)))), "storage of 16 values"),
    "10^12 values": (torch_file(layers(tensor(10**12, 0, (10**12,), (1,)))), "more than"),
    "10^9 dimensions": (torch_file(layers(tensor(16, 0, (2**62,) * 4, (0,) * 4))), "storage of 16 values"),
    "five dimensions": (torch_file(layers(tensor(16, 0, (1,) * 5, (1,) * 5))), "1 to 4 whole numbers"),
    "no dimensions": (torch_file(layers(tensor(16, 0, (), ()))), "1 to 4 whole numbers"),
    "no values": (torch_file(layers(tensor(16, 0, (0,), (1,)))), "storage of 16 values"),
    "negative stride": (torch_file(layers(tensor(16, 15, (16,), (-1,)))), "whole numbers"),
    "negative offset": (torch_file(layers(tensor(16, -1, (4,), (1,)))), "whole numbers"),
    "past the storage": (torch_file(layers(tensor(16, 1, (16,), (1,)))), "storage of 16 values"),
    "strides past the storage": (torch_file(layers(tensor(16, 0, (4, 4), (5, 1)))), "storage of 16 values"),
    "a storage that lies": (torch_file(layers(tensor(17, 0, (17,), (1,)))), "64 bytes for 17 values"),
    "no storage": (torch_file(layers(tensor(16, 0, (16,), (1,), key="9"))), "no member"),
    "a storage elsewhere": (torch_file(layers(tensor(16, 0, (16,), (1,), key="../data.pkl"))), "no member"),
    "100 views of one storage": (
        torch_file(layers(*[tensor(2**20, 0, (2**20,), (1,))] * 100), {"0": bytes(2**22)}, zipfile.ZIP_DEFLATED),
        "tensors of more than",
    ),
    "900 layers": (torch_file(layers(*[tensor(16, 0, (1,), (1,))] * 900)), "pickle has"),
    "NaN": (torch_file(layers(GOOD), {"0": struct.pack("<16f", *[float("nan")] * 16)}), "NaN or Inf"),
    "two widths": (torch_file(layers(GOOD, tensor(16, 0, (4,), (1,)))), "one and the same length"),
    "within the blocks": (
        torch_file(PROTO + VECTOR + DICT + word("layer_type") + word("mlp") + SETITEM + BUILD + STOP),
        "'mlp' inside the blocks",
    ),
    "a vector without tensors": (
        torch_file(PROTO + VECTOR + DICT + word("layer_type") + word("decoder_block") + SETITEM + BUILD + STOP),
        "neither a dict",
    ),
    "a bare pickle": (pickle.dumps(Payload(os.system, COMMAND), 2), "bare pickle"),
    "a zip bomb": (bomb(), "unpacks to more than"),
    "a zip bomb that lies": (declared(bomb(), 1000), "not of the 1000 bytes|unpacks to more than|no array|damaged"),
    "4 GB declared": (declared(torch_file(layers(GOOD)), 2**32 - 1), "unpacks to more than"),
    "encrypted": (with_flag(torch_file(layers(GOOD)), 1), "encrypted"),
    "4096 members": (many_members(4097), "claims 4097 members"),
    "65535 members": (many_members(70_000), "claims 65535 members"),
    "members of zeros": (many_members(1000), "no list of members"),
    "no directory": (torch_file(layers(GOOD))[:-22], "no end record"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("torch")
    paths = [folder / f"{index}.pt" for index in range(len(HOSTILE))]
    for path, (content, _) in zip(paths, HOSTILE.values(), strict=True):
        path.write_bytes(content)
    read = dict(zip(HOSTILE, outcomes(paths), strict=True))
    assert not (folder / MARKER).exists()
    assert not Path(MARKER).exists()
    return read


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(found: dict[str, Outcome], name: str) -> None:
    found[name].assert_refused(HOSTILE[name][1])


def test_the_payloads_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused above is no dud: Python's own unpickler runs it."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Payload(os.system, COMMAND), 2))
    assert (tmp_path / MARKER).exists()


def test_the_hostile_files_are_one_step_from_a_good_one(tmp_path: Path) -> None:
    good = tmp_path / "good.pt"
    good.write_bytes(torch_file(layers(GOOD)))
    (outcome,) = outcomes([good])
    assert outcome.kind == "read"
