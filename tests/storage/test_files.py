"""files.py: whole files or none."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from edge_steer.core.errors import EdgeSteerError
from edge_steer.storage.files import cache_folder, digest, readable, replacing


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


def test_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert digest(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGE_STEER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "edge-steer"
    monkeypatch.setenv("EDGE_STEER_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    assert cache_folder().is_dir()
