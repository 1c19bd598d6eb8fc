"""Records survive a kill, one writer at a time, and never mix with those of another header."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge_steer.core.errors import EdgeSteerError
from edge_steer.storage import records as storage_records
from edge_steer.storage.records import Store

HEADER = {"format": "test 1", "settings": {"seed": 0, "layers": (1, 2)}}


def test_records_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "rows.jsonl"
    records: list[dict[str, object]] = [{"id": "a\u2028b\n", "nll": 0.1 + 0.2}, {"id": "ß", "nll": None}]
    with Store.open(path, HEADER) as file:
        assert file.records == []
        for record in records:
            file.append(record)
            assert storage_records.read(path)[1][-1] == record
        assert file.records == records
    with Store.open(path, HEADER) as file:
        assert file.records == records
        file.append({"id": "c"})
    assert storage_records.read(path) == (json.loads(json.dumps(HEADER)), [*records, {"id": "c"}])


@pytest.mark.parametrize("torn", ['{"id": "b', '{"id": "b"}', "\x00\x00"])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "rows.jsonl"
    with Store.open(path, HEADER) as file:
        file.append({"id": "a"})
    with path.open("a") as raw:
        raw.write(torn)
    assert storage_records.read(path)[1] == [{"id": "a"}]
    with Store.open(path, HEADER) as file:
        assert file.records == [{"id": "a"}]
        file.append({"id": "c"})
    assert [json.loads(line) for line in path.read_text().splitlines()[1:]] == [{"id": "a"}, {"id": "c"}]


def test_a_torn_header_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"format": "te')
    with Store.open(path, HEADER) as file:
        file.append({"id": "a"})
    assert storage_records.read(path)[1] == [{"id": "a"}]


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({**HEADER, "settings": {"seed": 1, "layers": [1, 2]}}, "settings.seed is 0 there and 1 here"),
        ({**HEADER, "settings": {"seed": 0, "layers": [1]}}, "settings.layers is [1, 2] there and [1] here"),
        ({"format": "test 1"}, "settings is {"),
        ({**HEADER, "limit": 3}, "limit is missing there and 3 here"),
    ],
)
def test_another_header_is_refused(tmp_path: Path, header: dict[str, object], says: str) -> None:
    path = tmp_path / "rows.jsonl"
    with Store.open(path, HEADER) as file:
        file.append({"id": "a"})
    before = path.read_bytes()
    with pytest.raises(EdgeSteerError, match="name another file, or delete it") as caught:
        Store.open(path, header)
    assert says in str(caught.value)
    assert path.read_bytes() == before
    Store.open(path, HEADER).close()


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    code = (
        "import sys; from pathlib import Path; from edge_steer.storage.records import Store\n"
        f"file = Store.open(Path({str(path)!r}), {{'format': 'test 1'}})\n"
        "file.append({'id': 'a'}); file.replace(file.records); print('open', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "open\n"
        with pytest.raises(EdgeSteerError, match="written by another process"):
            Store.open(path, {"format": "test 1"})
        assert storage_records.read(path)[1] == [{"id": "a"}]
    finally:
        first.kill()
        first.communicate()
    with Store.open(path, {"format": "test 1"}) as file:
        assert file.records == [{"id": "a"}]


def test_replacing_leaves_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with Store.open(path, HEADER) as file:
        for name in "abc":
            file.append({"id": name})
        file.replace([{"id": "c"}, {"id": "a"}])
        assert file.records == [{"id": "c"}, {"id": "a"}]
        file.append({"id": "d"})
    assert [record["id"] for record in storage_records.read(path)[1]] == ["c", "a", "d"]
    assert [*tmp_path.iterdir()] == [path]


def test_a_full_disk_is_one_line_and_leaves_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    code = (
        "import resource, signal; from pathlib import Path; from edge_steer.storage.records import Store\n"
        "from edge_steer.core.errors import EdgeSteerError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"file = Store.open(Path({str(path)!r}), {{'format': 'test 1'}})\n"
        "try:\n"
        "    while True: file.append({'id': 'x' * 300})\n"
        "except EdgeSteerError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "cannot write" in said
    assert "File too large" in said
    assert len(said.splitlines()) == 1
    assert path.read_bytes().endswith(b"}\n")
    assert len(storage_records.read(path)[1]) == 4096 // 312


@pytest.mark.parametrize("text", ['{"a": 1}\nno json\n', "[1, 2]\n", '{"a": 1}\n\n{"b": 2}\n', "x\n"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    for opens in (lambda: Store.open(path, {"a": 1}), lambda: storage_records.read(path)):
        with pytest.raises(EdgeSteerError, match="no JSON object"):
            opens()
    assert path.read_text() == text


def test_what_is_not_there_or_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(EdgeSteerError, match="no such file"):
        storage_records.read(tmp_path / "rows.jsonl")
    (tmp_path / "file").write_text("x")
    with pytest.raises(EdgeSteerError, match="cannot write"):
        Store.open(tmp_path / "file" / "rows.jsonl", HEADER)
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"a"')
    with pytest.raises(EdgeSteerError, match="no whole line"):
        storage_records.read(torn)


def test_a_path_may_be_text_and_no_lock_is_left_behind(tmp_path: Path) -> None:
    path = str(tmp_path / "rows.jsonl")
    with Store.open(path, HEADER) as file:
        file.append({"id": "a"})
        with pytest.raises(EdgeSteerError, match="written by another process"):
            Store.open(path, HEADER)
    assert storage_records.read(path)[1] == [{"id": "a"}]
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_header_without_a_record_gives_way_to_one_of_the_same_format(tmp_path: Path) -> None:
    path, other = tmp_path / "rows.jsonl", {**HEADER, "settings": {"seed": 1}}
    Store.open(path, HEADER).close()
    with Store.open(path, other) as file:
        file.append({"id": "a"})
    assert storage_records.read(path) == (other, [{"id": "a"}])
    with pytest.raises(EdgeSteerError, match=r"settings.seed is 1 there and 0 here"):
        Store.open(path, HEADER)
    Store.open(tmp_path / "another.jsonl", HEADER).close()
    with pytest.raises(EdgeSteerError, match="format"):
        Store.open(tmp_path / "another.jsonl", {"format": "test 2"})
