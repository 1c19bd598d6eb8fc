"""The steps of a build that make the vector: extract, sweep, export."""

from dataclasses import asdict, replace
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError
from edge_steer.evaluation.sweep import Rule, Settings, parse_strengths, sweep
from edge_steer.evaluation.sweep_files import draw, write_summary
from edge_steer.evaluation.units import in_process
from edge_steer.extraction.extract import record, reduce
from edge_steer.extraction.quality import measure
from edge_steer.llama.engine import Engine
from edge_steer.models.describe import facts
from edge_steer.pairs import pair
from edge_steer.recipes.build import VECTOR, Build
from edge_steer.recipes.build_recipe import Search
from edge_steer.recipes.recipe import fill
from edge_steer.recipes.step import LAYERS, Made, Means, model_gguf, open_reference, step_key, write_json
from edge_steer.storage.files import digest
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.load import load_task
from edge_steer.vectors import gguf_writer, native


def extract_step(build: Build, means: Means) -> Made:
    told, extraction = pair.read(build.pairs_file), build.recipe.extraction

    if extraction.quant:
        path = model_gguf(build, extraction.quant, means)
        with Engine.load(path, means.engine) as engine:
            states = record(engine, told, pooling=extraction.pooling, progress=means.progress)
        states = replace(states, model=replace(states.model, revision=digest(path)))
    else:
        states = record(open_reference(build, means), told, pooling=extraction.pooling, progress=means.progress)
    vector = reduce(states, extraction.method)
    native.save(vector, build.folder / VECTOR)
    write_json(build, LAYERS, [asdict(layer) for layer in measure(states, extraction.method)])
    return Made((VECTOR, LAYERS), {"pairs": len(told), "digest": vector.digest})


def sweep_step(build: Build, means: Means) -> Made:
    search = build.recipe.search
    if search is None:
        raise ValueError("a sweep without [sweep]")
    settings = _settings(build, search, means)
    path = model_gguf(build, build.swept_quant, means)
    known = facts(path, means.engine)
    parts = [settings.header, known, settings.dev.digest, settings.test.digest, asdict(settings.dev.settings)]
    folder = Path("build", f"sweep-{step_key(parts)}")
    with Graders() as graders, Engine.load(path, means.engine) as engine:
        results = sweep(settings, build.folder / folder, in_process(engine, graders), known, means.progress)
    summary = write_summary(results, build.folder / folder).relative_to(build.folder)
    try:
        draw(results, build.folder / folder)
    except EdgeSteerError as error:
        means.progress.note(f"no plots: {error}")
    cell = results.chosen
    if cell is None or cell.layer is None:
        raise EdgeSteerError(
            f"no cell of the sweep did better than the unsteered model, see {build.folder / folder}; give other layers "
            "or strengths in [sweep]"
        )
    on = f"{build.swept_quant}, {results.problems} {settings.dev.name} problems"
    fill(build.folder, layer=cell.layer, strength=cell.strength, chosen=f"edge-steer build: {on}; {results.rule}")
    return Made((summary,), {"layer": cell.layer, "strength": cell.strength, "rule": results.rule})


def export_step(build: Build, _means: Means) -> Made:
    layer, _ = build.at
    name = Path(build.recipe.vector)
    written = gguf_writer.write(native.load(build.folder / VECTOR), build.folder / name, layers=[layer])
    return Made((name,), {"digest": written.vector.digest})


def _settings(build: Build, search: Search, means: Means) -> Settings:
    task = load_task(build.task_name(search.task), split=search.split)
    if search.max_tokens:
        task = replace(task, settings=replace(task.settings, max_tokens=search.max_tokens))
    dev, test = task.split(search.dev, search.test)
    rule: Rule = "density" if search.rule == "density" else "accuracy"
    return Settings(
        dev=dev,
        test=test,
        vector=native.load(build.folder / VECTOR),
        layers=build.swept_layers,
        strengths=parse_strengths(search.strengths),
        phase=build.recipe.phase,
        rule=rule,
        margin=search.margin,
        parallel=means.engine.parallel,
        nll=search.nll,
    )
