"""The steps of a build that make pairs: generate, rewrite, check."""

from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import Progress
from edge_steer.models.load import load
from edge_steer.pairs.checks import check_pairs
from edge_steer.pairs.contrasts import trace_pairs
from edge_steer.pairs.criteria import Criteria
from edge_steer.pairs.endpoint import PUBLIC, Endpoint
from edge_steer.pairs.pair import ContrastPairs, read_pairs, write_pairs
from edge_steer.pairs.rewrite import (
    CHARACTERS_PER_TOKEN,
    DEFAULT_REWRITER,
    ModelRewriter,
    Rewriter,
    Usage,
    dense_pairs,
    estimate_usage,
    rewrite_solutions,
    rewrites_header,
)
from edge_steer.pairs.rules import BUILT_IN, read_rules, rules_digest
from edge_steer.pairs.solutions import Solution, generate_solutions, read_chosen_solutions, solutions_header
from edge_steer.recipes.build import Build
from edge_steer.recipes.build_recipe import PairTable
from edge_steer.recipes.recipe import BUILT_PAIRS
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
from edge_steer.tasks.calibration import CALIBRATION_SPLITS, leave_out_evaluation_problems, load_calibration_task
from edge_steer.tasks.load import load_task
from edge_steer.tasks.task import Task

REWRITTEN = Path("build", "rewritten.jsonl")
CHECKS = Path("build", "checks.json")
REWRITE_TOKENS = 8192  # of a rewrite at most, thinking included
LENGTH_RATIO = 0.8  # length of a rewrite over that of its solution, about


def pairs_are_given(build: Build) -> bool:
    return isinstance(build.recipe.pairs, Path)


def check_endpoint(build: Build) -> None:
    """Errors: EdgeSteerError where an endpoint is to rewrite and its key is missing."""
    table = _pair_table(build)
    if REWRITE.state(build).kind == "to do" and not table.larger and not _rewriter_file(build):
        _endpoint(table)


def _generate_inputs(build: Build) -> dict[str, object]:
    table = _pair_table(build)
    return {
        "model": build.model_inputs(table.quant),
        "task": task_inputs(build, table.task),
        "split": table.split,
        "count": table.count,
        "max_tokens": table.max_tokens,
    }


def _generate(build: Build, context: StepContext) -> StepOutput:
    table = _pair_table(build)
    task = _calibration_task(build, table, context.progress)
    file, chosen = _solve(build, table.quant, task, table.count, "solutions", context)
    if not chosen:
        raise EdgeSteerError(f"{build.folder / file}: no solution of {task.name} is right and whole")
    if len(chosen) < table.count:
        context.progress.note(f"{len(chosen)} of {table.count} solutions: {task.name} has no more problems")
    return StepOutput((file,), {"solutions": len(chosen), "tokens": sum(solution.tokens for solution in chosen)})


def _solve(
    build: Build, quant: str, task: Task, count: int, name: str, context: StepContext
) -> tuple[Path, list[Solution]]:
    """Solutions by the build's model, and the file that keeps them."""
    with load(
        build.source, quant, revision=build.revision, options=context.engine, progress=context.progress
    ) as engine:
        file = Path("build", f"{name}-{provenance.key(solutions_header(task, engine.provenance))}.jsonl")
        chosen = generate_solutions(
            engine, task, build.folder / file, count=count, at_once=context.engine.parallel, progress=context.progress
        )
    return file, chosen


def _calibration_task(build: Build, table: PairTable, progress: Progress) -> Task:
    """The problems to solve: without those that the sweep draws, or that the task's test split asks."""
    task = _task(build, table)
    evaluations: list[Task] = []
    if sweep := build.recipe.sweep:
        evaluations += load_task(build.recipe.task_name(sweep.task), split=sweep.split).split(sweep.dev, sweep.test)
    if (table.split or CALIBRATION_SPLITS.get(table.task, "test")) != "test":
        evaluations.append(load_task(table.task))
    return leave_out_evaluation_problems(task, evaluations, progress)


def _task(build: Build, table: PairTable) -> Task:
    """The task of [pairs] as it is asked."""
    name, protocol = build.recipe.task_name(table.task), build.recipe.asking.protocol
    task = load_calibration_task(name, protocol=protocol, split=table.split)
    return with_recipe_settings(build, task, table.max_tokens)


def _generate_work(build: Build) -> Work:
    table = _pair_table(build)
    tokens = float(table.count * SOLUTION_TOKENS)
    return Work(
        f"{table.count} right solutions to {table.task} by {table.quant}, about {tokens:,.0f} tokens", decoded=tokens
    )


def _rewrite_inputs(build: Build) -> dict[str, object]:
    table = _pair_table(build)
    solutions = GENERATE.output_digest(build)
    if larger := build.larger:
        return {"solutions": solutions, "larger model": larger.model_inputs(table.larger_quant)}
    file = _rewriter_file(build)
    return {
        "solutions": solutions,
        "rewriter": digest(file) if file else table.rewriter,
        "base_url": table.base_url,
        "rules": rules_digest(_rules(build)),
        **({"candidates": table.candidates} if table.candidates > 1 else {}),
    }


def _rewrite(build: Build, context: StepContext) -> StepOutput:
    own = read_chosen_solutions(GENERATE.output(build))
    contrasted, file, usage = (_larger_pairs if build.larger else _dense_pairs)(build, own, context)
    for line in contrasted.left_out:
        context.progress.note(f"left out: {line}")
    write_pairs(contrasted.pairs, build.folder / REWRITTEN)
    used = {"used": asdict(usage)} if usage else {}
    return StepOutput((file, REWRITTEN), {"pairs": len(contrasted.pairs), "left out": len(contrasted.left_out), **used})


def _dense_pairs(build: Build, own: list[Solution], context: StepContext) -> tuple[ContrastPairs, Path, Usage | None]:
    """Own solutions and their rewrites (DenseSteer), the file of the rewrites, and what they took."""
    table = _pair_table(build)
    with ExitStack() as stack:
        rewriter: Rewriter
        if local := _rewriter_file(build):
            rewriter = ModelRewriter(stack.enter_context(load(local, options=context.engine)), REWRITE_TOKENS)
        else:
            rewriter = _endpoint(table)
        rules = _rules(build)
        file = Path("build", f"rewrites-{provenance.key(rewrites_header(rewriter, rules))}.jsonl")
        rewriting = rewrite_solutions(
            own, rewriter, build.folder / file, rules=rules, candidates=table.candidates, progress=context.progress
        )
    return dense_pairs(own, rewriting.rewrites), file, rewriting.total_usage


def _larger_pairs(build: Build, own: list[Solution], context: StepContext) -> tuple[ContrastPairs, Path, Usage | None]:
    """A larger model's right solutions and the own ones to the same problems (InFamilySteer), and their file."""
    table, larger = _pair_table(build), build.larger
    if larger is None or table.larger_quant is None:
        raise ValueError("the recipe names no larger model")
    task, asked = _task(build, table), {solution.id for solution in own}
    task = replace(task, samples=tuple(sample for sample in task.samples if sample.id in asked))
    file, solved = _solve(larger, table.larger_quant, task, len(task.samples), "larger", context)
    return trace_pairs(solved, own), file, None


def _rewrite_work(build: Build) -> Work:
    table = _pair_table(build)
    count, tokens = solution_count(build)
    if table.larger:
        return Work(f"{count} solutions by {table.larger} in {table.larger_quant}, about {tokens:,.0f} tokens")
    rules = _rules(build)
    if GENERATE.state(build).kind == "done":
        own = read_chosen_solutions(GENERATE.output(build))
        usage = estimate_usage(own, rules, candidates=table.candidates)
        sent, received = usage.prompt_tokens, usage.completion_tokens
    else:
        sent = round(table.candidates * (count * (len(rules) / CHARACTERS_PER_TOKEN + PROMPT_TOKENS) + tokens))
        received = round(table.candidates * tokens)
    amount = f"{table.candidates * count} requests, about {sent:,} tokens sent and {received:,} received"
    if local := _rewriter_file(build):
        return Work(f"{amount}, by {local.name} here", decoded=received, read=sent)
    address = table.base_url or f"$OPENAI_BASE_URL or {PUBLIC}"
    return Work(f"{amount}, by {table.rewriter or DEFAULT_REWRITER} of {address}")


def _check_inputs(build: Build) -> dict[str, object]:
    table = _pair_table(build)
    return {
        "pairs": REWRITE.output_digest(build, REWRITTEN),
        "model": build.model_inputs(table.quant),
        "rules": asdict(_criteria(table)),
    }


def _check(build: Build, context: StepContext) -> StepOutput:
    table = _pair_table(build)
    task = _task(build, table)
    pairs = read_pairs(build.folder / REWRITTEN)
    with load(
        build.source, table.quant, revision=build.revision, options=context.engine, progress=context.progress
    ) as engine:
        report = check_pairs(
            pairs, backend=engine, criteria=_criteria(table), kind=task.grader, progress=context.progress
        )
    for name, reasons in report.dropped.items():
        context.progress.note(f"dropped: {name}: {'; '.join(reasons)}")
    if not report.passing:
        raise EdgeSteerError(f"none of {len(pairs)} pairs passes the checks, for the reasons above; change [pairs]")
    write_pairs(report.passing, build.folder / BUILT_PAIRS)
    write_json(build.folder / CHECKS, report.records())
    return StepOutput((BUILT_PAIRS, CHECKS), {"pairs": len(report.passing), "dropped": len(report.dropped)})


def _check_work(build: Build) -> Work:
    count, tokens = solution_count(build)
    quant = _pair_table(build).quant
    return Work(f"{count} pairs, their NLL under {quant}", read=tokens * (1 + LENGTH_RATIO) + 2 * count * PROMPT_TOKENS)


def solution_count(build: Build) -> tuple[int, float]:
    """How many solutions there are or will be, and how many tokens they have."""
    if GENERATE.state(build).kind == "done":
        findings = GENERATE.record(build).findings
        return findings["solutions"], float(findings["tokens"])
    count = _pair_table(build).count
    return count, float(count * SOLUTION_TOKENS)


def _pair_table(build: Build) -> PairTable:
    if isinstance(build.recipe.pairs, Path):
        raise ValueError("the recipe names a file of pairs; there are none to make")
    return build.recipe.pairs


def _criteria(table: PairTable) -> Criteria:
    rewrites = table.larger is None
    return Criteria(
        numbers=table.numbers and rewrites,
        max_nll_ratio=table.max_nll_ratio,
        keep_lowest=table.keep_lowest,
        denser=rewrites,
        best_candidate=table.candidates > 1,
    )


def _rules(build: Build) -> str:
    """The rules of rewriting. Errors: EdgeSteerError."""
    name = _pair_table(build).rules
    return read_rules(name if name in BUILT_IN else build.recipe.near(name))


def _rewriter_file(build: Build) -> Path | None:
    """The GGUF that rewrites; None where an endpoint does."""
    table = _pair_table(build)
    if not table.rewriter or not table.is_file_rewriter:
        return None
    return readable(build.recipe.near(table.rewriter), "a GGUF model that rewrites")


def _endpoint(table: PairTable) -> Endpoint:
    return Endpoint(table.rewriter or DEFAULT_REWRITER, table.base_url, REWRITE_TOKENS)


GENERATE = Step("generate", (), _generate_inputs, _generate, _generate_work, pairs_are_given)
REWRITE = Step("rewrite", (GENERATE,), _rewrite_inputs, _rewrite, _rewrite_work, pairs_are_given)
CHECK = Step("check", (REWRITE,), _check_inputs, _check, _check_work, pairs_are_given)
