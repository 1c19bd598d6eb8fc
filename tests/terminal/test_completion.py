"""Shell completion, in a bash of its own that types as a user does."""

import os
import pty
import select
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


class Bash:
    """An interactive bash in a terminal."""

    def __init__(self, folder: Path) -> None:
        self.process, self._terminal = pty.fork()
        if not self.process:  # the child
            os.chdir(folder)
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            environment = {**os.environ, "PATH": path, "PS1": "$ ", "TERM": "dumb", "INPUTRC": "/dev/null"}
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)

    def type(self, text: str, until: str, seconds: float = 20) -> str:
        """What the terminal shows after `text`, up to `until`."""
        os.write(self._terminal, text.encode())
        shown, end = "", time.monotonic() + seconds
        while until not in shown:
            ready, _, _ = select.select([self._terminal], [], [], max(0, end - time.monotonic()))
            assert ready, f"{until!r} did not come; the terminal shows {shown!r}"
            shown += os.read(self._terminal, 4096).decode()
        return shown

    def close(self) -> None:
        os.write(self._terminal, b"\x03\x04")
        os.close(self._terminal)
        os.waitpid(self.process, 0)


@pytest.fixture
def bash(tmp_path: Path) -> Iterator[Bash]:
    for name in ("weights-Q4_K_M.gguf", "dense.gguf", "results.txt"):
        (tmp_path / name).touch()
    (tmp_path / "export").mkdir()
    shell = Bash(tmp_path)
    shell.type('eval "$(_EDGE_STEER_COMPLETE=bash_source edge-steer)"; echo rea""dy\n', until="ready\r\n")
    yield shell
    shell.close()


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("edge-steer quan\t", "edge-steer quantize "),
        ("edge-steer vector pro\t", "edge-steer vector project "),
        ("edge-steer run wei\t", "edge-steer run weights-Q4_K_M.gguf "),
        ("edge-steer run m.gguf --vector de\t", "--vector dense.gguf "),
        ("edge-steer export exp\t", "edge-steer export export/"),
        ("edge-steer run m.gguf --phase gen\t", "--phase generated "),
        ("edge-steer eval wei\t", "edge-steer eval weights-Q4_K_M.gguf "),
        ("edge-steer run m.gguf --stre\t", "--strength "),
    ],
)
def test_bash_completes_commands_options_choices_and_paths(bash: Bash, typed: str, completed: str) -> None:
    assert completed in bash.type(typed, until=completed)
