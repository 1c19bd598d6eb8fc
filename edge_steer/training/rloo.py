"""RLOO: answers by llama.cpp, rewards, a gradient in PyTorch, Adam, and what is trained handed to llama.cpp again.

Takes a Trainee, a task and settings; gives what was trained. In a folder every step is logged, and a killed training
goes on where it was. It loads no model and writes no vector, adapter or model.
"""

import contextlib
import gzip
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_steer.adapters.change import Change, Weights
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.vector import SteeringVector
from edge_steer.storage.digests import digest
from edge_steer.storage.files import replacing
from edge_steer.storage.provenance import versions
from edge_steer.storage.records import Store
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.task import Task
from edge_steer.training.advantages import advantages, shuffled
from edge_steer.training.checks import check_agreement, check_memory, check_variance
from edge_steer.training.optimiser import Optimiser
from edge_steer.training.policy import DEFAULTS, GradientOptions, Policy
from edge_steer.training.records import FORMAT, LOG, STATE, Seconds, StepRecord, gone_without_a_step, resumed
from edge_steer.training.rollouts import Batch, Sampler, problems_of
from edge_steer.training.settings import VECTOR, Adapter, RlooSettings
from edge_steer.training.trainables import METHOD, Trainable, trainable
from edge_steer.training.trainee import Trainee, prepare

ROLLOUTS = "rollouts"
OnStep = Callable[[int, Callable[[], Change]], None]  # steps made, and what was trained by then if that is asked


def train_rloo(
    trainee: Trainee,
    task: Task,
    settings: RlooSettings,
    folder: str | Path,
    *,
    adapter: Adapter = VECTOR,
    gradient: GradientOptions = DEFAULTS,
    graders: Graders | None = None,
    on_step: OnStep | None = None,
    progress: Progress = SILENT,
) -> Change:
    """Train an adapter on a task whose reward is a right answer in the last box.

    folder: keeps the log, the state and the answers of each step; the same call goes on from there, and one with more
    steps too. adapter: what is trained; all weights are changed in the trainee's network itself. graders: those of a
    caller who trains again and again. on_step: called after each step. Errors: EdgeSteerError for a folder of another
    training, or answers of the first step that are all rewarded alike; ModelError for gradient weights that are not the
    engine's model, a model that llama.cpp cannot change so, too little memory.
    """
    folder = Path(folder)
    prepare(trainee.reference, adapter, gradient)
    trained = trainable(adapter, trainee.reference, settings.seed)
    policy = Policy(trainee.reference, trained, gradient)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(Store.open(folder / LOG, _header(trainee, task, settings, adapter)))
        with gone_without_a_step(log):
            if len(log.records) < settings.steps:
                _check(trainee, trained, policy, task, settings, gradient)
            optimiser = resumed(Optimiser(trained.parameters, settings), folder, log)
            sampler = Sampler(graders or stack.enter_context(Graders()), task, settings)
            steps = _Steps(trainee, sampler, policy, trained, optimiser, settings, folder, progress)
            while optimiser.step < settings.steps:
                log.append(steps.make().record())
                optimiser.save(folder / STATE)
                if on_step:
                    on_step(optimiser.step, trained.change)
    change = trained.change()
    if isinstance(change, SteeringVector):
        provenance = _provenance(trainee, task, settings, optimiser.step, folder / LOG)
        return replace(change, provenance=tuple(provenance))
    return change


def _check(
    trainee: Trainee,
    trained: Trainable,
    policy: Policy,
    task: Task,
    settings: RlooSettings,
    gradient: GradientOptions,
) -> None:
    """What is refused before the first step."""
    prompts = [trainee.engine.chat(task.messages(sample)) for sample in problems_of(task, settings, 0)]
    change = trained.change()
    if isinstance(change, Weights) and trainee.sync:
        trainee.sync.check(change)
    check_agreement(trainee, trained, policy, max(prompts, key=len))
    check_memory(policy, trained, prompts, settings.max_tokens, gradient)


@dataclass(frozen=True)
class _Steps:
    """All that a step needs."""

    trainee: Trainee
    sampler: Sampler
    policy: Policy
    trained: Trainable
    optimiser: Optimiser
    settings: RlooSettings
    folder: Path
    progress: Progress

    def make(self) -> StepRecord:
        """One step: answers, their gradient, an update. Errors: EdgeSteerError, as `train_rloo`."""
        step, settings = self.optimiser.step, self.settings
        began = time.perf_counter()
        engine, steering = self.trainee.answering(self.trained.change())
        swapped = time.perf_counter()
        batch = self.sampler.batch(step, engine, steering, self._tell)
        if step == 0:
            check_variance(batch)
        rewards = shuffled(batch.rewards, settings.seed + step) if settings.shuffle_rewards else batch.rewards
        sampled = time.perf_counter()
        figures = self.policy.gradient(batch.rollouts, advantages(rewards, settings.baseline).ravel(), settings)
        derived = time.perf_counter()
        update = self.optimiser.update()
        seconds = Seconds(
            swap=swapped - began,
            rollouts=batch.decoding_seconds,
            grading=batch.grading_seconds,
            gradient=derived - sampled,
            update=time.perf_counter() - derived,
        )
        (self.folder / ROLLOUTS).mkdir(exist_ok=True)
        _keep_rollouts(batch, self.folder / ROLLOUTS / f"step-{step + 1:05}.jsonl.gz")
        self._tell(0)
        return StepRecord.make(step + 1, batch, figures, update, self.trained.norms(), seconds)

    def _tell(self, answers: int) -> None:
        """How much of the training is done, counted in answers."""
        whole = self.settings.prompts * self.settings.generations
        self.progress("training, in answers", self.optimiser.step * whole + answers, self.settings.steps * whole)


def _header(trainee: Trainee, task: Task, settings: RlooSettings, adapter: Adapter) -> dict[str, Any]:
    """All that the steps depend on."""
    sampler, policy = trainee.engine.provenance, trainee.reference.provenance
    return {
        "format": FORMAT,
        "method": METHOD,
        "settings": settings.described(),
        **adapter.described(trainee.reference.model.block_count),
        "task": task.described(),
        "sampler": {"model": {**sampler.model}, "backend": {**sampler.backend}},
        "policy": {"model": {**policy.model}, "backend": {**policy.backend}},
        "versions": {**sampler.versions, **policy.versions, **versions("math-verify", "sympy")},
    }


def _provenance(trainee: Trainee, task: Task, settings: RlooSettings, steps: int, log: Path) -> list[str]:
    """The training record of the vector, in lines."""
    sampler, policy = trainee.engine.provenance.model, trainee.reference.provenance.model
    warmup = f"learning rate {settings.learning_rate:g} after {settings.warmup_steps} steps of warm-up"
    return [
        f"trained by RLOO: {steps} steps of {settings.prompts} problems x {settings.generations} answers, {warmup}, "
        f"{settings.loss} loss, {settings.baseline} baseline, kl {settings.kl:g}, seed {settings.seed}",
        f"rewards: {'shuffled, a control' if settings.shuffle_rewards else 'right in the last box'}; task {task.name}, "
        f"{len(task.samples)} problems {task.digest[:12]}",
        f"answers by {sampler['name']} {sampler.get('quant', '')} {sampler['digest']}",
        f"gradient weights {policy['name']} {policy['digest']}",
        f"log {digest(log)}",
    ]


def _keep_rollouts(batch: Batch, path: Path) -> None:
    """The answers of a step, a line of JSON each; the whole file or none."""
    with replacing(path) as temporary, gzip.open(temporary, "wt", encoding="utf-8") as file:
        for rollout in batch.rollouts:
            line = {
                "problem": rollout.problem,
                "text": rollout.text,
                "tokens": len(rollout.tokens),
                "finished": rollout.finished,
                "reward": rollout.reward,
            }
            file.write(json.dumps(line) + "\n")
