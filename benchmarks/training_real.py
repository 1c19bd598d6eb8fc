"""A vector trained by RLOO on a real model and GSM8K: its reward curve, and what it gains on test problems.

    python benchmarks/training_real.py benchmarks/settings/NAME.toml --train FILE --test FILE

trains in results/real/NAME/trained on problems of few calculations; where the settings have a pool, on those that the
untrained model answers both rightly and wrongly. Then it asks test problems of the vector under the prompt of its
training and of the untrained model under every prompt, and asks both problems of train that were chosen alike and not
trained on. "vote" is the commonest of a problem's answers: more samples without training. Writes docs/real/NAME.json
and NAME.png and prints tables. A stopped run goes on; --steps makes another number of them.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import click
from training import boxed, ended, majority, share
from training_settings import Settings, easy_problems, read_settings, unseen_problems, with_contrast

import edge_steer as es
from edge_steer.core.backend import EngineOptions
from edge_steer.core.vector import SteeringVector
from edge_steer.evaluation.figures import compare, figure_text, mean_text, summarise
from edge_steer.models.quantize import gguf_for, quantize
from edge_steer.storage.files import write_json
from edge_steer.tasks.rows import Row
from edge_steer.tasks.task import Task
from edge_steer.terminal.progress import progress_bar
from edge_steer.terminal.tables import print_table
from edge_steer.training.plots import plot_training
from edge_steer.training.policy import GradientOptions
from edge_steer.training.records import TrainingLog

DOCS = Path("docs/real")
FIGURES = ("accuracy", "tokens", "steps", "density")
PARTS = ("swap", "rollouts", "grading", "gradient", "update")
ENDS = 5  # steps at the start and at the end
UNTRAINED, VECTOR, EXPORTED = "untrained", "vector", "as a control vector"  # which has no layer 0
DEV_SEED = 1  # other answers than those by which its problems were chosen

Cells = dict[str, list[Row]]


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
        threads = self.options.threads
        return quantize(quantize(self.source, "F32", threads=threads), self.settings.sampler, threads=threads)

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

    def train(self, task: Task, steps: int | None) -> SteeringVector:
        """steps: None is the number of the settings."""
        self.progress.note("training")
        return es.train(
            self.source, self.settings.asked(task, self.settings.prompt, 1), self.folder / "trained",
            replace(self.settings.rloo, steps=steps or self.settings.rloo.steps), gguf=self.sampler,
            gradient=GradientOptions(batch_tokens=1024, dtype="bfloat16"), options=self.options, keep_every=5,
            progress=self.progress,
        )  # fmt: skip

    def on_test(self, task: Task, vector: SteeringVector) -> Cells:
        """The vector, whole and as it is exported, under the prompt of its training; the untrained model under each."""
        settings = self.settings
        task, cells = unseen_problems(task, settings.test), Cells()
        for prompt in settings.prompts:
            trained = {VECTOR: vector, EXPORTED: vector.at(vector.layers[1:])}
            steers = {UNTRAINED: None} | (trained if prompt == settings.prompt else {})
            cells |= self._answers("test", settings.asked(task, prompt, settings.test.samples), prompt, steers)
        return cells

    def on_dev(self, task: Task, vector: SteeringVector) -> Cells:
        """Both under the prompt of the training."""
        settings = self.settings
        asked = settings.asked(task, settings.prompt, settings.test.samples, DEV_SEED)
        return self._answers("dev", asked, settings.prompt, {UNTRAINED: None, VECTOR: vector})

    def _answers(self, part: str, task: Task, prompt: str, steers: Mapping[str, SteeringVector | None]) -> Cells:
        """Rows of each, from the file itself. part, prompt: names of folders."""
        cells: Cells = {}
        with es.load(self.source, options=self.options) as model:
            for method, steer in steers.items():
                own = self.folder / part / method / prompt
                rows = es.evaluate(model, task, {method: steer}, folder=own, nll=False, progress=self.progress)
                cells[f"{method}, {prompt}"] = rows[method]
        return cells


@click.command(help=__doc__)
@click.argument("path", metavar="SETTINGS", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--train", required=True, type=click.Path(path_type=Path), help="GSM8K's file of training problems.")
@click.option("--test", required=True, type=click.Path(path_type=Path), help="Its file of test problems.")
@click.option("--steps", type=click.IntRange(1), help="In place of the settings'.")
@click.option("--threads", default=1, show_default=True)
def main(path: Path, train: Path, test: Path, steps: int | None, threads: int) -> None:
    settings, folder = read_settings(path), Path("results/real") / path.stem
    options = EngineOptions(
        threads=threads, parallel=settings.rloo.prompts * settings.rloo.generations, template=settings.template
    )
    with progress_bar() as progress:
        experiment = Experiment(settings, folder, options, progress)
        training, dev = experiment.problems(easy_problems(train, folder, settings))
        vector = experiment.train(training, steps)
        parts = {"test": experiment.on_test(easy_problems(test, folder, settings), vector)}
        if dev:
            parts["dev"] = experiment.on_dev(dev, vector)
    log = TrainingLog.read(folder / "trained")
    summary = {"settings": asdict(settings), "problems": len(training.samples), "training": cost(log)}
    for part, cells in parts.items():
        before = cells[f"{UNTRAINED}, {settings.prompt}"]
        summary[part] = {name: figures(rows, before) for name, rows in cells.items()}
        show(part, cells, before)
    write_json(DOCS / f"{path.stem}.json", summary)
    plot_training(log, DOCS / f"{path.stem}.png")


def cost(log: TrainingLog) -> dict[str, Any]:
    """Tokens of all steps, a step's seconds in the median, shares at the start and at the end, and the log."""
    answers = log.header["settings"]["prompts"] * log.header["settings"]["generations"]
    ends = log.steps[:ENDS], log.steps[-ENDS:]
    return {
        "steps": len(log.steps),
        "answers": answers * len(log.steps),
        "tokens": round(sum(step.length * answers for step in log.steps)),
        "seconds": {part: statistics.median(getattr(step.seconds, part) for step in log.steps) for part in PARTS},
        "reward": [statistics.fmean(step.reward for step in part) for part in ends],
        "boxed": [statistics.fmean(step.boxed for step in part) for part in ends],
        "log": [step.record() for step in log.steps],
    }


def figures(rows: Sequence[Row], before: Sequence[Row]) -> dict[str, Any]:
    """Of one cell: means with intervals over problems; the gain is paired by problem."""
    known = {name: asdict(figure) for name, figure in summarise(rows).figures.items() if name in FIGURES}
    shares = {"vote": majority(rows), "boxed": share(rows, boxed), "finished": share(rows, ended)}
    return known | {"gain": asdict(compare(before, rows).differences["accuracy"])} | shares


def show(title: str, cells: Mapping[str, Sequence[Row]], before: Sequence[Row]) -> None:
    table = []
    for name, rows in cells.items():
        known, gain = summarise(rows).figures, compare(before, rows).differences["accuracy"]
        table.append(
            [
                name,
                figure_text("accuracy", known["accuracy"]),
                figure_text("accuracy", gain, signed=True),
                *(f"{value:.1%}" for value in (majority(rows), share(rows, boxed), share(rows, ended))),
                *(mean_text(figure, known[figure]) for figure in FIGURES[1:]),
            ]
        )
    print_table([title, "accuracy", "gain", "vote", "boxed", "finished", "tokens", "steps", "density"], table)


if __name__ == "__main__":
    main()
