"""files.py: whole files or none."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edge_steer.core.errors import EdgeSteerError
from edge_steer.storage.files import (
    cache_folder,
    read_lines,
    readable,
    replacing,
    size_in_words,
    write_json,
    write_text,
)


def test_replacing_writes_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in ("first", "second"):
        with replacing(path) as temporary:
            temporary.write_text(text)
            assert temporary.parent == tmp_path  # a rename across file systems would not be atomic
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, ValueError, MemoryError])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, interruption: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(interruption), replacing(path) as temporary:
        temporary.write_text("half")
        raise interruption
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("x")
    (tmp_path / "b").write_text("x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the mask is read from Linux's /proc")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_process_umask_is_kept_to_and_never_changed(tmp_path: Path, umask: int) -> None:
    """In a process of its own; a thread that reads the mask all along never reads another one."""
    code = (
        "import os, sys, threading; from pathlib import Path; from edge_steer.storage.files import write_text\n"
        f"os.umask({umask})\n"
        "def masks():\n"
        "    for line in Path('/proc/self/status').read_text().splitlines():\n"
        "        if line.startswith('Umask'): return line.split()[1]\n"
        "seen, ended = set(), threading.Event()\n"
        "def watch():\n"
        "    while not ended.is_set(): seen.add(masks())\n"
        "thread = threading.Thread(target=watch); thread.start()\n"
        f"for _ in range(300): write_text({str(tmp_path / 'a')!r}, 'x')\n"
        "ended.set(); thread.join(); print(*seen)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"{umask:04o}"]
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


def test_an_absent_folder_and_a_folder_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(EdgeSteerError, match="choose a folder that exists"), replacing(tmp_path / "absent" / "a"):
        pytest.fail("nothing may be written")
    (tmp_path / "folder").mkdir()
    with pytest.raises(EdgeSteerError, match="cannot write"), replacing(tmp_path / "folder") as temporary:
        temporary.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(EdgeSteerError, match="writable"), replacing(tmp_path / "a"):
            pytest.fail("nothing may be written")
    finally:
        tmp_path.chmod(0o755)


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(EdgeSteerError, match="cannot write"), replacing(tmp_path / "file" / "a"):
        pytest.fail("nothing may be written")


def test_readable(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(EdgeSteerError, match=r"no such file: .*; expected a vector"):
        readable(path, "a vector")
    path.touch()
    with pytest.raises(EdgeSteerError, match=r"is empty; expected a vector"):
        readable(path, "a vector")
    path.write_text("x")
    assert readable(path, "a vector") == path


def test_paths_may_be_text(tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    assert write_text(path, "one\n\ntwo\n") == readable(path, "text") == tmp_path / "a"
    assert read_lines(path, "text") == ["one", "two"]
    with replacing(path) as temporary:
        temporary.write_text("x")
    assert (tmp_path / "a").read_text() == "x"


def test_json_is_whole_or_not_there(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"b": [1, 0.5]})
    assert path.read_text() == '{\n "b": [\n  1,\n  0.5\n ]\n}\n'
    with pytest.raises(TypeError):
        write_json(path, {"b": {1, 2}})
    assert '"b"' in path.read_text()
    assert list(tmp_path.iterdir()) == [path]


def test_sizes_in_words() -> None:
    sizes = [0, 999, 1000, 1_234_567, 999_000_000, 12_340_000_000]
    assert [size_in_words(size) for size in sizes] == ["0 bytes", "999 bytes", "1 kB", "1.23 MB", "999 MB", "12.3 GB"]


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGE_STEER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "edge-steer"
    monkeypatch.setenv("EDGE_STEER_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    assert cache_folder().is_dir()
