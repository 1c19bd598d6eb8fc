"""A vector trained by RLOO on a real model and GSM8K: its reward curve, and what it gains on test problems.

    python benchmarks/training_real.py benchmarks/settings/NAME.toml --train FILE --test FILE

trains on problems of few calculations in results/real/NAME/trained, chooses the prompt under which the untrained model
does best on problems of train, and asks test problems of the untrained model and of the vector, each under the prompt
of the training and under the best one. "vote" is the commonest of a problem's answers: more samples without training.
Writes docs/real/NAME.json and NAME.png and prints a table. A stopped run goes on; --steps makes another number of them.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
from training import boxed, ended, majority, share

import edge_steer as es
from edge_steer.core.backend import EngineOptions
from edge_steer.core.sampling import Sampling
from edge_steer.evaluation.figures import compare, figure_text, mean_text, summarise
from edge_steer.models.quantize import gguf_for, quantize
from edge_steer.storage.files import read_lines, write_json
from edge_steer.storage.provenance import RunningModel
from edge_steer.storage.toml import TomlTable
from edge_steer.tasks.rows import Row
from edge_steer.tasks.task import Task
from edge_steer.terminal.progress import progress_bar
from edge_steer.terminal.tables import print_table
from edge_steer.training.plots import plot_training
from edge_steer.training.policy import GradientOptions
from edge_steer.training.records import TrainingLog
from edge_steer.training.settings import RlooSettings

DOCS = Path("docs/real")
FIGURES = ("accuracy", "tokens", "steps", "density")
PARTS = ("swap", "rollouts", "grading", "gradient", "update")
ENDS = 5  # steps at the start and at the end


@dataclass(frozen=True)
class Settings:
    """model: a GGUF, as it is tested. calculations: the most of a problem's solution. sampler: the type that the model
    has while it is trained. prompts: by name; "{question}" stands for the problem. chosen_on, chosen_samples: problems
    of train that choose a prompt, and answers to each. draw, samples: the same of test, drawn by seed 0."""

    model: str
    calculations: int
    template: str
    stop: tuple[str, ...]
    sampler: str
    rloo: RlooSettings
    prompt: str
    prompts: Mapping[str, str]
    chosen_on: int
    chosen_samples: int
    draw: int
    samples: int

    def asked(self, task: Task, prompt: str, samples: int) -> Task:
        """A task under one of the prompts, several answers to each problem at temperature 1."""
        return task.with_settings(
            prompt=self.prompts[prompt],
            samples=samples,
            max_tokens=self.rloo.max_tokens,
            sampling=Sampling(temperature=1.0),
            stop=self.stop,
        )


def read_settings(path: Path) -> Settings:
    """Errors: EdgeSteerError for a key that is missing, unknown or of another type."""
    table = TomlTable(path, "settings of a training")
    train, prompts, choice, test = table.tables("train", "prompts", "choice", "test")
    rloo = RlooSettings(
        steps=train.whole("steps"),
        prompts=train.whole("prompts"),
        generations=train.whole("generations"),
        max_tokens=train.whole("max_tokens"),
        learning_rate=train.number("learning_rate"),
        warmup=train.whole("warmup"),
    )
    settings = Settings(
        model=table.text("model"),
        calculations=table.whole("calculations"),
        template=table.text("template"),
        stop=table.texts("stop"),
        sampler=train.text("sampler"),
        rloo=rloo,
        prompt=train.text("prompt"),
        prompts={name: prompts.text(name) for name in list(prompts.rest)},
        chosen_on=choice.whole("problems"),
        chosen_samples=choice.whole("samples"),
        draw=test.whole("draw"),
        samples=test.whole("samples"),
    )
    for part in (train, prompts, choice, test, table):
        part.finish()
    return settings


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
    source = gguf_for(settings.model, None, threads=threads)
    training, held_out = (easy(file, folder, settings) for file in (train, test))
    held_out = held_out.subset(settings.draw)
    with progress_bar() as progress:
        progress.note("training")
        es.train(
            source, settings.asked(training, settings.prompt, 1), folder / "trained",
            replace(settings.rloo, steps=steps or settings.rloo.steps),
            gguf=quantize(quantize(source, "F32", threads=threads), settings.sampler, threads=threads),
            gradient=GradientOptions(batch_tokens=1024, dtype="bfloat16"), options=options, keep_every=5,
            progress=progress,
        )  # fmt: skip
        with es.load(source, options=options) as model:
            choice = untrained(model, training.subset(settings.chosen_on), settings, folder / "choice", progress)
            best = max(choice, key=lambda name: summarise(choice[name]).accuracy)
            vector = es.load_vector(folder / "trained" / "vector.safetensors")
            asked = {name: settings.asked(held_out, name, settings.samples) for name in (settings.prompt, best)}
            cells = {
                f"{method}, {name}": es.evaluate(
                    model, task, {method: steer}, folder=folder / "test" / method / name, nll=False, progress=progress
                )[method]
                for name, task in asked.items()
                for method, steer in {"untrained": None, "vector": vector}.items()
            }
    log = TrainingLog.read(folder / "trained")
    before = cells[f"untrained, {settings.prompt}"]
    write_json(
        DOCS / f"{path.stem}.json",
        {
            "settings": asdict(settings),
            "training": cost(log),
            "choice": {name: figures(rows, rows) for name, rows in choice.items()},
            "test": {name: figures(rows, before) for name, rows in cells.items()},
        },
    )
    plot_training(log, DOCS / f"{path.stem}.png")
    show(cells, before)


def easy(file: Path, folder: Path, settings: Settings) -> Task:
    """The problems of a file of GSM8K whose solution has so few calculations."""
    path = folder / file.name
    lines = [line for line in read_lines(file, "problems of GSM8K") if 0 < line.count("<<") <= settings.calculations]
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return es.load_task(f"gsm8k={path}", protocol="densesteer")


def untrained(
    model: RunningModel, task: Task, settings: Settings, folder: Path, progress: es.Progress
) -> dict[str, list[Row]]:
    """Rows of the untrained model under each prompt."""
    rows: dict[str, list[Row]] = {}
    for name in settings.prompts:
        asked = settings.asked(task, name, settings.chosen_samples)
        rows |= es.evaluate(model, asked, {name: None}, folder=folder / name, nll=False, progress=progress)
    return rows


def cost(log: TrainingLog) -> dict[str, Any]:
    """Tokens and seconds of all steps, shares at the start and at the end, and the log."""
    answers = log.header["settings"]["prompts"] * log.header["settings"]["generations"]
    ends = log.steps[:ENDS], log.steps[-ENDS:]
    return {
        "steps": len(log.steps),
        "answers": answers * len(log.steps),
        "tokens": round(sum(step.length * answers for step in log.steps)),
        "seconds": {part: sum(getattr(step.seconds, part) for step in log.steps) for part in PARTS},
        "reward": [statistics.fmean(step.reward for step in part) for part in ends],
        "boxed": [statistics.fmean(step.boxed for step in part) for part in ends],
        "log": [step.record() for step in log.steps],
    }


def figures(rows: Sequence[Row], before: Sequence[Row]) -> dict[str, Any]:
    """Of one cell: means with intervals over problems; the gain is paired by problem."""
    known = {name: asdict(figure) for name, figure in summarise(rows).figures.items() if name in FIGURES}
    shares = {"vote": majority(rows), "boxed": share(rows, boxed), "finished": share(rows, ended)}
    return known | {"gain": asdict(compare(before, rows).differences["accuracy"])} | shares


def show(cells: Mapping[str, Sequence[Row]], before: Sequence[Row]) -> None:
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
    print_table(["", "accuracy", "gain", "vote", "boxed", "finished", "tokens", "steps", "density"], table)


if __name__ == "__main__":
    main()
