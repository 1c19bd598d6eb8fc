"""The steps of a build that make pairs: generate, rewrite, check."""

from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import Progress
from edge_steer.llama.engine import Engine
from edge_steer.pairs import checks, pair, rewrite, solutions
from edge_steer.pairs import pair as pairs_pair
from edge_steer.pairs.endpoint import Endpoint
from edge_steer.recipes.build import REWRITTEN, Build, rules_of
from edge_steer.recipes.build_recipe import MadePairs
from edge_steer.recipes.recipe import BUILT_PAIRS
from edge_steer.recipes.step import (
    CHECKS,
    REWRITE_TOKENS,
    Made,
    Means,
    model_gguf,
    step_key,
    step_versions,
    write_json,
)
from edge_steer.storage.files import digest
from edge_steer.storage.records import Store
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.load import load_task
from edge_steer.tasks.task import Task


def generate_step(build: Build, means: Means) -> Made:
    made = settings_of_pairs(build)
    task, good = _calibration(build, made, means.progress), 0

    def count(solution: solutions.Solution) -> None:
        nonlocal good
        good += solution.whole and solution.correct
        means.progress("solving", min(good, made.count), made.count)

    path = model_gguf(build, made.quant, means)
    with Graders() as graders, Engine.load(path, means.engine) as engine:
        model, backend = {"name": path.stem, "digest": digest(path)}, {"name": "llama.cpp", **asdict(means.engine)}
        header = solutions.header_of(task, model, backend, step_versions())
        file = Path("build", f"solutions-{step_key(header)}.jsonl")
        with Store.open(build.folder / file, header) as store:
            chosen = solutions.generate(
                engine, task, graders=graders, store=store, count=made.count, on_solution=count,
                at_once=means.engine.parallel,
            )  # fmt: skip
    if not chosen:
        raise EdgeSteerError(f"{build.folder / file}: no solution of {task.name} is right and whole")
    if len(chosen) < made.count:
        means.progress.note(f"{len(chosen)} of {made.count} solutions wanted: {task.name} has no more problems")
    return Made((file,), {"solutions": len(chosen), "tokens": sum(solution.tokens for solution in chosen)})


def rewrite_step(build: Build, means: Means) -> Made:
    made = settings_of_pairs(build)
    told = solutions.load_chosen(build.folder / next(iter(build.steps["generate"]["outputs"])))
    with ExitStack() as stack:
        name: dict[str, object]
        if local := build.rewriter_file:
            engine = stack.enter_context(Engine.load(local, means.engine))
            ask, name = rewrite.by_model(engine, REWRITE_TOKENS), {"name": local.stem, "digest": digest(local)}
        else:
            endpoint = endpoint_of(made)
            ask, name = endpoint.ask, {"name": endpoint.model, "endpoint": endpoint.shown}
        header = rewrite.header_of(name)
        file = Path("build", f"rewrites-{step_key(header)}.jsonl")
        store = stack.enter_context(Store.open(build.folder / file, header))
        total, done = len(rewrite.unfinished(told, store)), 0

        def count(_: rewrite.Rewrite) -> None:
            nonlocal done
            done += 1
            means.progress("rewriting", done, total)

        found, left_out = rewrite.pairs_of(told, rewrite.rewrite(told, ask, store, count))
        used = rewrite.usage(store.records)
    for left, why in left_out:
        means.progress.note(f"left out: {left}: {why}")
    pair.write(build.folder / REWRITTEN, found)
    return Made((file, REWRITTEN), {"pairs": len(found), "left out": len(left_out), "used": asdict(used)})


def check_step(build: Build, means: Means) -> Made:
    made, found = settings_of_pairs(build), pairs_pair.read(build.folder / REWRITTEN)
    task = load_task(build.task_name(made.task), split=made.split or solutions.CALIBRATION.get(made.task))
    with (
        Graders() as graders,
        Engine.load(model_gguf(build, made.quant, means), means.engine) as engine,
    ):
        checked = checks.check(found, lambda text: len(engine.encode(text, start=False)), graders, task.grader)
        checked = checks.score(engine, found, checked, means.progress)
    reasons = checks.select(checked, rules_of(made))
    for row, why in zip(checked, reasons, strict=True):
        if why:
            means.progress.note(f"dropped: {row.name}: {'; '.join(why)}")
    kept = [pair for pair, why in zip(found, reasons, strict=True) if not why]
    if not kept:
        raise EdgeSteerError(f"none of {len(found)} pairs passes the checks, as said above; mend [pairs]")
    pairs_pair.write(build.folder / BUILT_PAIRS, kept)
    write_json(build, CHECKS, [{**asdict(row), "reasons": why} for row, why in zip(checked, reasons, strict=True)])
    return Made((BUILT_PAIRS, CHECKS), {"pairs": len(kept), "dropped": len(found) - len(kept)})


def settings_of_pairs(build: Build) -> MadePairs:
    if isinstance(build.recipe.pairs, Path):
        raise ValueError("pairs are given; there are none to make")
    return build.recipe.pairs


def endpoint_of(made: MadePairs) -> Endpoint:
    return Endpoint(made.rewriter or rewrite.MODEL, made.base_url, REWRITE_TOKENS)


def _calibration(build: Build, made: MadePairs, progress: Progress) -> Task:
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
    progress.note(
        f"{len(shared)} of {len(task.samples)} problems of {task.name} are evaluation problems; they are left out"
    )
    if len(shared) == len(task.samples):
        raise EdgeSteerError(f"every problem of {task.name} is an evaluation problem; name another split in [pairs]")
    return replace(task, samples=tuple(sample for sample in task.samples if sample.id not in shared))
