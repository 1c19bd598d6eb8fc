"""A Backend answers a task's problems: rows."""

import hashlib
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from edge_steer.core.backend import Backend, Completion, Request, Tokens
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.steering import Offsets, Steering
from edge_steer.tasks.answers import Grade
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.task import Sample, Task, count_steps, density

Key = tuple[str, str, str, int]  # task, method, id, repeat


@dataclass(frozen=True)
class Method:
    """How the model is moved: by steering, by a system message in place of the task's, or not at all."""

    name: str
    steering: tuple[Steering, ...] = ()
    system: str | None = None


UNSTEERED = Method("unsteered")


@dataclass(frozen=True)
class Job:
    """One completion to make; `repeat` counts from 0 the completions of one problem."""

    task: Task
    sample: Sample
    repeat: int
    method: Method

    @property
    def key(self) -> Key:
        """The key of its row."""
        return self.task.name, self.method.name, self.sample.id, self.repeat

    @property
    def seed(self) -> int:
        """The request's seed: by the task's base seed, the problem and the repeat; the same for every method."""
        base = self.task.settings.sampling.seed
        return int.from_bytes(hashlib.sha256(f"{base} {self.repeat} {self.sample.id}".encode()).digest()[:4], "big")


@dataclass(frozen=True)
class Row:
    """One completion. `steps` and `tokens` are N_steps and N_tokens of the text; `prompt` is a digest.

    prompt: SHA-256 of the prompt's token ids. extracted: what was taken as the answer. error: why there is no text
    (finish is "error" then) or no grade, else "". seconds: wall time, not compared.
    nll: mean negative log-likelihood of a generated token, in nats, under the unsteered model on the same prompt;
    None when there is no token, or not yet: then `ids` are the generated tokens, and they are dropped with the score.
    """

    task: str
    id: str
    repeat: int
    method: str
    prompt: str
    text: str
    tokens: int
    steps: int
    correct: bool
    extracted: str
    finish: str
    error: str
    seconds: float = field(compare=False)
    nll: float | None
    ids: tuple[int, ...] = ()

    @property
    def key(self) -> Key:
        return self.task, self.method, self.id, self.repeat

    @property
    def answered(self) -> bool:
        """Whether there is a completion; its length means something only then."""
        return self.finish != "error"

    @property
    def density(self) -> float:
        """rho = N_tokens / N_steps; a text without a step counts as one."""
        return density(self.tokens, max(self.steps, 1))

    def record(self) -> dict[str, Any]:
        """What a store keeps."""
        record = asdict(self)
        if not self.ids:
            del record["ids"]
        return record

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Row":
        """The inverse of `record`. Errors: EdgeSteerError for anything else."""
        try:
            return cls(**{**record, "ids": tuple(record.get("ids", ()))})
        except TypeError:
            raise EdgeSteerError(f"{str(dict(record))[:80]} is no row of an evaluation") from None


OnRow = Callable[[Row], None]


def jobs_of(task: Task, method: Method = UNSTEERED) -> list[Job]:
    """Every completion of a task by one method, problem by problem.

    Errors: EdgeSteerError for several completions of a problem without sampling: they would all be the same.
    """
    settings = task.settings
    if settings.samples > 1 and not settings.sampling.temperature:
        raise EdgeSteerError(
            f"{settings.samples} samples of each problem of {task.name} at temperature 0 are all the same; "
            "set a temperature, or 1 sample"
        )
    return [Job(task, sample, repeat, method) for sample in task.samples for repeat in range(settings.samples)]


def answer(backend: Backend, jobs: Sequence[Job], graders: Graders, on_row: OnRow, *, nll: bool = True) -> None:
    """Make every job in one call of the backend, graded while it decodes.

    on_row is called, in the calling thread, for each row once it is graded, and again once it is scored where the
    score is not known from decoding; the later row of a key replaces the earlier.
    """
    prompts = Prompts(backend)
    requests = []
    for job in jobs:
        unsteered = Offsets.of(job.method.steering, backend.model) is None
        requests.append(_request(job, prompts.of(job), wants_logprobs=nll and unsteered))
    waiting: deque[tuple[int, Completion, Future[Grade] | None]] = deque()
    unscored: list[tuple[int, Row]] = []

    def settle(wait: bool) -> None:
        """Give the rows that are graded, in the order in which they were completed."""
        while waiting:
            index, completion, grade = waiting[0]
            if grade and not (wait or grade.done()):
                return
            waiting.popleft()
            row = _row(jobs[index], requests[index].prompt, completion, grade.result() if grade else None, nll)
            if row.ids:
                unscored.append((index, row))
            on_row(row)

    def take(index: int, completion: Completion) -> None:
        job = jobs[index]
        failed = completion.finish == "error"
        grade = None if failed else graders.submit(completion.text, job.sample.answer, job.task.grader)
        waiting.append((index, completion, grade))
        settle(wait=False)

    if requests:
        backend.generate(requests, on_done=take)
    settle(wait=True)
    for index, row in unscored:
        on_row(scored(backend, requests[index].prompt, row))


class Prompts:
    """The prompts of jobs; those of one problem under one system message are made once."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._made: dict[tuple[str, str, str | None], Tokens] = {}

    def of(self, job: Job) -> Tokens:
        key = job.task.name, job.sample.id, job.method.system
        if key not in self._made:
            task = job.task
            if job.method.system is not None:
                task = replace(task, settings=replace(task.settings, system=job.method.system))
            self._made[key] = self._backend.chat(task.messages(job.sample))
        return self._made[key]


def _request(job: Job, prompt: Tokens, wants_logprobs: bool) -> Request:
    settings = job.task.settings
    return Request(
        prompt,
        settings.max_tokens,
        job.method.steering,
        replace(settings.sampling, seed=job.seed),
        logprobs=0 if wants_logprobs else None,
    )


def _row(job: Job, prompt: Tokens, completion: Completion, grade: Grade | None, nll: bool) -> Row:
    scored = None
    if nll and completion.logprobs:
        scored = -statistics.fmean(token.logprob for token in completion.logprobs)
    return Row(
        task=job.task.name,
        id=job.sample.id,
        repeat=job.repeat,
        method=job.method.name,
        prompt=hashlib.sha256(np.array(prompt, dtype="<i4").tobytes()).hexdigest(),
        text=completion.text,
        tokens=len(completion.tokens),
        steps=count_steps(completion.text),
        correct=grade.correct if grade else False,
        extracted=grade.extracted if grade else "",
        finish=completion.finish,
        error=grade.error if grade else completion.error,
        seconds=completion.seconds,
        nll=scored,
        ids=completion.tokens if nll and scored is None else (),
    )


def scored(backend: Backend, prompt: Tokens, row: Row) -> Row:
    """The row with its likelihood under the unsteered model."""
    return replace(row, nll=float(backend.nll((*prompt, *row.ids), len(prompt)).mean()), ids=())
