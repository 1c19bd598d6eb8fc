"""digests.py: SHA-256 that is computed once for a large file, and again when the file changes."""

import hashlib
import os
from pathlib import Path

import pytest

from edge_steer.storage.digests import LARGE, digest, weights_digest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_STEER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bytes_read() -> int:
    """The bytes this process has read from files so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(lines[0].removeprefix("rchar: "))


def test_a_small_file_is_read_each_time(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "small"
    for content in (b"", b"abc" * 100_000, b"abd" * 100_000):
        path.write_bytes(content)
        assert digest(path) == digest(str(path)) == sha256(path)
    assert not cache.exists()


@pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="bytes read are counted by Linux's /proc")
def test_a_large_file_is_read_once(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"ab" * LARGE)
    expected = sha256(path)
    before = bytes_read()
    assert digest(path) == expected
    after_first = bytes_read()
    assert after_first - before >= 2 * LARGE
    for _ in range(5):
        assert digest(path) == expected
    assert bytes_read() - after_first < LARGE // 100


def test_a_large_file_that_changed_is_read_again(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(LARGE))
    first = digest(path)
    status = path.stat()
    with path.open("r+b") as file:  # as large as before, and with its old time of modification
        file.write(b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert first != digest(path) == sha256(path)
    other = tmp_path / "other"
    other.write_bytes(b"y" * LARGE)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert digest(path) == sha256(path)


def test_damage_in_the_cache_costs_time_only(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(LARGE))
    expected = digest(path)
    (known,) = (cache / "digests").iterdir()
    for damage in (b"", b"\xff" * 64, b"x"):
        known.write_bytes(damage)
        assert digest(path) == expected == known.read_text()
    known.unlink()
    known.mkdir()
    assert digest(path) == expected


def test_the_weights_of_a_folder_are_its_safetensors(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"a")
    first = weights_digest(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert weights_digest(str(tmp_path)) == first
    (tmp_path / "b.safetensors").write_bytes(b"b")
    assert weights_digest(tmp_path) != first
