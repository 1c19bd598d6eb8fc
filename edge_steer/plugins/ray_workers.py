"""Units of a sweep on Ray: one engine a worker, on this machine or on a cluster; a lost worker's unit is made again.

Takes a model file that is at the same path on every machine, gives a units.Runner. What goes over the wire is plain
data: the plan there, rows back. The only door to ray. It keeps no rows and chooses nothing.
"""

import contextlib
import logging
import os
import re
import socket
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_steer.core.backend import EngineOptions, available_cores
from edge_steer.core.errors import EdgeSteerError, need
from edge_steer.core.progress import Progress
from edge_steer.evaluation.units import Plan, Runner, Unit
from edge_steer.models.load import load
from edge_steer.storage.digests import digest
from edge_steer.storage.files import readable
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.rows import Key, OnRow, Row, complete

LOCAL = "local"
LOSSES = 3  # workers that may be lost over one unit, or before they are ready, before it is an error
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # read when ray is imported; off, Ray listens on 127.0.0.1 alone
QUIET = {  # read when ray is imported
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed",  # on stdout; our own note says so
}
CONNECT_SECONDS = 10.0
OBJECT_STORE = 100 * 2**20  # bytes; rows are small


@dataclass(frozen=True)
class WorkerModel:
    """What a worker loads: a GGUF file by its path and digest, and how it runs."""

    path: Path
    digest: str
    options: EngineOptions


@contextlib.contextmanager
def ray_runner(
    address: str, model: WorkerModel, progress: Progress, *, workers: int | None = None, gpus: float = 0.0
) -> Iterator[Runner]:
    """A runner on the Ray cluster at `address`; "local" starts one on this machine that ends with it.

    A Ray that this process has begun is taken instead, and left running.
    workers: None is as many as the machines have room for. gpus: of each worker. progress: hears of lost workers.
    Errors: EdgeSteerError without ray, without a cluster there, or for a worker that no machine has room for.
    """
    need("ray")
    threads = model.options.threads or available_cores()
    begun = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    if not begun:
        _connect(address, threads * (workers or max(1, available_cores() // threads)))
    import ray

    pool = None
    try:
        room = _room(threads, gpus)
        pool = _Pool(model, {"num_cpus": threads, "num_gpus": gpus}, min(workers or room, room), progress)
        yield pool.run
    finally:
        if pool:
            pool.close()
        if not begun:
            ray.shutdown()


class _Worker:
    """One engine and its graders, in a process of its own."""

    def __init__(self, model: WorkerModel) -> None:
        self._model = model
        self._stack = contextlib.ExitStack()

    def load(self) -> None:
        """Errors: EdgeSteerError for a machine that has not the same model file."""
        model = self._model
        readable(model.path, "the model, which each machine needs at the same path")
        if digest(model.path) != model.digest:
            raise EdgeSteerError(f"{model.path} on {socket.gethostname()} is another file than here; copy it there")
        self._graders = self._stack.enter_context(Graders())
        self._backend = self._stack.enter_context(load(model.path, options=model.options))

    def rows(self, plan: Plan, unit: int) -> list[dict[str, Any]]:
        rows: dict[Key, Row] = {}
        complete(
            self._backend,
            plan.jobs(plan.units[unit]),
            self._graders,
            lambda row: rows.__setitem__(row.key, row),
            nll=plan.nll,
        )
        return [row.record() for row in rows.values()]

    def close(self) -> None:
        self._stack.close()


class _Pool:
    """Workers that take units one by one; a unit is given to a worker only once that is ready."""

    def __init__(self, model: WorkerModel, resources: Mapping[str, float], size: int, progress: Progress) -> None:
        import ray

        self._ray = ray
        self._model = ray.put(model)
        self._actor = ray.remote(max_restarts=0, **resources)(_Worker)
        self._size, self._progress = size, progress
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Unit | None]] = {}  # result to come -> worker, unit (None while it loads)

    def run(self, plan: Plan, units: Sequence[Unit], on_row: OnRow) -> Iterator[Unit]:
        """A units.Runner. Errors: EdgeSteerError of a worker, or when too many workers are lost."""
        shared = self._ray.put(plan)
        waiting = deque(units)
        losses: Counter[int | None] = Counter()
        while len(self._idle) + len(self._busy) < min(self._size, len(waiting)):
            self._hire()
        while waiting or any(unit for _, unit in self._busy.values()):
            while waiting and self._idle:
                worker, unit = self._idle.pop(), waiting.popleft()
                self._busy[worker.rows.remote(shared, unit.index)] = worker, unit
            (ready, *_), _ = self._ray.wait(list(self._busy), num_returns=1)
            worker, done = self._busy.pop(ready)
            records = self._result(ready)
            if records is None:
                self._lose(worker, done, losses)
                waiting.extendleft([done] if done else [])
                self._hire()
                continue
            self._idle.append(worker)
            if done:
                for record in records:
                    on_row(Row.of(record))
                yield done

    def close(self) -> None:
        """End the workers; idle ones end their graders first."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.get([worker.close.remote() for worker in self._idle], timeout=10)
        for worker in (*self._idle, *(worker for worker, _ in self._busy.values())):
            self._ray.kill(worker)

    def _hire(self) -> None:
        worker = self._actor.remote(self._model)
        self._busy[worker.load.remote()] = worker, None

    def _lose(self, worker: Any, unit: Unit | None, losses: "Counter[int | None]") -> None:
        what = f"unit {unit.index}" if unit else "its model"
        losses[unit.index if unit else None] += 1
        if losses[unit.index if unit else None] >= LOSSES:
            raise EdgeSteerError(
                f"{LOSSES} Ray workers were lost over {what}; most often memory is short: take fewer workers, fewer "
                "sequences at once or a smaller context; what is done is kept"
            )
        self._progress.note(f"a Ray worker was lost over {what}; another takes it")
        self._ray.kill(worker)

    def _result(self, ready: Any) -> list[dict[str, Any]] | None:
        """What the worker gave, nothing for having loaded; None if it was lost."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(ready) or []
        except errors.RayTaskError as error:
            if isinstance(error.cause, EdgeSteerError):
                raise error.cause from None
            raise
        except errors.RayError:
            return None


def _connect(address: str, cpus: int) -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        settings |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
        os.environ.setdefault(LOOPBACK, "0")
    elif match := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address):
        _answers(address, match[1], int(match[2]))
    import ray

    try:
        ray.init(address, **settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, str(error)) from None


def _answers(address: str, host: str, port: int) -> None:
    """Ray itself would try for minutes."""
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise _no_cluster(address, str(error)) from None


def _no_cluster(address: str, why: str) -> EdgeSteerError:
    return EdgeSteerError(
        f"no Ray cluster at {address}: {why.splitlines()[0]}; start one with 'ray start --head', or name {LOCAL!r}"
    )


def _room(threads: int, gpus: float) -> int:
    """How many workers the machines have room for. Errors: EdgeSteerError for none."""
    import ray

    rooms = 0
    for node in ray.nodes():
        if node["Alive"]:
            room = node["Resources"].get("CPU", 0) // threads
            rooms += int(min(room, node["Resources"].get("GPU", 0) // gpus) if gpus else room)
    if not rooms:
        wanted = f"{threads} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        raise EdgeSteerError(f"no machine of the Ray cluster has {wanted} for a worker; ask for fewer threads or GPUs")
    return rooms
