"""Grading in worker processes: the same grades, a limit for each answer, workers that hang or die, leaving early."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import CancelledError

import psutil
import pytest

from edge_steer.core.errors import EdgeSteerError
from edge_steer.tasks.answers import Grade, grade
from edge_steer.tasks.grading import Graders

HANGING = "The answer is \\boxed{((10!)!)!}."  # a number with more digits than there is memory for
HALVES = "\\boxed{\\frac{14}{2}}"  # 7, and no whole number to look at
WORKER = [sys.executable, "-m", "edge_steer.tasks.grading"]


def workers() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "edge_steer.tasks.grading" in child.cmdline()
    ]


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_workers_grade_as_this_process_does() -> None:
    asked = [(f"The answer is \\boxed{{\\frac{{{n}}}{{1}}}}.", str(n - n % 2)) for n in range(40)]
    with Graders(2) as graders:
        futures = [graders.submit(text, answer) for text, answer in asked]
        letter = graders.submit("The answer is B.", "B", "letter")
        assert len(workers()) <= 2
    assert [future.result() for future in futures] == [grade(text, answer) for text, answer in asked]
    assert letter.result().extracted == "B"
    assert not workers()


def test_a_hanging_expression_is_wrong_and_the_next_is_graded() -> None:
    with Graders(1, seconds=2) as graders:
        hanging = graders.submit(HANGING, "7")
        after = graders.submit(HALVES, "7")
        assert hanging.result().error == "timed out after 2 s"
        assert not hanging.result().correct
        assert after.result().correct


def test_a_worker_that_dies_is_replaced() -> None:
    with Graders(1, seconds=60) as graders:
        assert graders.submit(HALVES, "7").result().correct
        doomed = graders.submit(HANGING, "7")
        until(doomed.running)
        workers()[0].kill()
        assert doomed.result() == Grade(False, "", "the grading process died with status -9")
        assert graders.submit(HALVES, "7").result().correct


def test_an_idle_worker_that_died_is_replaced_before_it_is_asked() -> None:
    with Graders(1) as graders:
        assert graders.submit(HALVES, "7").result().correct
        idle = workers()[0]
        idle.kill()
        idle.wait()
        assert graders.submit(HALVES, "7").result().correct


def test_leaving_by_an_exception_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Graders(1, seconds=600) as graders:
        assert graders.submit(HALVES, "7").result().correct
        running = graders.submit(HANGING, "7")
        waiting = graders.submit(HALVES, "7")
        until(running.running)
        raise KeyboardInterrupt
    assert not workers()
    with pytest.raises(EdgeSteerError, match="stopped before"):
        running.result()
    with pytest.raises(CancelledError):
        waiting.result()
    with pytest.raises(EdgeSteerError, match="closed"):
        graders.submit(HALVES, "7")


def test_whole_numbers_start_nothing() -> None:
    with Graders(2) as graders:
        futures = [graders.submit(f"So \\boxed{{{n}}}.", "7") for n in range(9)]
        assert not workers()
    assert [n for n, future in enumerate(futures) if future.result().correct] == [7]


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(EdgeSteerError, match="at least 1"):
        Graders(0)
    with pytest.raises(EdgeSteerError, match="more than 0"):
        Graders(1, seconds=0)


def test_a_script_without_a_main_guard_can_grade() -> None:
    script = (
        "from edge_steer.tasks.grading import Graders\n"
        "with Graders(1) as graders: print(graders.submit('\\\\boxed{7.0}', '7').result().correct)"
    )
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no alarm signal")
def test_a_worker_without_a_parent_ends_by_itself() -> None:
    request = json.dumps({"text": HANGING, "answer": "7", "kind": "math"})
    with subprocess.Popen([*WORKER, "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        worker.communicate(f"\n{request}\n")
    assert worker.returncode == -signal.SIGALRM
    idle = subprocess.run([*WORKER, "1"], input="\n", capture_output=True, text=True, check=True)
    assert idle.stdout == "ready\n"


def test_a_worker_loads_no_model_runtime() -> None:
    code = (
        "import sys\nfrom edge_steer.tasks.grading import grade\ngrade('\\\\boxed{7.0}', '7')\n"
        "print(sorted({'torch', 'llama_cpp', 'transformers', 'ray'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"
