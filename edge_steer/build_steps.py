"""The steps of a build: solutions, rewrites, checked pairs, a vector, a sweep, its export, parity.

Takes a Build, does what is to do, leaves vector.gguf and its certificate beside the recipe, what led there in build/. A
stopped step goes on where it was. What a step does is the business of the modules it calls; each is asked here once.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_steer import certificate_page, checks, export, hub, models, pairs, parity
from edge_steer import generate as solutions
from edge_steer import rewrite as dense
from edge_steer.behaviour import DOSES
from edge_steer.build import REWRITTEN, STEPS, VECTOR, Build, Step, rules_of
from edge_steer.build_recipe import MadePairs, Search
from edge_steer.certificate import CERTIFICATE, ROWS
from edge_steer.certify import Behaviour, ask, certify, check_files, file_of
from edge_steer.chat_api import Endpoint
from edge_steer.engine import Engine
from edge_steer.errors import EdgeSteerError
from edge_steer.extract import record, reduce
from edge_steer.files import digest, replacing
from edge_steer.grading import Graders
from edge_steer.recipes import BUILT_PAIRS, fill
from edge_steer.separation import measure
from edge_steer.store import Store
from edge_steer.sweep import Rule, Settings, parse_strengths, sweep
from edge_steer.sweep_results import draw, facts, write_summary
from edge_steer.tasks import Task, load_task
from edge_steer.units import in_process
from edge_steer.vector import Steering, SteeringVector

if TYPE_CHECKING:
    from edge_steer.reference import Reference

LAYERS = Path("build", "layers.json")
CHECKS = Path("build", "checks.json")
REWRITE_TOKENS = 8192  # of a rewrite at most, thinking included

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Made:
    """What a step left: its files, named from the build's folder, and what there is to say of them."""

    files: tuple[Path, ...]
    found: Mapping[str, object]


@dataclass(frozen=True)
class Means:
    """What steps work with. engine: options of Engine.load. progress: what is done, how much, of how much."""

    engine: Mapping[str, Any]
    say: Say
    progress: Progress


def run(build: Build, means: Means) -> None:
    """Do every step that is to do, in order; each is in build.json when it is done.

    Errors: EdgeSteerError, from the step that cannot be done.
    """
    (build.folder / "build").mkdir(exist_ok=True)
    if build.repo and not build.revision:
        build.lock["revision"] = hub.listing(build.repo).commit
        build.save()
    if build.state("rewrite").kind == "to do" and not build.rewriter_file:
        _endpoint(_to_make(build))  # a missing key is said before hours of solving
    for step in STEPS:
        state = build.state(step)
        if state.kind != "to do":
            continue
        means.say(f"{step}: {state.why}")
        inputs, began = build.inputs(step), time.monotonic()
        made = _STEPS[step](build, means)
        build.steps[step] = {
            "inputs": inputs,
            "outputs": {file.as_posix(): digest(build.folder / file) for file in made.files},
            "found": dict(made.found),
            "seconds": round(time.monotonic() - began, 1),
            "versions": _versions(),
        }
        build.save()


def _generate(build: Build, means: Means) -> Made:
    made = _to_make(build)
    task, good = _calibration(build, made, means.say), 0

    def count(solution: solutions.Solution) -> None:
        nonlocal good
        good += solution.whole and solution.correct
        means.progress("solving", min(good, made.count), made.count)

    path = _gguf(build, made.quant, means)
    with Graders() as graders, Engine.load(path, **means.engine) as engine:
        model, backend = {"name": path.stem, "digest": digest(path)}, {"name": "llama.cpp", **means.engine}
        header = solutions.header_of(task, model, backend, _versions())
        file = Path("build", f"solutions-{_key(header)}.jsonl")
        with Store.open(build.folder / file, header) as store:
            chosen = solutions.generate(
                engine, task, graders=graders, store=store, count=made.count, on_solution=count,
                at_once=means.engine.get("parallel", 8),
            )  # fmt: skip
    if not chosen:
        raise EdgeSteerError(f"{build.folder / file}: no solution of {task.name} is right and whole")
    if len(chosen) < made.count:
        means.say(f"{len(chosen)} of {made.count} solutions wanted: {task.name} has no more problems")
    return Made((file,), {"solutions": len(chosen), "tokens": sum(solution.tokens for solution in chosen)})


def _rewrite(build: Build, means: Means) -> Made:
    made = _to_make(build)
    told = solutions.load_chosen(build.folder / next(iter(build.steps["generate"]["outputs"])))
    with ExitStack() as stack:
        name: dict[str, object]
        if local := build.rewriter_file:
            engine = stack.enter_context(Engine.load(local, **means.engine))
            ask, name = dense.by_model(engine, REWRITE_TOKENS), {"name": local.stem, "digest": digest(local)}
        else:
            endpoint = _endpoint(made)
            ask, name = endpoint.ask, {"name": endpoint.model, "endpoint": endpoint.shown}
        header = dense.header_of(name)
        file = Path("build", f"rewrites-{_key(header)}.jsonl")
        store = stack.enter_context(Store.open(build.folder / file, header))
        total, done = len(dense.unfinished(told, store)), 0

        def count(_: dense.Rewrite) -> None:
            nonlocal done
            done += 1
            means.progress("rewriting", done, total)

        found, left_out = dense.pairs_of(told, dense.rewrite(told, ask, store, count))
        used = dense.usage(store.records)
    for left, why in left_out:
        means.say(f"left out: {left}: {why}")
    pairs.write(build.folder / REWRITTEN, found)
    return Made((file, REWRITTEN), {"pairs": len(found), "left out": len(left_out), "used": asdict(used)})


def _check(build: Build, means: Means) -> Made:
    made, found = _to_make(build), pairs.read(build.folder / REWRITTEN)
    task = load_task(build.task_name(made.task), split=made.split or solutions.CALIBRATION.get(made.task))
    with Graders() as graders, Engine.load(_gguf(build, made.quant, means), **means.engine) as engine:
        checked = checks.check(found, lambda text: len(engine.encode(text, start=False)), graders, task.grader)
        checked = checks.score(engine, found, checked, lambda done, total: means.progress("scoring", done, total))
    reasons = checks.select(checked, rules_of(made))
    for row, why in zip(checked, reasons, strict=True):
        if why:
            means.say(f"dropped: {row.name}: {'; '.join(why)}")
    kept = [pair for pair, why in zip(found, reasons, strict=True) if not why]
    if not kept:
        raise EdgeSteerError(f"none of {len(found)} pairs passes the checks, as said above; mend [pairs]")
    pairs.write(build.folder / BUILT_PAIRS, kept)
    _write(build, CHECKS, [{**asdict(row), "reasons": why} for row, why in zip(checked, reasons, strict=True)])
    return Made((BUILT_PAIRS, CHECKS), {"pairs": len(kept), "dropped": len(found) - len(kept)})


def _extract(build: Build, means: Means) -> Made:
    told, extraction = pairs.read(build.pairs_file), build.recipe.extraction

    def tell(done: int, total: int) -> None:
        means.progress("extracting", done, total)

    if extraction.quant:
        path = _gguf(build, extraction.quant, means)
        with Engine.load(path, **means.engine) as engine:
            states = record(engine, told, pooling=extraction.pooling, progress=tell)
        states = replace(states, model=replace(states.model, revision=digest(path)))
    else:
        states = record(_reference(build, means), told, pooling=extraction.pooling, progress=tell)
    vector = reduce(states, extraction.method)
    vector.save(build.folder / VECTOR)
    _write(build, LAYERS, [asdict(layer) for layer in measure(states, extraction.method)])
    return Made((VECTOR, LAYERS), {"pairs": len(told), "digest": vector.digest})


def _sweep(build: Build, means: Means) -> Made:
    search = build.recipe.search
    if search is None:
        raise ValueError("a sweep without [sweep]")
    settings = _settings(build, search, means)
    path = _gguf(build, build.swept_quant, means)
    known = facts(path, means.engine)
    parts = [settings.header, known, settings.dev.digest, settings.test.digest, asdict(settings.dev.settings)]
    folder = Path("build", f"sweep-{_key(parts)}")
    with Graders() as graders, Engine.load(path, **means.engine) as engine:
        results = sweep(settings, build.folder / folder, in_process(engine, graders), known, means.progress)
    summary = write_summary(results, build.folder / folder).relative_to(build.folder)
    try:
        draw(results, build.folder / folder)
    except EdgeSteerError as error:
        means.say(f"no plots: {error}")
    cell = results.chosen
    if cell is None or cell.layer is None:
        raise EdgeSteerError(
            f"no cell of the sweep did better than the unsteered model, see {build.folder / folder}; give other layers "
            "or strengths in [sweep]"
        )
    on = f"{build.swept_quant}, {results.problems} {settings.dev.name} problems"
    fill(build.folder, layer=cell.layer, strength=cell.strength, chosen=f"edge-steer build: {on}; {results.rule}")
    return Made((summary,), {"layer": cell.layer, "strength": cell.strength, "rule": results.rule})


def _export(build: Build, _means: Means) -> Made:
    layer, _ = build.at
    name = Path(build.recipe.vector)
    written = export.write(SteeringVector.load(build.folder / VECTOR), build.folder / name, layers=[layer])
    return Made((name,), {"digest": written.vector.digest})


def _parity(build: Build, means: Means) -> Made:
    layer, strength = build.at
    compared = build.recipe.comparison
    vector = build.folder / build.recipe.vector
    steering = [Steering(export.load(vector), strength, (layer,), build.recipe.phase)]
    if (kept := build.steps.get("parity")) and kept["inputs"] != build.inputs("parity"):
        shutil.rmtree(build.folder / ROWS, ignore_errors=True)
        build.forget("parity")
        build.save()
    files = [
        file_of(build.model.folder, quant, build.folder, means.engine, revision=build.revision, progress=means.say)
        for quant in build.quants
    ]
    check_files(files, steered=True)
    reference = _reference(build, means)
    with ExitStack() as stack:
        asked = None
        if compared.task:
            task = load_task(build.task_name(compared.task), split=compared.split, limit=compared.problems)
            asked = Behaviour(task, DOSES, stack.enter_context(Graders()))
        said = ask(
            reference,
            build.folder,
            steering,
            asked or parity.read_texts(build.pairs_file, reference),
            named=str(build.model.folder),
            limit=compared.texts,
            threads=means.engine.get("threads"),
            progress=means.progress,
        )
        told = certify(
            build.folder, said, files, steering, asked, vectors=[str(vector)], changes={}, progress=means.progress
        )
        certificate_page.write(build.folder, told, said.answers, asked.task.samples if asked else ())
    return Made((Path(CERTIFICATE),), {"verdicts": {entry["quant"]: entry["verdict"] for entry in told["files"]}})


_STEPS: dict[Step, Callable[[Build, Means], Made]] = {
    "generate": _generate,
    "rewrite": _rewrite,
    "check": _check,
    "extract": _extract,
    "sweep": _sweep,
    "export": _export,
    "parity": _parity,
}


def _to_make(build: Build) -> MadePairs:
    if isinstance(build.recipe.pairs, Path):
        raise ValueError("pairs are given; there are none to make")
    return build.recipe.pairs


def _endpoint(made: MadePairs) -> Endpoint:
    return Endpoint(made.rewriter or dense.MODEL, made.base_url, REWRITE_TOKENS)


def _calibration(build: Build, made: MadePairs, say: Say) -> Task:
    """The problems to solve: without those that the sweep, or the task's own test split, evaluates on."""
    split = made.split or solutions.CALIBRATION.get(made.task)
    task = load_task(build.task_name(made.task), split=split)
    if made.max_tokens:
        task = replace(task, settings=replace(task.settings, max_tokens=made.max_tokens))
    search = build.recipe.search
    held = [load_task(build.task_name(search.task), split=search.split)] if search else []
    if split and split != "test":
        held.append(load_task(made.task))
    shared = {mine.id for other in held for mine, _ in solutions.shared_problems(task.samples, other.samples)}
    say(f"{len(shared)} of {len(task.samples)} problems of {task.name} are evaluation problems; they are left out")
    if len(shared) == len(task.samples):
        raise EdgeSteerError(f"every problem of {task.name} is an evaluation problem; name another split in [pairs]")
    return replace(task, samples=tuple(sample for sample in task.samples if sample.id not in shared))


def _settings(build: Build, search: Search, means: Means) -> Settings:
    task = load_task(build.task_name(search.task), split=search.split)
    if search.max_tokens:
        task = replace(task, settings=replace(task.settings, max_tokens=search.max_tokens))
    dev, test = task.split(search.dev, search.test)
    rule: Rule = "density" if search.rule == "density" else "accuracy"
    return Settings(
        dev=dev,
        test=test,
        vector=SteeringVector.load(build.folder / VECTOR),
        layers=build.swept_layers,
        strengths=parse_strengths(search.strengths),
        phase=build.recipe.phase,
        rule=rule,
        margin=search.margin,
        parallel=means.engine.get("parallel", 8),
        nll=search.nll,
    )


def _gguf(build: Build, quant: str, means: Means) -> Path:
    """The model in a type, fetched, converted and quantised if need be."""
    threads = means.engine.get("threads")
    return models.gguf_for(build.model.folder, quant, revision=build.revision, threads=threads, progress=means.say)


def _reference(build: Build, means: Means) -> "Reference":
    from edge_steer.reference import Reference

    means.progress("loading the reference", 0, 1)
    return Reference.load(build.model.folder, revision=build.revision, threads=means.engine.get("threads"))


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("edge-steer", "llama-cpp-python")}


def _key(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _write(build: Build, name: Path, value: object) -> None:
    with replacing(build.folder / name) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
