"""The log of a training: a record a step, and what a reader makes of many.

Takes batches, figures and updates, gives records as they stand in log.jsonl. It runs nothing.
"""

import contextlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from edge_steer.core.errors import EdgeSteerError
from edge_steer.storage.records import Store, read
from edge_steer.training.advantages import rewarded_alike
from edge_steer.training.optimiser import Optimiser, Update
from edge_steer.training.policy import Gap, GradientFigures
from edge_steer.training.rollouts import Batch

LOG, STATE = "log.jsonl", "state.npz"
FORMAT = "edge-steer training 1"
SMOOTHED = 10  # steps that a smoothed figure is the mean of


@dataclass(frozen=True)
class Seconds:
    """What the parts of a step took. swap: to hand what is trained to llama.cpp. grading: beyond the answers."""

    swap: float
    rollouts: float
    grading: float
    gradient: float
    update: float

    @property
    def total(self) -> float:
        return self.swap + self.rollouts + self.grading + self.gradient + self.update


@dataclass(frozen=True)
class StepRecord:
    """One step. The answers are those of what was trained before it, the norms those after it.

    reward: mean of the batch. boxed, finished: shares of answers with a box, and that an end token ended. length: mean
    tokens of an answer. surprise: mean -log p of a token under the engine, nats, which is its entropy on average.
    alike: share of problems whose answers were all rewarded alike. kl, gap: see GradientFigures. norms: by layer, as
    Trainable has them. seconds: of each part; not compared.
    """

    step: int
    reward: float
    boxed: float
    finished: float
    length: float
    surprise: float
    alike: float
    loss: float
    gradient_norm: float
    clipped: bool
    rate: float
    kl: float | None
    gap: Gap | None
    norms: Mapping[str, float]
    seconds: Seconds = field(compare=False)

    @classmethod
    def make(
        cls,
        step: int,
        batch: Batch,
        figures: GradientFigures,
        update: Update,
        norms: Mapping[str, float],
        seconds: Seconds,
    ) -> Self:
        """norms: after the step."""
        rollouts = batch.rollouts
        surprise = -sum(sum(rollout.logprobs) for rollout in rollouts) / batch.tokens
        return cls(
            step=step,
            reward=float(batch.rewards.mean()),
            boxed=statistics.fmean(rollout.boxed for rollout in rollouts),
            finished=statistics.fmean(rollout.finished for rollout in rollouts),
            length=batch.tokens / len(rollouts),
            surprise=surprise,
            alike=rewarded_alike(batch.rewards),
            loss=figures.loss,
            gradient_norm=update.gradient_norm,
            clipped=update.clipped,
            rate=update.rate,
            kl=figures.kl,
            gap=figures.gap,
            norms=norms,
            seconds=seconds,
        )

    def record(self) -> dict[str, Any]:
        """What a store keeps."""
        return asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `record`. Errors: EdgeSteerError for anything else."""
        try:
            gap = Gap(**record["gap"]) if record["gap"] else None
            return cls(**{**record, "gap": gap, "seconds": Seconds(**record["seconds"])})
        except (TypeError, KeyError) as error:
            raise EdgeSteerError(f"{str(dict(record))[:80]} is no step of a training: {error}") from None


@dataclass(frozen=True)
class TrainingLog:
    """What a folder of a training tells. header: all that its steps depend on."""

    header: Mapping[str, Any]
    steps: tuple[StepRecord, ...]

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Of a training that may be going on. Errors: EdgeSteerError for a folder without one."""
        header, records = read(Path(folder) / LOG)
        if header.get("format") != FORMAT:
            raise EdgeSteerError(f"{Path(folder) / LOG} is no log of a training that this edge-steer reads")
        return cls(header, tuple(map(StepRecord.of, records)))

    @property
    def title(self) -> str:
        """Model, what is trained, task and settings in one line."""
        settings, kind = self.header["settings"], self.header.get("adapter", "vector")
        rank = f" of rank {self.header['rank']}" if "rank" in self.header else ""
        return (
            f"{self.header['sampler']['model']['name']}, {kind}{rank}, {self.header['task']['name']}: "
            f"{settings['prompts']} x {settings['generations']} answers a step, learning rate "
            f"{settings['learning_rate']:g}"
        )


def resumed(optimiser: Optimiser, folder: Path, log: Store) -> Optimiser:
    """The optimiser with the state in the folder, if there is one; a step that is logged behind it is made again."""
    if (folder / STATE).exists():
        optimiser.restore(folder / STATE)
    if log.records[optimiser.step :]:
        log.replace(log.records[: optimiser.step])
    return optimiser


@contextlib.contextmanager
def gone_without_a_step(log: Store) -> Iterator[None]:
    """A training that is refused before its first step leaves no log."""
    try:
        yield
    finally:
        if not log.records:
            log.path.unlink(missing_ok=True)


def smoothed(values: Sequence[float], width: int = SMOOTHED) -> list[float]:
    """At each step the mean of the last `width` values up to it."""
    return [statistics.fmean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]
