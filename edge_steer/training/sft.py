"""Supervised fine-tuning on teachers' solutions: the distillation that DenseSteer is compared with.

Takes files of solutions, mixed by shares, and a model in PyTorch; gives what was trained, and how likely the model
held solutions of each teacher before and after. In a folder every step is logged, and a killed training goes on.
Source: "Small Models Struggle to Learn from Strong Reasoners", arXiv 2502.12143. It loads no model.
"""

import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_steer.adapters.change import Change
from edge_steer.core.backend import Message
from edge_steer.core.errors import EdgeSteerError, ModelError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.vector import SteeringVector
from edge_steer.storage.files import read_lines, read_text, write_json
from edge_steer.storage.provenance import key
from edge_steer.storage.records import Store
from edge_steer.tasks.grading import Graders
from edge_steer.training.checks import check_memory
from edge_steer.training.optimiser import Optimiser
from edge_steer.training.policy import DEFAULTS, GradientOptions, Policy
from edge_steer.training.records import LOG, STATE, gone_without_a_step, resumed
from edge_steer.training.rollouts import Rollout
from edge_steer.training.settings import Adapter, Cosine, RlooSettings, SftSettings
from edge_steer.training.trainables import trainable
from edge_steer.training.trainee import prepare

if TYPE_CHECKING:
    from edge_steer.reference.model import Reference

METHOD, FORMAT = "sft", "edge-steer sft 1"
LIKELIHOOD = RlooSettings(importance_cap=0.0)  # with an advantage of 1 the loss is the mean NLL of a token
LEARNABILITY = "learnability.json"


@dataclass(frozen=True)
class Demonstration:
    """A teacher's solution of a problem, as the user asks it."""

    teacher: str
    prompt: str
    solution: str
    system: str | None = None

    @property
    def messages(self) -> list[Message]:
        asked: list[Message] = [{"role": "user", "content": self.prompt}]
        return [{"role": "system", "content": self.system}, *asked] if self.system else asked


@dataclass(frozen=True)
class SftResult:
    """before, after: mean NLL of a token of each teacher's held-out solutions, in nats."""

    change: Change
    before: Mapping[str, float]
    after: Mapping[str, float]


def read_demonstrations(teacher: str, path: str | Path, graders: Graders | None = None) -> list[Demonstration]:
    """A teacher's solutions: a line of JSON each, or a file of `pairs generate`; wrong and unfinished ones left out.

    A line has "question" (or "prompt", as it is asked) and "solution" (or "text"); of one with "correct" that counts,
    and with `graders` one with an "answer" is graded. Errors: EdgeSteerError for another file, or no right solution.
    """
    demonstrations = []
    for number, line in enumerate(read_lines(path, "solutions, a line of JSON each"), start=1):
        try:
            row: dict[str, Any] = json.loads(line)
            if "format" in row or "chosen" in row:
                continue
            solution = str(row.get("solution") or row["text"])
            prompt = str(row.get("prompt") or row["question"])
        except (ValueError, KeyError, AttributeError, TypeError):
            raise EdgeSteerError(f"{path}: line {number} has no question and solution") from None
        right = row.get("correct")
        if right is None and graders and "answer" in row:
            right = graders.submit(solution, str(row["answer"]), "math", "boxed").result().correct
        if right is not False and row.get("finish", "stop") == "stop":
            demonstrations.append(Demonstration(teacher, prompt, solution, row.get("system")))
    if not demonstrations:
        raise EdgeSteerError(f"{path} has no right solution to learn from")
    return demonstrations


def mix(
    by_teacher: Mapping[str, Sequence[Demonstration]], shares: Mapping[str, float], seed: int
) -> list[Demonstration]:
    """As many solutions as there are in these shares, drawn by the seed; none comes twice.

    Errors: EdgeSteerError for a teacher without solutions, or shares that are not positive.
    """
    if unknown := shares.keys() ^ by_teacher.keys():
        raise EdgeSteerError(f"a share and solutions are needed of each teacher; {min(unknown)} has one alone")
    if any(share <= 0 for share in shares.values()):
        raise EdgeSteerError("a share is not more than 0; leave that teacher out")
    whole = sum(shares.values())
    total = min(len(by_teacher[teacher]) * whole / share for teacher, share in shares.items())
    generator = random.Random(seed)
    mixed = [
        one
        for teacher, share in shares.items()
        for one in generator.sample(list(by_teacher[teacher]), int(total * share / whole + 1e-9))
    ]
    generator.shuffle(mixed)
    return mixed


def train_sft(
    reference: "Reference",
    demonstrations: Sequence[Demonstration],
    settings: SftSettings,
    folder: str | Path,
    *,
    adapter: Adapter,
    gradient: GradientOptions = DEFAULTS,
    progress: Progress = SILENT,
) -> SftResult:
    """Train an adapter on solutions; the loss is on the solution alone, its end token included.

    folder: keeps the log, the state and learnability.json; the same call goes on from there. adapter: all weights are
    changed in the reference's network itself. Errors: EdgeSteerError for a folder of another training, or too few
    solutions; ModelError for a chat template that shows no end of an answer, or too little memory.
    """
    folder = Path(folder)
    rows = [row for one in demonstrations if (row := _row(reference, one)).length < settings.max_tokens]
    held_out, rows = _held_out(rows, settings.held_out)
    prepare(reference, adapter, gradient)
    trained = trainable(adapter, reference, settings.seed)
    policy = Policy(reference, trained, gradient)
    longest = max(rows, key=lambda row: row.length)
    check_memory(policy, trained, [longest.prompt], len(longest.tokens), gradient)
    batches = _batches(len(rows), settings)
    header = _header(reference, demonstrations, settings, adapter)
    with Store.open(folder / LOG, header) as log, gone_without_a_step(log):
        before = _nll(policy, held_out, trained=False)
        schedule = Cosine(settings.learning_rate, len(batches), settings.clip)
        optimiser = resumed(Optimiser(trained.parameters, schedule), folder, log)
        while optimiser.step < len(batches):
            began, batch = time.perf_counter(), [rows[place] for place in batches[optimiser.step]]
            figures = policy.gradient(batch, np.ones(len(batch)), LIKELIHOOD)
            update = optimiser.update()
            record = {"step": optimiser.step, "loss": figures.loss, **asdict(update)}
            log.append(record | {"seconds": time.perf_counter() - began})
            optimiser.save(folder / STATE)
            progress("training, in steps", optimiser.step, len(batches))
    after = _nll(policy, held_out)
    write_json(folder / LEARNABILITY, {"before": before, "after": after})
    change = trained.change()
    return SftResult(replace(change, method=METHOD) if isinstance(change, SteeringVector) else change, before, after)


def read_learnability(folder: str | Path) -> tuple[dict[str, float], dict[str, float]]:
    """By teacher the mean NLL of a token before a training and after it. Errors: EdgeSteerError for another folder."""
    measured = json.loads(read_text(Path(folder) / LEARNABILITY, "the likelihoods of a training on solutions"))
    return measured["before"], measured["after"]


def _row(reference: "Reference", one: Demonstration) -> Rollout:
    """As the chat template tells it, to the end token."""
    prompt = reference.chat(one.messages)
    whole = reference.chat([*one.messages, {"role": "assistant", "content": one.solution}])
    end = next((place for place in range(len(prompt), len(whole)) if whole[place] in reference.end_tokens), None)
    if whole[: len(prompt)] != prompt or end is None:
        raise ModelError(f"the chat template of {reference.model.name} does not show where an answer begins and ends")
    tokens = whole[len(prompt) : end + 1]
    return Rollout(one.teacher, prompt, tokens, (0.0,) * len(tokens), one.solution, finished=True)


def _held_out(rows: Sequence[Rollout], count: int) -> tuple[list[Rollout], list[Rollout]]:
    """The last `count` rows of each teacher, and the others."""
    held_out: dict[str, list[Rollout]] = {}
    rest: list[Rollout] = []
    for row in reversed(rows):
        of_teacher = held_out.setdefault(row.problem, [])
        (of_teacher if len(of_teacher) < count else rest).append(row)
    if not rest:
        raise EdgeSteerError(f"{len(rows)} solutions, of which {count} of each teacher are held out, leave none")
    return [row for of_teacher in held_out.values() for row in of_teacher], rest


def _batches(count: int, settings: SftSettings) -> list[list[int]]:
    """The rows of each step, every epoch in an order of its own."""
    batches = []
    for epoch in range(settings.epochs):
        order = random.Random(f"{settings.seed} {epoch}").sample(range(count), count)
        batches += [order[first : first + settings.batch] for first in range(0, count, settings.batch)]
    return batches


def _nll(policy: Policy, rows: Sequence[Rollout], *, trained: bool = True) -> dict[str, float]:
    """By teacher the mean over solutions of the mean NLL of a token."""
    by_teacher: dict[str, list[float]] = {}
    for row, logprobs in zip(rows, policy.logprobs(rows, trained=trained), strict=True):
        by_teacher.setdefault(row.problem, []).append(-float(logprobs.mean()))
    return {teacher: statistics.fmean(values) for teacher, values in sorted(by_teacher.items())}


def _header(
    reference: "Reference", demonstrations: Sequence[Demonstration], settings: SftSettings, adapter: Adapter
) -> dict[str, Any]:
    """All that the steps depend on."""
    provenance = reference.provenance
    return {
        "format": FORMAT,
        "method": METHOD,
        "settings": asdict(settings),
        **adapter.described(reference.model.block_count),
        "solutions": {"count": len(demonstrations), "digest": key([asdict(one) for one in demonstrations], 64)},
        "policy": {"model": {**provenance.model}, "backend": {**provenance.backend}},
        "versions": dict(provenance.versions),
    }
