"""A Backend completes a task's problems: every completion a row, graded, and scored under the unsteered model.

Takes a Backend, tasks, methods and graders, gives rows one by one. It knows no file and no figure.
"""

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
from edge_steer.core.steering import Offsets, Steer, Steering, described, steerings
from edge_steer.tasks.answers import Grade
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.task import Sample, Task, count_steps, density

Key = tuple[str, str, str, int]  # task, method, id, repeat
OLD_UNSCORED = "ids"  # the name of the field in rows files written earlier


@dataclass(frozen=True)
class Method:
    """How the model is moved: by steering, by a system message, or not at all.

    system: stands behind the task's own system message.
    """

    name: str
    steering: tuple[Steering, ...] = ()
    system: str | None = None

    @classmethod
    def of(cls, name: str, method: "Method | Steer") -> "Method":
        """A method of this name: another one renamed, or a steering as every `steer=` takes it. Errors: VectorError."""
        return replace(method, name=name) if isinstance(method, Method) else cls(name, steerings(method))

    def described(self) -> dict[str, object]:
        """The method as the header of a results file tells it."""
        return {"steering": described(self.steering), "system": self.system}

    def asks(self, task: Task) -> Task:
        """The task with this method's system message."""
        if self.system is None:
            return task
        return task.with_settings(system="\n\n".join(filter(None, (task.settings.system, self.system))))


UNSTEERED = Method("unsteered")


@dataclass(frozen=True)
class RowJob:
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
    boxed, lenient: whether it is right in each way of grading, `correct` being that of the task; None in rows written
    before both were graded.
    nll: mean negative log-likelihood of a generated token, in nats, under the unsteered model on the same prompt;
    None when there is no token, or no score was asked, or the row awaits it.
    unscored_tokens: the generated tokens of a row that awaits its score; they are dropped with the score.
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
    unscored_tokens: tuple[int, ...] = ()
    boxed: bool | None = None
    lenient: bool | None = None

    @property
    def key(self) -> Key:
        return self.task, self.method, self.id, self.repeat

    @property
    def awaits_score(self) -> bool:
        """Whether the likelihood is still to be computed; a stopped run leaves such rows."""
        return bool(self.unscored_tokens)

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
        if not self.awaits_score:
            del record["unscored_tokens"]
        return {name: value for name, value in record.items() if name not in GRADES or value is not None}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Row":
        """The inverse of `record`, which may be of an earlier version. Errors: EdgeSteerError for anything else."""
        values = dict(record)
        tokens = values.pop("unscored_tokens", values.pop(OLD_UNSCORED, ()))
        types = RECORD_TYPES | {name: bool for name in GRADES if name in values}
        if values.keys() == types.keys() and all(isinstance(values[key], types[key]) for key in values):
            return cls(**values, unscored_tokens=tuple(tokens))
        raise EdgeSteerError(f"{str(dict(record))[:80]} is no row of an evaluation")


GRADES = ("boxed", "lenient")  # not in rows written earlier
RECORD_TYPES: dict[str, Any] = {
    **dict.fromkeys(("task", "id", "method", "prompt", "text", "extracted", "finish", "error"), str),
    **dict.fromkeys(("repeat", "tokens", "steps"), int),
    "correct": bool,
    "seconds": int | float,
    "nll": int | float | None,
}
OnRow = Callable[[Row], None]


def jobs_of(task: Task, method: Method = UNSTEERED) -> list[RowJob]:
    """Every completion of a task by one method, problem by problem.

    Errors: EdgeSteerError for several completions of a problem without sampling: they would all be the same.
    """
    settings = task.settings
    if settings.samples > 1 and not settings.sampling.temperature:
        raise EdgeSteerError(
            f"{settings.samples} samples of each problem of {task.name} at temperature 0 are all the same; "
            "set a temperature, or 1 sample"
        )
    return [RowJob(task, sample, repeat, method) for sample in task.samples for repeat in range(settings.samples)]


def complete(backend: Backend, jobs: Sequence[RowJob], graders: Graders, on_row: OnRow, *, nll: bool = True) -> None:
    """Make every job in one call of the backend, graded while it decodes.

    on_row is called, in the calling thread, for each row once it is graded, and again once it is scored where the
    score is not known from decoding; the later row of a key replaces the earlier.
    """
    prompts = Prompts(backend)
    requests = []
    for job in jobs:
        unsteered = Offsets.of(job.method.steering, backend.model) is None
        requests.append(_request(job, prompts.of(job), wants_logprobs=nll and unsteered))
    ungraded: deque[tuple[int, Completion, Future[Grade] | None]] = deque()
    unscored: list[tuple[int, Row]] = []

    def give_graded(wait: bool) -> None:
        """Give the rows that are graded, in the order in which they were completed."""
        while ungraded:
            index, completion, grade = ungraded[0]
            if grade and not (wait or grade.done()):
                return
            ungraded.popleft()
            row = _row(jobs[index], requests[index].prompt, completion, grade.result() if grade else None, nll)
            if row.awaits_score:
                unscored.append((index, row))
            on_row(row)

    def on_done(index: int, completion: Completion) -> None:
        job = jobs[index]
        failed = completion.finish == "error"
        grade = None if failed else _submit(graders, job, completion.text)
        ungraded.append((index, completion, grade))
        give_graded(wait=False)

    if requests:
        backend.generate(requests, on_done=on_done)
    give_graded(wait=True)
    for index, row in unscored:
        on_row(score(backend, requests[index].prompt, row))


def score(backend: Backend, prompt: Tokens, row: Row) -> Row:
    """A row that awaits its score, with its likelihood under the unsteered model."""
    nll = backend.nll((*prompt, *row.unscored_tokens), len(prompt))
    return replace(row, nll=float(nll.mean()), unscored_tokens=())


class Prompts:
    """The prompts of jobs; those of one problem under one system message are tokenised once."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._tokens: dict[tuple[str, str, str | None], Tokens] = {}

    def of(self, job: RowJob) -> Tokens:
        key = job.task.name, job.sample.id, job.method.system
        if key not in self._tokens:
            self._tokens[key] = self._backend.chat(job.method.asks(job.task).messages(job.sample))
        return self._tokens[key]


def _request(job: RowJob, prompt: Tokens, wants_logprobs: bool) -> Request:
    settings = job.task.settings
    room = settings.max_tokens if settings.context is None else max(settings.context - len(prompt), 1)
    return Request(
        prompt,
        min(settings.max_tokens, room),
        job.method.steering,
        replace(settings.sampling, seed=job.seed),
        stop=settings.stop,
        logprobs=0 if wants_logprobs else None,
    )


def _submit(graders: Graders, job: RowJob, text: str) -> Future[Grade]:
    return graders.submit(text, job.sample.answer, job.task.grader, job.task.settings.grading)


def _row(job: RowJob, prompt: Tokens, completion: Completion, grade: Grade | None, nll: bool) -> Row:
    known_nll = None
    if nll and completion.logprobs:
        known_nll = -statistics.fmean(token.logprob for token in completion.logprobs)
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
        nll=known_nll,
        unscored_tokens=completion.tokens if nll and known_nll is None else (),
        boxed=grade.boxed if grade else None,
        lenient=grade.lenient if grade else None,
    )
