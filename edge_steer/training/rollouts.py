"""Answers sampled on policy: by the engine, from the distribution its logits give, with log-probabilities; graded.

Takes a Backend, a task and a steering, gives a batch of answers with their rewards. Which problems a step draws, and
every seed, follow from the settings, so that a step can be made again. It knows no gradient and no torch.
"""

import hashlib
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from edge_steer.core.backend import Backend, Completion, Request, Tokens
from edge_steer.core.errors import RequestError
from edge_steer.core.sampling import Sampling
from edge_steer.core.stats import Floats
from edge_steer.core.steering import Steering
from edge_steer.tasks.answers import Grade, last_boxed
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.load import load_task
from edge_steer.tasks.protocols import Protocol
from edge_steer.tasks.task import Sample, Task
from edge_steer.training.settings import RlooSettings


@dataclass(frozen=True)
class Rollout:
    """One answer. tokens: its own, with the end token if one ended it. logprobs: of each under the engine that drew it,
    in nats. reward: 1 if the last box of the text is right, else 0."""

    problem: str
    prompt: Tokens
    tokens: Tokens
    logprobs: tuple[float, ...]
    text: str
    finished: bool
    reward: float = 0.0

    @property
    def boxed(self) -> bool:
        return last_boxed(self.text) is not None

    @property
    def length(self) -> int:
        """Positions it takes in a network that predicts each token."""
        return len(self.prompt) + len(self.tokens) - 1


@dataclass(frozen=True)
class Batch:
    """The answers of a step, those to one problem together. seconds: to decode them, and to wait for their grades."""

    rollouts: tuple[Rollout, ...]
    generations: int
    decoding_seconds: float
    grading_seconds: float

    @cached_property
    def rewards(self) -> Floats:
        """float64 (prompts, generations)."""
        return np.array([rollout.reward for rollout in self.rollouts]).reshape(-1, self.generations)

    @property
    def tokens(self) -> int:
        return sum(len(rollout.tokens) for rollout in self.rollouts)


class Sampler:
    """Draws the batches of a training run."""

    def __init__(self, graders: Graders, task: Task, settings: RlooSettings) -> None:
        self._graders, self._task, self._settings = graders, task, settings

    def batch(
        self,
        step: int,
        engine: Backend,
        steering: Sequence[Steering] = (),
        on_answer: Callable[[int], object] | None = None,
    ) -> Batch:
        """The answers of an engine to the problems of a step. on_answer: hears how many are decoded.

        Errors: RequestError for a prompt that leaves no room for one.
        """
        settings = self._settings
        samples = [sample for sample in problems_of(self._task, settings, step) for _ in range(settings.generations)]
        prompts = {sample.id: engine.chat(self._task.messages(sample)) for sample in samples}
        requests = [
            Request(
                prompts[sample.id],
                settings.max_tokens,
                tuple(steering),
                Sampling(temperature=1.0, seed=_seed(settings.seed, step, index)),
                self._task.settings.stop,
                logprobs=0,
            )
            for index, sample in enumerate(samples)
        ]
        grades: dict[int, Future[Grade]] = {}

        def grade(index: int, completion: Completion) -> None:
            answer = samples[index].answer
            grades[index] = self._graders.submit(completion.text, answer, self._task.grader, "boxed")
            if on_answer:
                on_answer(len(grades))

        started = time.perf_counter()
        completions = engine.generate(requests, on_done=grade)
        decoded = time.perf_counter()
        rollouts = tuple(
            replace(_rollout(sample.id, request.prompt, completion), reward=float(grades[index].result().correct))
            for index, (sample, request, completion) in enumerate(zip(samples, requests, completions, strict=True))
        )
        return Batch(rollouts, settings.generations, decoded - started, time.perf_counter() - decoded)


def training_task(
    name: str | Path, *, protocol: Protocol = "bias-only", split: str | None = None, limit: int | None = None
) -> Task:
    """The training split of a task by its name; a file of problems is its own split. Errors: as `load_task`."""
    own_file = "=" in str(name) or str(name).endswith(".toml")
    return load_task(name, protocol=protocol, split=split or (None if own_file else "train"), limit=limit)


def problems_of(task: Task, settings: RlooSettings, step: int) -> list[Sample]:
    """The problems of a step: the next ones of the task in an order drawn anew each time all have been seen."""
    first = step * settings.prompts
    epochs = {(first + place) // len(task.samples) for place in range(settings.prompts)}
    orders = {epoch: _order(len(task.samples), settings.seed, epoch) for epoch in epochs}
    places = (divmod(first + place, len(task.samples)) for place in range(settings.prompts))
    return [task.samples[orders[epoch][index]] for epoch, index in places]


def _order(count: int, seed: int, epoch: int) -> list[int]:
    return random.Random(f"{seed} {epoch}").sample(range(count), count)


def _seed(seed: int, step: int, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {index}".encode()).digest()[:4], "big")


def _rollout(problem: str, prompt: Tokens, completion: Completion) -> Rollout:
    if completion.finish == "error":
        raise RequestError(completion.error)
    entries = [*completion.logprobs, *([completion.ending] if completion.ending else [])]
    return Rollout(
        problem,
        prompt,
        tuple(entry.token for entry in entries),
        tuple(entry.logprob for entry in entries),
        completion.text,
        completion.finish == "stop",
    )
