"""A sweep on a local Ray with two workers, both of which are killed: the rows are those of one process."""

import contextlib
import importlib.util
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from heard import Heard

from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT
from edge_steer.core.vector import SteeringVector
from edge_steer.evaluation.sweep_cells import UNSTEERED_CELL, SweepCell
from edge_steer.evaluation.units import Plan, PlanRows, Runner, Unit, in_process, make_rows
from edge_steer.models.load import load
from edge_steer.plugins.ray_workers import LOSSES, WorkerModel, ray_runner
from edge_steer.storage.digests import digest
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.load import load_task
from edge_steer.tasks.rows import OnRow, Row
from edge_steer.tasks.wordproblems import WORD_PROBLEMS

if importlib.util.find_spec("ray") is None:
    pytest.skip("the extra 'ray' is not installed", allow_module_level=True)

ENGINE = EngineOptions(threads=1, parallel=2)


@pytest.fixture(scope="module")
def plan(bundled_vector: SteeringVector) -> Plan:
    task = load_task(WORD_PROBLEMS, limit=8)
    methods = [
        cell.method(bundled_vector, "generated")
        for cell in (UNSTEERED_CELL, SweepCell(5, 0.35), SweepCell(4, -0.3), SweepCell(3, 0.3))
    ]
    return Plan(task, tuple(methods), problems=1)


@pytest.fixture(scope="module")
def model(bundled_f16: Path) -> Iterator[WorkerModel]:
    """While one Ray runs that all tests here share: to begin one takes seconds of many processes."""
    model = WorkerModel(bundled_f16, digest(bundled_f16), ENGINE)
    with ray_runner("local", model, SILENT, workers=2):
        yield model


def workers() -> list[psutil.Process]:
    """The processes of Ray's actors that this process started."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if process.name().startswith("ray::_Worker")]


def killing(runner: Runner, killed: list[int]) -> Runner:
    """The same runner, all of whose workers are killed once the first unit is made."""

    def run(plan: Plan, units: Sequence[Unit], on_row: OnRow) -> Iterator[Unit]:
        for unit in runner(plan, units, on_row):
            if not killed:
                killed.extend(worker.pid for worker in workers())
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
            yield unit

    return run


def rows_in(folder: Path, plan: Plan, runner: Runner) -> PlanRows:
    return make_rows(plan, runner, path=folder / "dev.jsonl", header={"of": "a test"})


def test_killed_workers_lose_nothing(plan: Plan, model: WorkerModel, tmp_path: Path) -> None:
    with Graders() as graders, load(model.path, options=ENGINE) as engine:
        here = rows_in(tmp_path / "here", plan, in_process(engine, graders))

    heard = Heard()
    killed: list[int] = []
    with ray_runner("local", model, heard, workers=2) as runner:
        there = rows_in(tmp_path / "there", plan, killing(runner, killed))
    assert there.rows == here.rows
    assert there.changed == 0
    assert 1 <= len(killed) == len(heard.notes)  # the second may not have begun
    assert any("a Ray worker was lost over unit" in note for note in heard.notes)
    lines = (tmp_path / "there" / "dev.jsonl").read_text().splitlines()[1:]
    units = [record["whole"] for record in map(json.loads, lines) if "whole" in record]
    assert sorted(units) == list(range(8))
    rows = [Row.of(record).key for record in map(json.loads, lines) if "whole" not in record]
    assert len(rows) == len(set(rows)) == plan.size
    gone = time.monotonic() + 20
    while workers() and time.monotonic() < gone:
        time.sleep(0.1)
    assert not workers()


def test_a_worker_without_the_same_model_is_one_line(plan: Plan, model: WorkerModel, tmp_path: Path) -> None:
    other = ray_runner("local", WorkerModel(model.path, "0" * 64, ENGINE), SILENT, workers=1)
    with other as runner, pytest.raises(EdgeSteerError, match="is another file than here"):
        rows_in(tmp_path, plan, runner)
    too_large = ray_runner("local", WorkerModel(model.path, "", ENGINE), SILENT, workers=1, gpus=64)
    with pytest.raises(EdgeSteerError, match="no machine of the Ray cluster has 1 CPUs and 64 GPUs"), too_large:
        pass


def test_workers_that_always_die_end_the_sweep(plan: Plan, model: WorkerModel, tmp_path: Path) -> None:
    """As for want of memory: no endless restarts."""
    heard = Heard()
    over = threading.Event()

    def kill_all() -> None:
        while not over.wait(0.05):
            for worker in workers():
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.kill()

    killer = threading.Thread(target=kill_all)
    with ray_runner("local", model, heard, workers=1) as runner:
        killer.start()
        try:
            with pytest.raises(EdgeSteerError, match=r"3 Ray workers were lost over .*what is done is kept"):
                rows_in(tmp_path, plan, runner)
        finally:
            over.set()
            killer.join()
    assert len(heard.notes) == LOSSES - 1
