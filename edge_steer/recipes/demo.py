"""The whole main path on one model folder: extract, export, quantise, steer, compare with the reference.

Takes a model folder with recipe.toml and pairs.jsonl, writes vector.gguf, table.json and response.png into the
folder of the vector's recipe. Rows of an interrupted run are kept in the cache and taken up again.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_steer.core.backend import Backend, Completion, EngineOptions, Request
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import Progress
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.evaluation.evaluate import evaluate
from edge_steer.evaluation.figures import Summary, summarise
from edge_steer.evaluation.plots import plot_response
from edge_steer.extraction.extract import extract
from edge_steer.llama.engine import Engine
from edge_steer.models import quantize
from edge_steer.models.recipe import ModelRecipe
from edge_steer.pairs import pair
from edge_steer.parity.compare import distribution
from edge_steer.parity.divergence import Divergence
from edge_steer.parity.texts import Text, answered
from edge_steer.recipes.recipe import VectorRecipe
from edge_steer.reference.model import Reference
from edge_steer.storage.files import cache_folder, digest, replacing
from edge_steer.storage.records import Store
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.load import load_task
from edge_steer.tasks.rows import UNSTEERED, Method, Row
from edge_steer.tasks.task import WORD_PROBLEMS, Sample, Task
from edge_steer.vectors import gguf_writer

FRACTIONS = (-1.0, -0.5, 0.0, 0.5, 0.75, 1.0, 1.25)  # of the recipe's strength
KL_TEXTS = 16
REFERENCE = "torch float32"
PANELS: dict[str, Callable[[Summary], float]] = {
    "density (tokens per step)": lambda s: s.density,
    "steps": lambda s: s.steps,
    "accuracy": lambda s: s.accuracy,
}


@dataclass(frozen=True)
class Cell:
    """One backend at one strength; `parity` is its distance from the reference there, None for the reference."""

    backend: str
    strength: float
    summary: Summary
    parity: Divergence | None


@dataclass(frozen=True)
class Outcome:
    """What the demo made: where, the problem shown with its two completions, and the table."""

    folder: Path
    layer: int
    strength: float
    sample: Sample
    unsteered: Completion
    steered: Completion
    cells: Sequence[Cell]


def demo(model_folder: Path, out: Path, *, problems: int, threads: int | None, progress: Progress) -> Outcome:
    """Run the main path; the same figures on each run of the same machine and build. Errors: EdgeSteerError."""
    recipe, dense = ModelRecipe.load(model_folder), VectorRecipe.load(out)
    if dense.pairs is None:
        raise EdgeSteerError(f"{out / 'recipe.toml'} names no pairs; the demo extracts its vector from pairs")
    progress("loading the reference", 0, 1)
    reference = Reference.load(recipe.source, revision=recipe.revision, threads=threads)
    made_from = pair.read(dense.pairs)
    vector = extract(reference, made_from, progress=progress)
    exported = gguf_writer.write(vector, out / dense.vector, layers=[dense.layer]).vector

    files = {"F16": recipe.gguf or quantize.gguf_for(recipe.source, "F16", revision=recipe.revision)}
    for done, quant in enumerate(recipe.quants):
        progress("quantising", done, len(recipe.quants))
        files[quant] = quantize.gguf_for(files["F16"], quant, threads=threads)

    task = load_task(WORD_PROBLEMS, split="test", limit=problems)
    with Graders() as graders:
        run = _Table(exported, dense, task, graders, progress, backends=1 + len(files))
        cells = run.of(REFERENCE, reference, "float32 weights of the recipe's source")
        for name, path in files.items():
            with Engine.load(path, EngineOptions(parallel=32, threads=threads)) as engine:
                cells += run.of(name, engine, digest(path), reference)
                if name == recipe.quants[-1]:
                    shown = _shown(task.samples, run.rows[name, 0.0], run.rows[name, dense.strength])
                    prompt = engine.chat(task.messages(shown))
                    both = (UNSTEERED, run.at(dense.strength))
                    unsteered, steered = engine.generate(
                        [Request(prompt, task.settings.max_tokens, method.steering) for method in both]
                    )
    _write(out, dense, exported, files, len(task.samples), cells)
    run.forget()
    return Outcome(out, dense.layer, dense.strength, shown, unsteered, steered, cells)


def figures(summary: Summary) -> dict[str, object]:
    """What the table keeps of a summary."""
    return {
        "samples": summary.samples,
        "accuracy": summary.accuracy,
        "accuracy_interval": summary.accuracy_interval,
        "steps": summary.steps,
        "tokens": summary.tokens,
        "density": summary.density,
    }


class _Table:
    """Rows and cells, backend by backend; the reference comes first and gives the texts of the comparison."""

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
        self._vector, self._recipe, self._task, self._graders, self._progress = vector, recipe, task, graders, progress
        self._total, self._done = backends * len(FRACTIONS) * len(task.samples), 0
        self._folder = cache_folder() / "demo" / hashlib.sha256(str(recipe.folder.resolve()).encode()).hexdigest()[:16]
        self._texts: dict[float, list[Text]] = {}
        self.rows: dict[tuple[str, float], list[Row]] = {}

    def at(self, strength: float) -> Method:
        if not strength:
            return UNSTEERED
        recipe = self._recipe
        return Method("steered", (Steering(self._vector, strength, (recipe.layer,), recipe.phase),))

    def of(self, name: str, backend: Backend, identity: str, reference: Backend | None = None) -> list[Cell]:
        cells = []
        for fraction in FRACTIONS:
            strength = round(fraction * self._recipe.strength, 6)
            header = {
                "model": identity,
                "vector": self._vector.digest,
                "strength": strength,
                "layer": self._recipe.layer,
                "phase": self._recipe.phase,
                "task": self._task.digest,
                "settings": asdict(self._task.settings),
            }
            key = hashlib.sha256(json.dumps(header).encode()).hexdigest()[:16]
            method = self.at(strength)
            before = self._done
            with Store.open(self._folder / f"{name}-{key}.jsonl", header) as store:
                rows = evaluate(
                    backend, self._task, method, graders=self._graders, store=store, on_row=self._count, nll=False
                )
            self._done = before + len(rows)
            self.rows[name, strength] = rows
            if reference is None:
                told = list(zip(self._task.samples, rows, strict=True))[:KL_TEXTS]
                self._texts[strength] = [answered(backend, sample.question, row.text) for sample, row in told]
            parity = distribution(reference, backend, self._texts[strength], method.steering) if reference else None
            cells.append(Cell(name, strength, summarise(rows), parity))
        return cells

    def forget(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _count(self, _row: Row) -> None:
        self._done += 1
        self._progress("answering", self._done, self._total)


def _shown(samples: Sequence[Sample], unsteered: Sequence[Row], steered: Sequence[Row]) -> Sample:
    """The first problem that both solve, the steered one in fewer steps; else the first of all."""
    told = zip(samples, unsteered, steered, strict=True)
    return next((s for s, u, t in told if u.correct and t.correct and t.steps < u.steps), samples[0])


def _write(
    out: Path,
    recipe: VectorRecipe,
    vector: SteeringVector,
    files: Mapping[str, Path],
    problems: int,
    cells: Sequence[Cell],
) -> None:
    table = {
        "model": asdict(vector.model),
        "vector": {"file": recipe.vector, "digest": vector.digest, "pairs": vector.pairs_digest},
        "layer": recipe.layer,
        "strength": recipe.strength,
        "phase": recipe.phase,
        "problems": {"task": "word problems", "split": "test", "count": problems, "decoding": "greedy"},
        "files": {name: digest(path) for name, path in files.items()},
        "cells": [_record(cell) for cell in cells],
    }
    with replacing(out / "table.json") as temporary:
        temporary.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    names = list(dict.fromkeys(cell.backend for cell in cells))
    panels = {
        title: {name: [(c.strength, value(c.summary)) for c in cells if c.backend == name] for name in names}
        for title, value in PANELS.items()
    }
    title = f"{vector.model.name}, layer {recipe.layer}, {problems} held-out problems, greedy"
    plot_response(panels, recipe.strength, title, out / "response.png")


def _record(cell: Cell) -> dict[str, Any]:
    return {
        "backend": cell.backend,
        "strength": cell.strength,
        "summary": figures(cell.summary),
        "parity": asdict(cell.parity) if cell.parity else None,
    }
