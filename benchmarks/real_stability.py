"""How stable a shipped vector of a real model is: temperature, draws of pairs, who wrote them, the choice on dev.

    python benchmarks/real_stability.py benchmarks/settings/NAME-stability.toml \\
        --train gsm8k=FILE --test gsm8k=FILE --rewrites FILE

Needs what real_experiment.py left in results/real. Every answer is a row on disk, and a stopped run goes on; then
docs/real/NAME-stability.json and a figure are written, and the tables of docs/real.md printed. The settings say which
of these parts are run:

    temperature   the vector against the unsteered model, several samples a problem
    draws         vectors of N written solutions of training problems against the model's own answers, from disjoint
                  draws, each tested where the shipped one is: how far its effect depends on the pairs. Beside them
                  vectors whose positives are of other origin, at the same place and norm
    choice        the dev problems drawn again with replacement: which cell is chosen, what it does on the rest
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import stability_report
from real_experiment import POOLING
from real_report import DOCS, SWEPT
from real_settings import Problems, read_problems
from stability_choice import resampled_choices
from stability_settings import Choice, Draws, Stability, Temperatures, read_stability

from edge_steer.core.backend import EngineOptions, Request
from edge_steer.core.progress import Progress
from edge_steer.core.sampling import Sampling
from edge_steer.core.stats import cosine
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.evaluation.evaluate import evaluate
from edge_steer.evaluation.figures import compare, summarise
from edge_steer.evaluation.sweep_cells import sweep_cells
from edge_steer.evaluation.sweep_results import DEV, FORMAT
from edge_steer.evaluation.units import read_rows
from edge_steer.extraction.extract import PairStates, record, reduce
from edge_steer.llama.engine import Engine
from edge_steer.models.load import load
from edge_steer.models.quantize import quantize
from edge_steer.pairs.pair import Pair, read_pairs, write_pairs
from edge_steer.storage.files import write_json
from edge_steer.tasks.rows import Method, Row
from edge_steer.tasks.task import Task
from edge_steer.terminal.progress import progress_bar
from edge_steer.vectors.read import load as load_vector

STRENGTH = 0.1  # of the residual norm, as the shipped vector's
RANDOM = 5  # vectors of the same norm
OTHERS = ("terse", "dense", "teacher", "line-breaks")  # vectors of the experiment
CALCULATION = re.compile(r"<<.*?>>")  # notes in the written solutions


@dataclass(frozen=True)
class Run:
    """What is asked, the running model, and where the experiment's results lie."""

    asked: Stability
    model: Engine
    problems: Problems
    results: Path
    progress: Progress

    @property
    def folder(self) -> Path:
        return self.results / "stability"

    @property
    def layer(self) -> int:
        assert self.asked.vector.tuning
        return self.asked.vector.tuning.layers[0]

    def task(self, problems: int) -> Task:
        test = self.problems.test
        return replace(test, samples=test.samples[self.asked.behind :][:problems])

    def rows(self, task: Task, methods: Mapping[str, Any], name: str) -> dict[str, list[Row]]:
        return evaluate(self.model, task, methods, nll=False, folder=self.folder / name, progress=self.progress)

    def vector(self, kind: str) -> SteeringVector:
        """One of the experiment's, in residual units."""
        return load_vector(self.results / f"{kind}.safetensors")


def compare_temperatures(run: Run, asked: Temperatures) -> dict[str, Any]:
    """The vector against the unsteered model on the same problems at each temperature."""
    methods = {"unsteered": None, "steered": run.asked.vector}
    figures = {}
    for temperature in asked.values:
        task = run.task(asked.problems).with_settings(
            samples=asked.samples if temperature else 1, sampling=Sampling(temperature=temperature)
        )
        rows = run.rows(task, methods, f"temperature-{temperature:g}")
        figures[f"{temperature:g}"] = {
            **{name: asdict(summarise(some)) for name, some in rows.items()},
            "change": asdict(compare(rows["unsteered"], rows["steered"])),
        }
    return figures


def written_pairs(run: Run, pool: int, train: Path) -> Sequence[Pair]:
    """The solutions that the training file has, against the model's own answers, whatever these say."""
    path = run.folder / "pairs-written.jsonl"
    if path.is_file():
        return read_pairs(path)
    records = [json.loads(line) for line in train.read_text("utf-8").splitlines()]
    written = {one["question"]: CALCULATION.sub("", one["answer"]) for one in records}
    samples, settings = run.problems.dev.samples[-pool:], run.problems.test.settings
    questions = [settings.prompt.replace("{question}", sample.question) for sample in samples]
    prompts = [run.model.chat([{"role": "user", "content": question}]) for question in questions]
    own = run.model.generate([Request(prompt, settings.max_tokens) for prompt in prompts])
    pairs = [
        Pair(question, written[sample.question].replace("#### ", "The answer is "), answer.text.strip())
        for question, sample, answer in zip(questions, samples, own, strict=True)
    ]
    run.folder.mkdir(parents=True, exist_ok=True)
    write_pairs(pairs, path)
    return pairs


def disjoint_draws(states: PairStates, count: int, most: int) -> list[SteeringVector]:
    """Vectors of `count` pairs each, no two of which share a pair."""
    order = np.random.default_rng(count).permutation(states.pairs)
    parts = [order[first : first + count] for first in range(0, states.pairs - count + 1, count)]
    drawn = (replace(states, positive=states.positive[:, p], negative=states.negative[:, p]) for p in parts[:most])
    return [reduce(some, normalise="residual") for some in drawn]


def compare_draws(run: Run, asked: Draws, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Draws of written pairs and vectors of other origin: cosines at the layer, and effects on the same problems."""
    states = record(run.model, pairs, layers=[run.layer], pooling=POOLING["terse"], progress=run.progress)
    drawn = {count: disjoint_draws(states, count, asked.draws) for count in asked.counts}
    vectors = {"all written": reduce(states, normalise="residual"), **{kind: run.vector(kind) for kind in OTHERS}}
    vectors |= {f"{count} pairs, draw {n}": one for count, some in drawn.items() for n, one in enumerate(some)}
    rows = run.rows(run.task(asked.problems), {"unsteered": None, **_methods(run, vectors)}, "draws")
    directions = {name: vector.directions[run.layer] for name, vector in vectors.items()}
    return {
        name: {
            "cosine": {other: cosine(directions[name], directions[other]) for other in ("all written", *OTHERS)},
            "change": asdict(compare(rows["unsteered"], rows[name])),
        }
        for name in vectors
    } | {"between draws": {str(count): _cosines(some, run.layer) for count, some in drawn.items()}}


def compare_random(run: Run, asked: Draws) -> dict[str, Any]:
    """Random vectors of the same norm at the same place, on the problems of the draws."""
    vectors = {f"random-{seed}": run.vector("terse").random_like(seed) for seed in range(RANDOM)}
    rows = run.rows(run.task(asked.problems), {"unsteered": None, **_methods(run, vectors)}, "random")
    return {name: {"change": asdict(compare(rows["unsteered"], rows[name]))} for name in vectors}


def _methods(run: Run, vectors: Mapping[str, SteeringVector]) -> dict[str, Method]:
    """Vectors in residual units where the shipped one is, at its norm."""
    return {name: Method(name, (Steering(one, STRENGTH, (run.layer,), "generated"),)) for name, one in vectors.items()}


def _cosines(vectors: Sequence[SteeringVector], layer: int) -> list[float]:
    """Of every two."""
    directions = [vector.directions[layer] for vector in vectors]
    return [cosine(one, other) for number, one in enumerate(directions) for other in directions[:number]]


def compare_choices(run: Run, asked: Choice) -> dict[str, Any]:
    """For each swept vector: the cells that resamples of dev choose, and what they do on other problems."""
    figures = {}
    for kind in SWEPT:
        header, dev = read_rows(run.results / f"dev-{kind}" / DEV, FORMAT)
        cells = sweep_cells(header["layers"], header["strengths"])
        methods = {cell.name: cell.method(run.vector(kind), header["phase"]) for cell in cells}
        tested = run.rows(run.task(asked.problems), methods, f"cells-{kind}")
        figures[kind] = resampled_choices(cells, dev, tested, run.asked.experiment.dev, asked.resamples)
    return figures


@click.command(help=__doc__)
@click.argument("settings_file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--train", required=True, help="Task of the pairs and of dev, as gsm8k=FILE.")
@click.option("--test", default="gsm8k", show_default=True, help="Task of the test.")
@click.option("--rewrites", type=click.Path(path_type=Path, exists=True), help="As real_experiment.py was given.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/real"), show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(settings_file: Path, train: str, test: str, rewrites: Path | None, out: Path, threads: int) -> None:
    asked = read_stability(settings_file)
    experiment = asked.experiment
    problems = read_problems(experiment, train, test, rewrites)
    with progress_bar() as progress:
        f32 = quantize(experiment.model, "F32", threads=threads, progress=progress)
        twin = quantize(f32, experiment.quant, threads=threads, progress=progress)
        options = EngineOptions(context=1024, parallel=32, threads=threads)
        with load(twin, options=options, progress=progress) as model:
            summary: dict[str, Any] = {"model": model.provenance.model, "backend": model.provenance.backend}
            run = Run(asked, model, problems, out / experiment.name, progress)
            if asked.temperature:
                summary["temperature"] = compare_temperatures(run, asked.temperature)
            if asked.draws:
                pairs = written_pairs(run, asked.draws.pool, Path(train.partition("=")[2]))
                summary["draws"] = compare_draws(run, asked.draws, pairs)
                summary["random"] = compare_random(run, asked.draws)
            if asked.choice:
                summary["choice"] = compare_choices(run, asked.choice)
    write_json(DOCS / f"{asked.name}.json", summary)
    if asked.temperature and asked.draws:
        stability_report.draw(summary, DOCS / f"{asked.name}.png")
    click.echo(stability_report.tables(summary))


if __name__ == "__main__":
    main()
