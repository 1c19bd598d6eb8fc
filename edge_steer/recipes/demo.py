"""The whole main path on one model folder: extract, export, quantise, steer, compare with the reference.

Takes a model folder with recipe.toml and the folder of a vector's recipe, writes vector.gguf, table.json and
response.png into the latter. Rows of a stopped run stay in the cache, and the next run goes on from them.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_steer.core.backend import Backend, Completion, EngineOptions, Request
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.evaluation.evaluate import Evaluator
from edge_steer.evaluation.figures import Summary, summarise
from edge_steer.evaluation.plots import plot_response
from edge_steer.extraction.extract import extract
from edge_steer.models import quantize
from edge_steer.models.load import load
from edge_steer.models.recipe import ModelRecipe, bundled_model
from edge_steer.pairs.pair import read_pairs
from edge_steer.parity.compare import distribution
from edge_steer.parity.divergence import Divergence
from edge_steer.parity.texts import TokenisedText, question_and_answer
from edge_steer.recipes.recipe import VectorRecipe
from edge_steer.storage.digests import digest
from edge_steer.storage.files import cache_folder, write_json
from edge_steer.storage.provenance import key
from edge_steer.storage.records import Store
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.load import load_task
from edge_steer.tasks.rows import UNSTEERED, Method, Row
from edge_steer.tasks.task import Sample, Task
from edge_steer.tasks.wordproblems import WORD_PROBLEMS
from edge_steer.vectors import gguf_writer

FRACTIONS = (-1.0, -0.5, 0.0, 0.5, 0.75, 1.0, 1.25)  # of the recipe's strength
KL_TEXTS = 16
PARALLEL = 32
REFERENCE = "torch float32"
PANELS: dict[str, Callable[[Summary], float]] = {
    "density (tokens per step)": lambda summary: summary.density,
    "steps": lambda summary: summary.steps,
    "accuracy": lambda summary: summary.accuracy,
}


@dataclass(frozen=True)
class Measurement:
    """One backend at one strength; `parity` is its distance from the reference there, None for the reference."""

    backend: str
    strength: float
    summary: Summary
    parity: Divergence | None


@dataclass(frozen=True)
class DemoOutcome:
    """What the demo wrote: where, one problem with two completions, and the table. problems: how many were solved."""

    folder: Path
    layer: int
    strength: float
    problems: int
    sample: Sample
    unsteered: Completion
    steered: Completion
    measurements: Sequence[Measurement]


def run_demo(
    model: str | Path | None = None,
    out: str | Path | None = None,
    *,
    problems: int = 100,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> DemoOutcome:
    """Run the main path; the same figures on each run of the same machine and build.

    model: a model's folder, None the bundled model's. out: the folder of the vector's recipe, None
    export/<model>/dense beside the models. problems: held-out problems to solve. Errors: EdgeSteerError.
    """
    model_folder = Path(model) if model else bundled_model()
    recipe = ModelRecipe.load(model_folder)
    dense = VectorRecipe.load(Path(out) if out else model_folder.parents[1] / "export" / recipe.name / "dense")
    if dense.pairs is None:
        raise EdgeSteerError(f"{dense.folder / 'recipe.toml'} names no pairs; the demo extracts its vector from pairs")
    try:
        return _run(recipe, dense, problems, threads, progress)
    except KeyboardInterrupt:
        progress.note("stopped; the answers so far are kept, run the demo again to go on from there")
        raise


def table_figures(summary: Summary) -> dict[str, object]:
    """What the table keeps of a summary."""
    return {
        "samples": summary.samples,
        "accuracy": summary.accuracy,
        "accuracy_interval": summary.accuracy_interval,
        "steps": summary.steps,
        "tokens": summary.tokens,
        "density": summary.density,
    }


def _run(
    recipe: ModelRecipe, dense: VectorRecipe, problems: int, threads: int | None, progress: Progress
) -> DemoOutcome:
    options = EngineOptions(parallel=PARALLEL, threads=threads)
    task = load_task(WORD_PROBLEMS, split="test", limit=problems)
    with (
        load(recipe.source, runtime="torch", revision=recipe.revision, options=options, progress=progress) as reference,
        Graders() as graders,
    ):
        vector = extract(reference, read_pairs(dense.pairs or ""), progress=progress)
        tuned = vector.tuned(dense.layer, dense.strength, dense.phase)
        exported = gguf_writer.write(tuned, dense.folder / dense.vector, layers=[dense.layer]).vector
        files = _quantised(recipe, threads, progress)
        table = _Table(exported, dense, task, graders, progress, backends=1 + len(files))
        table.measure_reference(reference)
        for name, path in files.items():
            with load(path, options=options) as engine:
                table.measure(name, engine, digest(path), reference)
                if name == recipe.quants[-1]:
                    sample = _example(task.samples, table.rows[name, 0.0], table.rows[name, dense.strength])
                    prompt = engine.chat(task.messages(sample))
                    methods = (UNSTEERED, table.method(dense.strength))
                    unsteered, steered = engine.generate(
                        [Request(prompt, task.settings.max_tokens, method.steering) for method in methods]
                    )
    _write(table, {name: digest(path) for name, path in files.items()})
    table.forget()
    return DemoOutcome(
        dense.folder, dense.layer, dense.strength, problems, sample, unsteered, steered, table.measurements
    )


def _quantised(recipe: ModelRecipe, threads: int | None, progress: Progress) -> dict[str, Path]:
    """The GGUF of each type, F16 first, from which the others are made."""
    f16 = recipe.gguf or quantize.gguf_for(recipe.source, "F16", revision=recipe.revision, progress=progress)
    quants = progress.counted("quantising", recipe.quants)
    return {"F16": f16, **{quant: quantize.gguf_for(f16, quant, threads=threads) for quant in quants}}


class _Table:
    """Rows and figures, backend by backend; the reference comes first and gives the texts to compare on."""

    def __init__(
        self,
        vector: SteeringVector,
        recipe: VectorRecipe,
        task: Task,
        graders: Graders,
        progress: Progress,
        *,
        backends: int,
    ) -> None:
        self.vector, self.recipe, self.task = vector, recipe, task
        self.rows: dict[tuple[str, float], list[Row]] = {}
        self.measurements: list[Measurement] = []
        self._graders, self._progress = graders, progress
        self._total, self._done = backends * len(FRACTIONS) * len(task.samples), 0
        self._folder = cache_folder() / "demo" / key(str(recipe.folder.resolve()))
        self._texts: dict[float, list[TokenisedText]] = {}

    @property
    def strengths(self) -> list[float]:
        return [round(fraction * self.recipe.strength, 6) for fraction in FRACTIONS]

    def method(self, strength: float) -> Method:
        if not strength:
            return UNSTEERED
        return Method("steered", (Steering(self.vector, strength, (self.recipe.layer,), self.recipe.phase),))

    def measure_reference(self, reference: Backend) -> None:
        """Its rows at every strength, and the texts to compare on."""
        for strength in self.strengths:
            rows = self._answers(REFERENCE, reference, "float32 weights of the recipe's source", strength)
            answers = list(zip(self.task.samples, rows, strict=True))[:KL_TEXTS]
            self._texts[strength] = [question_and_answer(reference, s.question, row.text) for s, row in answers]
            self.measurements.append(Measurement(REFERENCE, strength, summarise(rows), None))

    def measure(self, name: str, backend: Backend, identity: str, reference: Backend) -> None:
        """Its rows at every strength, and its distance from the reference there."""
        for strength in self.strengths:
            rows = self._answers(name, backend, identity, strength)
            parity = distribution(reference, backend, self._texts[strength], self.method(strength).steering)
            self.measurements.append(Measurement(name, strength, summarise(rows), parity))

    def forget(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self, name: str, backend: Backend, identity: str, strength: float) -> list[Row]:
        header = {
            "model": identity,
            "vector": self.vector.digest,
            "strength": strength,
            "layer": self.recipe.layer,
            "phase": self.recipe.phase,
            "task": self.task.digest,
            "settings": asdict(self.task.settings),
        }
        before = self._done
        with Store.open(self._folder / f"{name}-{key(header)}.jsonl", header) as store:
            evaluator = Evaluator(backend, self._graders, store=store, nll=False)
            rows = evaluator.rows(self.task, self.method(strength), on_row=self._count)
        self._done = before + len(rows)
        self.rows[name, strength] = rows
        return rows

    def _count(self, _row: Row) -> None:
        self._done += 1
        self._progress("answering", self._done, self._total)


def _example(samples: Sequence[Sample], unsteered: Sequence[Row], steered: Sequence[Row]) -> Sample:
    """The first problem that both solve, the steered one in fewer steps; else the first of all."""
    answers = zip(samples, unsteered, steered, strict=True)
    return next((s for s, u, t in answers if u.correct and t.correct and t.steps < u.steps), samples[0])


def _write(table: _Table, files: Mapping[str, str]) -> None:
    """table.json and response.png. files: the digest of each type's GGUF."""
    recipe, vector, count = table.recipe, table.vector, len(table.task.samples)
    content = {
        "model": asdict(vector.model),
        "vector": {"file": recipe.vector, "digest": vector.digest, "pairs": vector.pairs_digest},
        "layer": recipe.layer,
        "strength": recipe.strength,
        "phase": recipe.phase,
        "problems": {"task": "word problems", "split": "test", "count": count, "decoding": "greedy"},
        "files": {**files},
        "cells": [_record(measurement) for measurement in table.measurements],
    }
    write_json(recipe.folder / "table.json", content)
    curves: dict[str, list[Measurement]] = {}
    for measurement in table.measurements:
        curves.setdefault(measurement.backend, []).append(measurement)
    panels = {
        title: {name: [(m.strength, value(m.summary)) for m in curve] for name, curve in curves.items()}
        for title, value in PANELS.items()
    }
    title = f"{vector.model.name}, layer {recipe.layer}, {count} held-out problems, greedy"
    plot_response(panels, recipe.strength, title, recipe.folder / "response.png")


def _record(measurement: Measurement) -> dict[str, Any]:
    return {
        "backend": measurement.backend,
        "strength": measurement.strength,
        "summary": table_figures(measurement.summary),
        "parity": asdict(measurement.parity) if measurement.parity else None,
    }
