"""The demo's table: answers and distances of every backend at every strength, and what is written of them.

Takes running models, gives Measurements, table.json and response.png. Rows of a stopped run stay in the cache, and the
next run goes on from them. It loads no model.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edge_steer.core.backend import Backend
from edge_steer.core.progress import Progress
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.evaluation.evaluate import Evaluator
from edge_steer.evaluation.figures import Summary, summarise
from edge_steer.evaluation.plots import plot_response
from edge_steer.parity.compare import distribution
from edge_steer.parity.divergence import Divergence
from edge_steer.parity.texts import TokenisedText, question_and_answer
from edge_steer.recipes.recipe import VectorRecipe
from edge_steer.storage.files import cache_folder, write_json
from edge_steer.storage.provenance import key
from edge_steer.storage.records import Store
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.rows import UNSTEERED, Method, Row
from edge_steer.tasks.task import Task

FRACTIONS = (-1.0, -0.5, 0.0, 0.5, 0.75, 1.0, 1.25)  # of the recipe's strength
KL_TEXTS = 16
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


class DemoTable:
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


def write_table(table: DemoTable, files: Mapping[str, str]) -> None:
    """Write table.json and response.png beside the recipe. files: the digest of each type's GGUF."""
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
