"""The whole main path on one model folder: extract, export, quantise, steer, compare with the reference.

Takes a model folder with recipe.toml and the folder of a vector's recipe, writes vector.gguf, table.json and
response.png into the latter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_steer.core.backend import Completion, EngineOptions, Request
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.extraction.extract import extract
from edge_steer.models import quantize
from edge_steer.models.load import load
from edge_steer.models.recipe import ModelRecipe, bundled_model
from edge_steer.pairs.pair import read_pairs
from edge_steer.recipes.demo_table import DemoTable, Measurement, write_table
from edge_steer.recipes.recipe import VectorRecipe
from edge_steer.storage.digests import digest
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.load import load_task
from edge_steer.tasks.rows import UNSTEERED, Row
from edge_steer.tasks.task import Sample
from edge_steer.tasks.wordproblems import WORD_PROBLEMS
from edge_steer.vectors import gguf_writer

PARALLEL = 32


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
    beside = model_folder if len(model_folder.parts) > 1 else model_folder.absolute()
    dense = VectorRecipe.load(Path(out) if out else beside.parents[1] / "export" / recipe.name / "dense")
    try:
        return _run(recipe, dense, problems, threads, progress)
    except KeyboardInterrupt:
        progress.note("stopped; the answers so far are kept, run the demo again to go on from there")
        raise


def _run(
    recipe: ModelRecipe, dense: VectorRecipe, problems: int, threads: int | None, progress: Progress
) -> DemoOutcome:
    if dense.pairs is None:
        raise EdgeSteerError(f"{dense.folder / 'recipe.toml'} names no pairs; the demo extracts its vector from pairs")
    options = EngineOptions(parallel=PARALLEL, threads=threads)
    task = load_task(WORD_PROBLEMS, split="test", limit=problems)
    with (
        load(recipe.source, runtime="torch", revision=recipe.revision, options=options, progress=progress) as reference,
        Graders() as graders,
    ):
        vector = extract(reference, read_pairs(dense.pairs), progress=progress)
        tuned = vector.tuned(dense.layer, dense.strength, dense.phase)
        exported = gguf_writer.write(tuned, dense.folder / dense.vector, layers=[dense.layer]).vector
        files = _quantised(recipe, threads, progress)
        table = DemoTable(exported, dense, task, graders, progress, backends=1 + len(files))
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
    write_table(table, {name: digest(path) for name, path in files.items()})
    table.forget()
    return DemoOutcome(
        dense.folder, dense.layer, dense.strength, problems, sample, unsteered, steered, table.measurements
    )


def _quantised(recipe: ModelRecipe, threads: int | None, progress: Progress) -> dict[str, Path]:
    """The GGUF of each type, F16 first, from which the others are made."""
    f16 = recipe.gguf or quantize.gguf_for(recipe.source, "F16", revision=recipe.revision, progress=progress)
    quants = progress.counted("quantising", recipe.quants)
    return {"F16": f16, **{quant: quantize.gguf_for(f16, quant, threads=threads) for quant in quants}}


def _example(samples: Sequence[Sample], unsteered: Sequence[Row], steered: Sequence[Row]) -> Sample:
    """The first problem that both solve, the steered one in fewer steps; else the first of all."""
    answers = zip(samples, unsteered, steered, strict=True)
    return next((s for s, u, t in answers if u.correct and t.correct and t.steps < u.steps), samples[0])
