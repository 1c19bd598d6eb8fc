"""The steps of a build that make the vector: extract, sweep, export."""

from dataclasses import asdict
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError
from edge_steer.evaluation.results import SUMMARY
from edge_steer.evaluation.sweep import SweepSettings, run_sweep
from edge_steer.evaluation.sweep_cells import parse_strengths, sweep_cells
from edge_steer.evaluation.sweep_plots import draw_sweep
from edge_steer.evaluation.units import in_process
from edge_steer.extraction.extract import record, reduce
from edge_steer.extraction.quality import measure_layers
from edge_steer.models.load import load
from edge_steer.pairs.pair import read_pairs
from edge_steer.recipes.build import Build
from edge_steer.recipes.build_recipe import SweepTable
from edge_steer.recipes.pair_steps import CHECK, pairs_are_given, solution_count
from edge_steer.recipes.recipe import fill
from edge_steer.recipes.step import (
    PROMPT_TOKENS,
    SOLUTION_TOKENS,
    Step,
    StepContext,
    StepOutput,
    Work,
    task_inputs,
    with_recipe_settings,
)
from edge_steer.storage import provenance
from edge_steer.storage.digests import digest
from edge_steer.storage.files import readable, write_json
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.load import load_task
from edge_steer.tasks.task import Task
from edge_steer.vectors import gguf_writer, read
from edge_steer.vectors.write import save

VECTOR = Path("build", "vector.safetensors")
LAYERS = Path("build", "layers.json")


def tuned_point(build: Build) -> tuple[int, float]:
    """The layer and the strength: what the sweep chose, or else the recipe's."""
    if build.recipe.sweep:
        findings = SWEEP.record(build).findings
        return findings["layer"], findings["strength"]
    if build.recipe.layer is None or build.recipe.strength is None:
        raise ValueError("a recipe with neither a sweep nor layer and strength")
    return build.recipe.layer, build.recipe.strength


def pair_count(build: Build) -> int:
    """How many pairs there are or will be, at most."""
    return len(read_pairs(build.recipe.pairs_file)) if pairs_are_given(build) else solution_count(build)[0]


def _extract_inputs(build: Build) -> dict[str, object]:
    extract = build.recipe.extract
    return {
        "pairs": digest(readable(build.recipe.pairs_file, "pairs, one JSON object a line")),
        "model": build.model_inputs(extract.quant),
        "method": extract.method,
        "pooling": extract.pooling,
    }


def _extract(build: Build, context: StepContext) -> StepOutput:
    extract, pairs = build.recipe.extract, read_pairs(build.recipe.pairs_file)
    with load(
        build.source,
        extract.quant,
        runtime="llama" if extract.quant else "torch",
        revision=build.revision,
        options=context.engine,
        progress=context.progress,
    ) as model:
        states = record(model, pairs, pooling=extract.pooling, progress=context.progress)
    vector = reduce(states, extract.method)
    save(vector, build.folder / VECTOR)
    write_json(build.folder / LAYERS, [asdict(layer) for layer in measure_layers(states, extract.method)])
    return StepOutput((VECTOR, LAYERS), {"pairs": len(pairs), "digest": vector.digest})


def _extract_work(build: Build) -> Work:
    count, quant = pair_count(build), build.recipe.extract.quant
    runtime = f"from {quant.upper()}" if quant else "in PyTorch"
    return Work(f"{count} pairs {runtime}", read=2 * count * (SOLUTION_TOKENS + PROMPT_TOKENS))


def _layer_and_strength_are_given(build: Build) -> bool:
    return build.recipe.sweep is None


def _sweep_table(build: Build) -> SweepTable:
    if build.recipe.sweep is None:
        raise ValueError("the recipe has no [sweep]; layer and strength are given")
    return build.recipe.sweep


def _sweep_quant(build: Build) -> str:
    """The type the sweep runs on; without one in the recipe, the model recipe's last."""
    return (_sweep_table(build).quant or build.model.quants[-1]).upper()


def _sweep_layers(build: Build) -> tuple[int, ...]:
    return _sweep_table(build).layers or build.model.layers


def _sweep_inputs(build: Build) -> dict[str, object]:
    table = _sweep_table(build)
    settings = {**asdict(table), "task": task_inputs(build, table.task), "layers": _sweep_layers(build)}
    return {
        "vector": EXTRACT.output_digest(build),
        "model": build.model_inputs(_sweep_quant(build)),
        "settings": settings,
        "phase": build.recipe.phase,
    }


def _sweep_task(build: Build) -> Task:
    table = _sweep_table(build)
    name, protocol = build.recipe.task_name(table.task), build.recipe.asking.protocol
    return with_recipe_settings(build, load_task(name, protocol=protocol, split=table.split), table.max_tokens)


def _sweep(build: Build, context: StepContext) -> StepOutput:
    table, quant, task = _sweep_table(build), _sweep_quant(build), _sweep_task(build)
    settings = SweepSettings.of(
        read.load(build.folder / VECTOR),
        task.split(table.dev, table.test),
        strengths=table.strengths,
        layers=_sweep_layers(build),
        phase=build.recipe.phase,
        rule="density" if table.rule == "density" else "accuracy",
        margin=table.margin,
        nll=table.nll,
    )
    with (
        Graders() as graders,
        load(build.source, quant, revision=build.revision, options=context.engine, progress=context.progress) as engine,
    ):
        settings_key = provenance.key(settings.key_settings(engine.provenance))
        folder = build.folder / "build" / f"sweep-{settings_key}"
        results = run_sweep(
            settings, in_process(engine, graders), engine.provenance, folder=folder, progress=context.progress
        )
    try:
        draw_sweep(results, folder)
    except EdgeSteerError as error:
        context.progress.note(f"no plots: {error}")
    cell = results.chosen
    if cell is None or cell.layer is None:
        raise EdgeSteerError(
            f"no cell of the sweep did better than the unsteered model, see {folder}; give other layers or strengths "
            "in [sweep]"
        )
    on = f"{quant}, {results.problems} {task.name} problems"
    fill(build.folder, layer=cell.layer, strength=cell.strength, chosen=f"edge-steer build: {on}; {results.rule}")
    summary = (folder / SUMMARY).relative_to(build.folder)
    return StepOutput((summary,), {"layer": cell.layer, "strength": cell.strength, "rule": results.rule})


def _sweep_work(build: Build) -> Work:
    table = _sweep_table(build)
    cell_count = len(sweep_cells(_sweep_layers(build), parse_strengths(table.strengths)))
    rows = cell_count * table.dev + 2 * table.test
    text = (
        f"{rows:,} rows by {_sweep_quant(build)}: {cell_count} cells on {table.dev} dev problems of {table.task}, "
        f"two on {table.test} others"
    )
    tokens = rows * SOLUTION_TOKENS
    return Work(text, decoded=tokens, read=tokens * table.nll)


def _export_inputs(build: Build) -> dict[str, object]:
    layer, strength = tuned_point(build)
    return {
        "vector": EXTRACT.output_digest(build),
        "layer": layer,
        "strength": strength,
        "phase": build.recipe.phase,
    }


def _export(build: Build, _context: StepContext) -> StepOutput:
    layer, strength = tuned_point(build)
    vector = read.load(build.folder / VECTOR).tuned(layer, strength, build.recipe.phase)
    name = Path(build.recipe.vector)
    exported = gguf_writer.write(vector, build.folder / name, layers=[layer])
    return StepOutput((name,), {"digest": exported.vector.digest})


def _export_work(build: Build) -> Work:
    return Work(build.recipe.vector)


EXTRACT = Step("extract", (CHECK,), _extract_inputs, _extract, _extract_work)
SWEEP = Step("sweep", (EXTRACT,), _sweep_inputs, _sweep, _sweep_work, _layer_and_strength_are_given)
EXPORT = Step("export", (EXTRACT, SWEEP), _export_inputs, _export, _export_work)
