"""Progress on standard error: lines of a log, a bar in a terminal."""

import os
import pty
import re
import subprocess
import sys
import time

import pytest

from edge_steer.terminal.progress import LogProgress, duration, progress_bar

DRAWING = """
import time
from edge_steer.terminal.progress import progress_bar, say
with progress_bar() as progress:
    for step in progress.counted("answering", range(4)):
        time.sleep(0.1)
        if step == 1: progress.note("noted [red]by the library[/red]")
        if step == 2: say("said by the command")
print("done")
"""


def test_a_log_of_long_work_is_not_empty(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LogProgress(seconds=0.05)
    progress("loading the model")
    time.sleep(0.3)  # one long step
    for _ in progress.counted("answering", range(4)):
        time.sleep(0.1)
    progress.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines.count("loading the model: 0 of 1 after 0 s") >= 3
    assert re.search(r"^answering: [1-3] of 4, about 0 s left$", captured.err, re.MULTILINE)


def test_short_work_and_work_that_ended_leave_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as progress:
        for _ in progress.counted("answering", range(100)):
            pass
    ended = LogProgress(seconds=0.05)
    ended.close()
    ended("too late")
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_a_line_tells_how_long_the_rest_may_take() -> None:
    progress = LogProgress()
    progress("answering", 100, 400)  # of a run that goes on: the first hundred took no time
    began = time.monotonic()
    assert progress.line(began + 20).startswith("answering: 100 of 400 after ")
    progress("answering", 150, 400)
    assert progress.line(began + 20) == "answering: 150 of 400, about 2 min left"
    progress("scoring", 0, 10)
    assert progress.line(time.monotonic()) == "scoring: 0 of 10 after 0 s"
    progress.close()


def test_duration() -> None:
    assert [duration(seconds) for seconds in (0.4, 40, 89, 720, 12600)] == ["0 s", "40 s", "89 s", "12 min", "3.5 h"]


def test_notes_stand_in_lines_of_their_own_above_a_bar() -> None:
    """In a terminal of its own, whose screen is what is left when the bar's escape codes are acted out."""
    main, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen([sys.executable, "-c", DRAWING], stdout=side, stderr=side, env=environment)
    os.close(side)
    output = b""
    while True:
        try:
            piece = os.read(main, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        output += piece
    assert process.wait(30) == 0
    os.close(main)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())
    lines = re.split(r"[\r\n]+", text)
    assert "noted [red]by the library[/red]" in lines
    assert "said by the command" in lines
    assert any(re.match(r"answering .*[123]/4", line) for line in lines)
    assert lines[-2:] == ["done", ""]
