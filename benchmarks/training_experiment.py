"""A training on a real model, and what it is asked: the same model, folder and engine in each part of it.

Takes settings and tasks, gives vectors and rows, which it keeps in a folder, so that a stopped run goes on. It knows no
figure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from training_settings import OTHER_SAMPLINGS, RANDOM, Settings, Training, with_contrast

import edge_steer as es
from edge_steer.core.backend import EngineOptions
from edge_steer.core.vector import SteeringVector
from edge_steer.models.quantize import gguf_for, quantize
from edge_steer.tasks.rows import Row
from edge_steer.tasks.task import Task
from edge_steer.training.policy import GradientOptions

UNTRAINED, RANDOM_VECTOR = "untrained", "random, same norms"
EXPORTED = "as a control vector"  # llama.cpp's have no layer 0
DEV_SEED = 1  # other answers than those by which its problems were chosen
VOTE_SEED = 2  # other answers than those of the table

Cells = dict[str, list[Row]]
Steers = Mapping[str, SteeringVector | None]


@dataclass(frozen=True)
class Experiment:
    """All that is the same in each part of it. folder: of what is kept."""

    settings: Settings
    folder: Path
    options: EngineOptions
    progress: es.Progress

    @cached_property
    def source(self) -> Path:
        return gguf_for(self.settings.model, None, threads=self.options.threads)

    @cached_property
    def sampler(self) -> Path:
        """The file that answers while the vector is trained: the same weights, dequantised."""
        return self._quantized(self.settings.sampler)

    @cached_property
    def tested(self) -> Path:
        """The file that is tested."""
        return self._quantized(self.settings.test.quant) if self.settings.test.quant else self.source

    def _quantized(self, quant: str) -> Path:
        threads = self.options.threads
        return quantize(quantize(self.source, "F32", threads=threads), quant, threads=threads)

    def problems(self, task: Task) -> tuple[Task, Task | None]:
        """Those to train on, and of those chosen alike some that are not; None without a pool."""
        pool = self.settings.pool
        if pool is None:
            return task, None
        drawn = self.settings.asked(task.subset(pool.problems), self.settings.prompt, pool.samples)
        with es.load(self.sampler, options=self.options) as model:
            rows = es.evaluate(
                model, drawn, {"pool": None}, folder=self.folder / "pool", nll=False, progress=self.progress
            )
        chosen = with_contrast(drawn, rows["pool"])
        dev, training = chosen.split(pool.dev, len(chosen.samples) - pool.dev)
        return training, dev

    def vectors(self, task: Task) -> dict[str, SteeringVector]:
        """Of each training, that of the first seed first, and the random one."""
        vectors = {training.name: self._train(task, training) for training in self.settings.trainings()}
        if RANDOM in self.settings.controls:
            vectors[RANDOM_VECTOR] = next(iter(vectors.values())).random_like(0)
        return vectors

    def _train(self, task: Task, training: Training) -> SteeringVector:
        self.progress.note(f"training, {training.name}")
        return es.train(
            self.source, self.settings.asked(task, self.settings.prompt, 1), self.folder / training.folder,
            training.rloo, gguf=self.sampler, gradient=GradientOptions(batch_tokens=1024, dtype="bfloat16"),
            options=self.options, keep_every=5, progress=self.progress,
        )  # fmt: skip

    def on_test(self, task: Task, vectors: Mapping[str, SteeringVector]) -> Cells:
        """All under the prompt of the training, the first vector as it is exported too; the untrained model under each
        prompt."""
        settings, cells = self.settings, Cells()
        for prompt in settings.prompts:
            steers = {UNTRAINED: None} | ({**vectors, **exported(vectors)} if prompt == settings.prompt else {})
            cells |= self._answers("test", settings.asked(task, prompt, settings.test.samples), prompt, steers)
        return cells

    def on_test_by(self, name: str, task: Task, vectors: Mapping[str, SteeringVector]) -> Cells:
        """The untrained model and the first vector as it is exported, by another sampling."""
        settings, sampling = self.settings, OTHER_SAMPLINGS[name]
        asked = settings.asked(task, settings.prompt, settings.test.samples, sampling=sampling)
        return self._answers(name, asked, settings.prompt, {UNTRAINED: None, **exported(vectors)})

    def on_dev(self, task: Task, vectors: Mapping[str, SteeringVector]) -> Cells:
        """The untrained model and the first vector, under the prompt of the training."""
        settings = self.settings
        asked = settings.asked(task, settings.prompt, settings.test.samples, DEV_SEED)
        first = next(iter(vectors))
        return self._answers("dev", asked, settings.prompt, {UNTRAINED: None, first: vectors[first]})

    def voters(self, task: Task) -> list[Row]:
        """The answers of the untrained model that vote, from the file that answers in the training, which is faster."""
        settings, vote = self.settings, self.settings.vote
        if vote is None:
            return []
        asked = settings.asked(task.limit(vote.problems), settings.prompt, vote.samples, VOTE_SEED)
        return self._answers("vote", asked, settings.prompt, {UNTRAINED: None}, self.sampler)[UNTRAINED]

    def _answers(self, part: str, task: Task, prompt: str, steers: Steers, file: Path | None = None) -> Cells:
        """Rows of each; another prompt than the training's is named. part, prompt: folders. file: None is `tested`."""
        cells: Cells = {}
        with es.load(file or self.tested, options=self.options) as model:
            for method, steer in steers.items():
                own = self.folder / part / method / prompt
                rows = es.evaluate(model, task, {method: steer}, folder=own, nll=False, progress=self.progress)
                cells[method if prompt == self.settings.prompt else f"{method}, {prompt}"] = rows[method]
        return cells


def exported(vectors: Mapping[str, SteeringVector]) -> dict[str, SteeringVector]:
    """The first vector as `edge-steer export` writes it."""
    first = next(iter(vectors.values()))
    return {EXPORTED: first.at(first.layers[1:])}
