"""RLOO on one vector a block: answers by llama.cpp, rewards, a gradient in PyTorch, Adam, the vector swapped in place.

Takes a running engine, the same model in PyTorch, a task and settings; gives the trained SteeringVector. In a folder
every step is logged, and a killed training goes on where it was. It loads no model and writes no vector file.
"""

import contextlib
import gzip
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_steer.core.errors import ModelError, first_line
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.vector import SteeringVector
from edge_steer.storage.digests import digest
from edge_steer.storage.files import replacing
from edge_steer.storage.provenance import RunningModel, versions
from edge_steer.storage.records import Store
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.task import Task
from edge_steer.training.adapter import METHOD, VectorAdapter
from edge_steer.training.advantages import advantages, shuffled
from edge_steer.training.checks import check_agreement, check_memory, check_variance
from edge_steer.training.optimiser import Optimiser
from edge_steer.training.policy import DEFAULTS, GradientOptions, Policy
from edge_steer.training.records import FORMAT, LOG, Seconds, StepRecord
from edge_steer.training.rollouts import Batch, Sampler, problems_of
from edge_steer.training.settings import RlooSettings

if TYPE_CHECKING:
    import torch

    from edge_steer.reference.model import Reference

STATE = "state.npz"
ROLLOUTS = "rollouts"
OnVector = Callable[[int, SteeringVector], None]  # steps made, the vector by then


@dataclass(frozen=True)
class Trainee:
    """A model in both runtimes: `engine` answers in llama.cpp, `reference` has the gradient in PyTorch."""

    engine: RunningModel
    reference: "Reference"


def train_vector(
    trainee: Trainee,
    task: Task,
    settings: RlooSettings,
    folder: str | Path,
    *,
    layers: tuple[int, ...] | None = None,
    gradient: GradientOptions = DEFAULTS,
    graders: Graders | None = None,
    on_vector: OnVector | None = None,
    progress: Progress = SILENT,
) -> SteeringVector:
    """Train one vector a block on a task whose reward is a right answer in the last box.

    folder: keeps the log, the state and the answers of each step; the same call goes on from there, and one with more
    steps too. layers: None is every block, layer 0 included. graders: those of a caller who trains again and again.
    on_vector: called after each step. Errors: EdgeSteerError for a folder of another training, or answers of the first
    step that are all rewarded alike; ModelError for gradient weights that are not the engine's model, a model that
    llama.cpp cannot steer, too little memory.
    """
    folder = Path(folder)
    adapter = VectorAdapter(trainee.reference.model, layers, _on_device(trainee.reference, gradient.device))
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(_open_log(folder / LOG, _header(trainee, task, settings, adapter.layers)))
        optimiser = _resumed(adapter, settings, folder, log)
        if optimiser.step < settings.steps:
            policy = Policy(trainee.reference, adapter, gradient)
            prompts = [trainee.engine.chat(task.messages(one)) for one in problems_of(task, settings, optimiser.step)]
            check_agreement(trainee.engine, trainee.reference, adapter.layers, prompts[0])
            check_memory(policy, prompts, settings.max_tokens, gradient)
            sampler = Sampler(trainee.engine, graders or stack.enter_context(Graders()), task, settings)
            steps = _Steps(sampler, policy, adapter, optimiser, settings, folder, progress)
            while optimiser.step < settings.steps:
                log.append(steps.make().record())
                optimiser.save(folder / STATE)
                if on_vector:
                    on_vector(optimiser.step, adapter.vector())
    return adapter.vector(_provenance(trainee, task, settings, optimiser.step, folder / LOG))


@contextlib.contextmanager
def _open_log(path: Path, header: dict[str, Any]) -> Iterator[Store]:
    """The log of a folder. A training that is refused before its first step leaves none."""
    with Store.open(path, header) as log:
        try:
            yield log
        finally:
            if not log.records:
                path.unlink(missing_ok=True)


def _resumed(adapter: VectorAdapter, settings: RlooSettings, folder: Path, log: Store) -> Optimiser:
    """The optimiser with the state in the folder, if there is one; a step that is logged behind it is made again."""
    optimiser = Optimiser(adapter, settings)
    if (folder / STATE).exists():
        optimiser.restore(folder / STATE)
    if log.records[optimiser.step :]:
        log.replace(log.records[: optimiser.step])
    return optimiser


@dataclass(frozen=True)
class _Steps:
    """All that a step needs."""

    sampler: Sampler
    policy: Policy
    adapter: VectorAdapter
    optimiser: Optimiser
    settings: RlooSettings
    folder: Path
    progress: Progress

    def make(self) -> StepRecord:
        """One step: answers, their gradient, an update. Errors: EdgeSteerError, as `train_vector`."""
        step, settings = self.optimiser.step, self.settings
        began = time.perf_counter()
        steering = self.adapter.steering()
        swapped = time.perf_counter()
        batch = self.sampler.batch(step, steering, self._tell)
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
        record = StepRecord.make(step + 1, batch, figures, update, self.adapter.vector(), seconds)
        self._tell(0)
        return record

    def _tell(self, answers: int) -> None:
        """How much of the training is done, counted in answers."""
        whole = self.settings.prompts * self.settings.generations
        self.progress("training, in answers", self.optimiser.step * whole + answers, self.settings.steps * whole)


def _on_device(reference: "Reference", device: str | None) -> "torch.device":
    """Move the network there; where it is then. Errors: ModelError for a device that PyTorch has not."""
    if device is not None:
        try:
            reference.network.to(device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"PyTorch cannot use the device {device!r}: {first_line(error)}") from None
    where: torch.device = reference.network.device
    return where


def _header(trainee: Trainee, task: Task, settings: RlooSettings, layers: tuple[int, ...]) -> dict[str, Any]:
    """All that the steps depend on."""
    sampler, policy = trainee.engine.provenance, trainee.reference.provenance
    return {
        "format": FORMAT,
        "method": METHOD,
        "settings": settings.described(),
        "layers": list(layers),
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
