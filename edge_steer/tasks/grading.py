"""Answers graded in worker processes, with a time limit each, so that no expression can stop a run.

Takes texts and gold answers, gives futures of Grades. Run as a program it is the worker: it loads math-verify and no
model. What is right, `answers` says.
"""

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from edge_steer.core.errors import EdgeSteerError, need
from edge_steer.tasks.answers import Grade, Grading, Kind, grade, grade_math, grade_plain

_Job = tuple["Future[Grade]", dict[str, str]]
ROOT = str(Path(__file__).parents[2])
MEMORY = 4 << 30  # bytes of address space a worker may use, where the system can limit it
START_SECONDS = 300.0
GRADING_SECONDS = 10.0  # the limit of one answer where no other is asked
GRACE_SECONDS = 10


class Graders:
    """A context manager over worker processes that grade while the caller goes on.

    workers: how many at most; each is started when there is work for it and stays; whole numbers need none. seconds:
    the limit of one answer; a worker beyond it is killed and the answer graded wrong with an error that says so, as
    when a worker dies. Leaving the block waits for what was submitted; leaving it by an exception cancels what has not
    begun.
    Errors: EdgeSteerError if math-verify is not installed, or from a future if no worker can be started.
    """

    def __init__(self, workers: int = 2, seconds: float = GRADING_SECONDS) -> None:
        need("evaluate")
        if workers < 1 or not seconds > 0:
            raise EdgeSteerError(f"{workers} grading workers, {seconds:g} s an answer; need at least 1 and more than 0")
        self._most, self._seconds = workers, seconds
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        self._threads: list[threading.Thread] = []
        self._cancelled = threading.Event()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        if kind is not None:
            self._cancel()
        for _ in self._threads:
            self._jobs.put(None)
        try:
            for thread in self._threads:
                thread.join()
        except BaseException:
            self._cancel()
            raise

    def submit(self, text: str, answer: str, kind: Kind = "math", grading: Grading = "lenient") -> "Future[Grade]":
        """Grade soon, as `answers.grade` does; callbacks of the future run in a thread of the pool."""
        if self._closed:
            raise EdgeSteerError("the graders are closed; submit inside their block")
        future: Future[Grade] = Future()
        if plain := grade_plain(text, answer, kind):
            future.set_result(plain)
            return future
        self._jobs.put((future, {"text": text, "answer": answer, "kind": kind, "grading": grading}))
        if len(self._threads) < self._most:
            worker = _Worker(self._seconds)
            thread = threading.Thread(target=self._work, args=(worker,), name="grading", daemon=True)
            self._workers.append(worker)
            self._threads.append(thread)
            thread.start()
        return future

    def _cancel(self) -> None:
        self._cancelled.set()
        for worker in self._workers:
            worker.kill()

    def _work(self, worker: "_Worker") -> None:
        with contextlib.closing(worker):
            while (job := self._jobs.get()) is not None:
                future, request = job
                if self._cancelled.is_set():
                    future.cancel()
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    future.set_result(worker.grade(request))
                except Exception as failure:
                    future.set_exception(failure)


class _Worker:
    """One process of `python -m edge_steer.tasks.grading`: a line of JSON in, a line of JSON out."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._killed = False

    def grade(self, request: dict[str, str]) -> Grade:
        process = self._started()
        line, late = self._ask(process, json.dumps(request), self._seconds)
        if line:
            return Grade(**json.loads(line))
        self.close()
        if self._killed:
            raise EdgeSteerError("grading was stopped before this answer was graded")
        if late:
            return Grade(False, "", f"timed out after {self._seconds:g} s")
        return Grade(False, "", f"the grading process died with status {process.returncode}")

    def kill(self) -> None:
        """End it from another thread, whatever it does; it starts no other process afterwards."""
        self._killed = True
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        if (process := self._process) is not None:
            self._process = None
            process.kill()
            process.communicate()

    def _started(self) -> "subprocess.Popen[str]":
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            limit = str(math.ceil(self._seconds) + GRACE_SECONDS)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "edge_steer.tasks.grading", limit],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                env={**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, *filter(None, sys.path)])},
            )
            ready, _ = ("", False) if self._killed else self._ask(self._process, "", START_SECONDS)
            if ready != "ready\n":
                process = self._process
                self.close()
                if self._killed:
                    raise EdgeSteerError("grading was stopped before this answer was graded")
                raise EdgeSteerError(
                    f"the grading process does not start (status {process.returncode}); "
                    f"run '{Path(sys.executable).name} -m edge_steer.tasks.grading' to see why"
                )
        return self._process

    def _ask(self, process: "subprocess.Popen[str]", line: str, seconds: float) -> tuple[str, bool]:
        """The whole line answered, or "" for none, and whether the process was killed for taking too long."""
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            with contextlib.suppress(OSError):
                process.stdin.write(line + "\n")
                process.stdin.flush()
            answer = process.stdout.readline()
        finally:
            timer.cancel()
            timer.join()
        if late.is_set():
            self.close()
        return (answer if answer.endswith("\n") else ""), late.is_set()


def _serve(seconds: int) -> None:
    """Answer requests until the input ends. The system's own alarm ends a worker whose parent is gone."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    requests = os.fdopen(0, encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform != "win32":
        import resource

        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    grade_math("\\boxed{1}", "1")
    requests.readline()
    print("ready", file=answers, flush=True)
    for line in requests:
        if sys.platform != "win32":
            signal.alarm(seconds)
        try:
            graded = grade(**json.loads(line))
        except Exception as error:
            graded = Grade(False, "", f"{type(error).__name__}: {error}")
        print(json.dumps(asdict(graded)), file=answers, flush=True)
        if sys.platform != "win32":
            signal.alarm(0)


if __name__ == "__main__":
    _serve(int(sys.argv[1]) if sys.argv[1:] else GRACE_SECONDS)
