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

from edge_steer import export, models, pairs
from edge_steer.backend import Backend, Completion, Request
from edge_steer.engine import Engine
from edge_steer.evaluate import Row, Summary, evaluate, summarise
from edge_steer.extract import extract
from edge_steer.files import cache_folder, digest, replacing
from edge_steer.parity import Distribution, Progress, Text, answered, distribution
from edge_steer.recipes import ModelRecipe, VectorRecipe
from edge_steer.reference import Reference
from edge_steer.report import plot_response
from edge_steer.tasks import Sample, word_problems
from edge_steer.vector import Steering, SteeringVector

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
    parity: Distribution | None


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
    progress("loading the reference", 0, 1)
    reference = Reference.load(recipe.source, revision=recipe.revision, threads=threads)
    made_from = pairs.read(dense.pairs)
    vector = extract(reference, made_from, progress=lambda done, total: progress("extracting", done, total))
    exported = export.write(vector, out / dense.vector, layers=[dense.layer]).vector

    files = {"F16": recipe.gguf or models.gguf_for(recipe.source, "F16", revision=recipe.revision)}
    for done, quant in enumerate(recipe.quants):
        progress("quantising", done, len(recipe.quants))
        files[quant] = models.gguf_for(files["F16"], quant, threads=threads)

    samples = word_problems("test", problems)
    run = _Table(vector=exported, recipe=dense, samples=samples, progress=progress, backends=1 + len(files))
    cells = run.of(REFERENCE, reference, "float32 weights of the recipe's source")
    for name, path in files.items():
        with Engine.load(path, parallel=32, threads=threads) as engine:
            cells += run.of(name, engine, digest(path), reference)
            if name == recipe.quants[-1]:
                shown = _shown(samples, run.rows[name, 0.0], run.rows[name, dense.strength])
                unsteered, steered = engine.generate(
                    [Request(engine.chat(shown.messages), 400, steering) for steering in ((), run.at(dense.strength))]
                )
    _write(out, dense, exported, files, samples, cells)
    run.forget()
    return Outcome(out, dense.layer, dense.strength, shown, unsteered, steered, cells)


class _Table:
    """Rows and cells, backend by backend; the reference comes first and gives the texts of the comparison."""

    def __init__(
        self,
        *,
        vector: SteeringVector,
        recipe: VectorRecipe,
        samples: Sequence[Sample],
        progress: Progress,
        backends: int,
    ) -> None:
        self._vector, self._recipe, self._samples, self._progress = vector, recipe, samples, progress
        self._total, self._done = backends * len(FRACTIONS) * len(samples), 0
        self._folder = cache_folder() / "demo" / hashlib.sha256(str(recipe.folder.resolve()).encode()).hexdigest()[:16]
        self._texts: dict[float, list[Text]] = {}
        self.rows: dict[tuple[str, float], list[Row]] = {}

    def at(self, strength: float) -> tuple[Steering, ...]:
        if not strength:
            return ()
        return (Steering(self._vector, strength, (self._recipe.layer,), self._recipe.phase),)

    def of(self, name: str, backend: Backend, identity: str, reference: Backend | None = None) -> list[Cell]:
        cells = []
        for fraction in FRACTIONS:
            strength = round(fraction * self._recipe.strength, 6)
            made_from = [identity, self._vector.digest, strength, self._recipe.layer, self._recipe.phase]
            key = hashlib.sha256(json.dumps([*made_from, [s.question for s in self._samples]]).encode()).hexdigest()
            path = self._folder / f"{name}-{strength:g}.jsonl"
            before = self._done
            rows = evaluate(backend, self._samples, self.at(strength), path=path, key=key, on_row=self._count)
            self._done = before + len(rows)
            self.rows[name, strength] = rows
            if reference is None:
                told = list(zip(self._samples, rows, strict=True))[:KL_TEXTS]
                self._texts[strength] = [answered(backend, sample.question, row.text) for sample, row in told]
            parity = distribution(reference, backend, self._texts[strength], self.at(strength)) if reference else None
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
    samples: Sequence[Sample],
    cells: Sequence[Cell],
) -> None:
    table = {
        "model": asdict(vector.model),
        "vector": {"file": recipe.vector, "digest": vector.digest, "pairs": vector.pairs_digest},
        "layer": recipe.layer,
        "strength": recipe.strength,
        "phase": recipe.phase,
        "problems": {"task": "word problems", "split": "test", "count": len(samples), "decoding": "greedy"},
        "files": {name: digest(path) for name, path in files.items()},
        "cells": [asdict(cell) for cell in cells],
    }
    with replacing(out / "table.json") as temporary:
        temporary.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    names = list(dict.fromkeys(cell.backend for cell in cells))
    panels = {
        title: {name: [(c.strength, value(c.summary)) for c in cells if c.backend == name] for name in names}
        for title, value in PANELS.items()
    }
    title = f"{vector.model.name}, layer {recipe.layer}, {len(samples)} held-out problems, greedy"
    plot_response(panels, recipe.strength, title, out / "response.png")
