"""The commands pairs generate and pairs rewrite: from problems to solutions, and to pairs.

Takes click's strings and files, prints what was made and what was left out. What a model or an endpoint gives is on
disk before the next is counted.
"""

import contextlib
import importlib.metadata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_steer.core.errors import EdgeSteerError
from edge_steer.terminal.options import FILE, engine_options
from edge_steer.terminal.progress import NOTES, progress_bar, say
from edge_steer.terminal.tables import print_table

if TYPE_CHECKING:
    from edge_steer.core.backend import Backend, EngineOptions
    from edge_steer.llama.engine import Engine
    from edge_steer.pairs.rewrite import Rewriter, Usage
    from edge_steer.pairs.solutions import Solution
    from edge_steer.tasks.load import Protocol
    from edge_steer.tasks.task import Sample, Task


LISTED = 10  # of what was left out; more are only counted
ENDPOINT_TOKENS, LOCAL_TOKENS = 8192, 2048  # most of a rewrite: endpoints think out of sight
MILLION = "for a million tokens"


@click.command()
@click.argument("model")
@click.option("--task", "task_name", required=True, help="A task's name, NAME=FILE, or a task.toml of your own.")
@click.option("-o", "--out", type=FILE, required=True, help="Where to keep the solutions (.jsonl).")
@click.option("--split", help="Split of the task.  [default: gsm8k train, wordproblems calibration]")
@click.option("--count", type=click.IntRange(1), default=50, show_default=True, help="Solutions wanted.")
@click.option("--limit", type=click.IntRange(1), help="Only the first problems of the task.")
@click.option("--samples", type=click.IntRange(1), help="Attempts at each problem; more than 1 need a temperature.")
@click.option("--per-problem", type=click.IntRange(1), default=1, show_default=True,
              help="Most solutions used of a problem.")  # fmt: skip
@click.option("--wrong", is_flag=True, help="Use wrong solutions too.")
@click.option("--evaluation", "evaluations", multiple=True, metavar="TASK",
              help="Leave out problems of this task, NAME=FILE or task.toml.  [default: the task's own test split]"
              )  # fmt: skip
@click.option("--protocol", type=click.Choice(["densesteer", "bias-only"]), default="densesteer", show_default=True,
              help="Whose prompts, lengths and sampling.")  # fmt: skip
@click.option("--prompt", help="Prompt template with {question}.")
@click.option("--system", help="System message.")
@click.option("-n", "--max-tokens", type=click.IntRange(1))
@click.option("--temperature", type=click.FloatRange(0), help="0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="1 is off.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1))
@click.option("--grading-seconds", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True,
              help="Time limit for grading an answer.")  # fmt: skip
@click.option("--backend", "runtime", type=click.Choice(["llama", "torch"]), default="llama", show_default=True)
@click.option("--quant", help="Quantise MODEL to this type first (cached).")
@click.option("--revision", help="Commit of a hub model.")
@engine_options
def generate(
    model: str,
    task_name: str,
    out: Path,
    split: str | None,
    count: int,
    limit: int | None,
    per_problem: int,
    wrong: bool,
    evaluations: tuple[str, ...],
    protocol: "Protocol",
    grading_seconds: float,
    runtime: str,
    quant: str | None,
    revision: str | None,
    **rest: Any,
) -> None:
    """Solve calibration problems with MODEL itself, graded; right and whole solutions are used.

    MODEL is a GGUF file, a Hugging Face folder or a hub id. The same command goes on where a stopped one ended.
    """
    from edge_steer.pairs import solutions
    from edge_steer.storage.records import Store
    from edge_steer.tasks.grading import Graders

    settings = {name: rest.pop(name) for name in ("samples", "prompt", "system", "max_tokens")}
    sampling = {name: rest.pop(name) for name in ("temperature", "top_p", "seed")}
    task = _changed(_task(task_name, split, limit, protocol), settings, sampling)
    task = _disjoint(task, _evaluations(task_name, task, evaluations))
    with contextlib.ExitStack() as stack:
        graders = stack.enter_context(Graders(seconds=grading_seconds))
        backend, identity = (_torch if runtime == "torch" else _llama)(stack, model, quant, revision, rest["engine"])
        store = stack.enter_context(Store.open(out, solutions.header_of(task, **identity)))
        progress = stack.enter_context(progress_bar())
        progress("solving", 0, count)
        good: dict[tuple[str, int], Solution] = {}

        def show(solution: "Solution") -> None:
            if solution.whole and (solution.correct or wrong):
                good[solution.id, solution.repeat] = solution
            progress("solving", min(len(good), count), count)

        chosen = solutions.generate(
            backend, task, graders=graders, store=store, count=count, at_once=rest["engine"].parallel,
            per_problem=per_problem, wrong=wrong, on_solution=show,
        )  # fmt: skip
    _print_solutions(solutions.load(out)[1], chosen, count)
    click.echo(f"wrote {out}; next: edge-steer pairs rewrite {out} -o pairs.jsonl")


@click.command()
@click.argument("solutions_file", metavar="SOLUTIONS", type=FILE)
@click.option("-o", "--out", type=FILE, help="Where to write the pairs (.jsonl).")
@click.option("--model", help="Model of the endpoint.  [default: gpt-5.1, as DenseSteer]")
@click.option("--base-url", help="The endpoint's address.  [default: $OPENAI_BASE_URL, else OpenAI's]")
@click.option("--rewriter", metavar="GGUF", help="Rewrite with this model on this machine instead: as MODEL elsewhere.")
@click.option("--limit", type=click.IntRange(1), help="Only the first solutions.")
@click.option("-n", "--max-tokens", type=click.IntRange(1),
              help="Most tokens of a rewrite, thinking included.  [default: 8192, 2048 with --rewriter]")  # fmt: skip
@click.option("--temperature", type=click.FloatRange(0), help="[default: the endpoint's own]")
@click.option("--reasoning-effort", help="As the endpoint knows it, such as low.  [default: its own]")
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Requests at once.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=300.0, show_default=True,
              help="Seconds for one attempt.")  # fmt: skip
@click.option("--attempts", type=click.IntRange(1), default=6, show_default=True, help="Attempts at a request.")
@click.option("--price-in", type=click.FloatRange(0), help=f"Price {MILLION} sent, to know the cost.")
@click.option("--price-out", type=click.FloatRange(0), help=f"Price {MILLION} received.")
@click.option("--dry-run", is_flag=True, help="Send nothing: print a prompt and an estimate.")
@engine_options
def rewrite(
    solutions_file: Path,
    out: Path | None,
    model: str | None,
    base_url: str | None,
    rewriter: str | None,
    limit: int | None,
    max_tokens: int | None,
    temperature: float | None,
    reasoning_effort: str | None,
    concurrency: int,
    timeout: float,
    attempts: int,
    price_in: float | None,
    price_out: float | None,
    dry_run: bool,
    engine: "EngineOptions",
) -> None:
    """Have SOLUTIONS rewritten densely, by an OpenAI-compatible endpoint or a --rewriter, and write the pairs.

    The key is taken from $OPENAI_API_KEY; a server on this machine needs none. Only the problem and the solution are
    sent. Each finished rewrite is kept in a file beside the pairs, and is not asked for again.
    """
    from edge_steer.pairs import pair, rewrite
    from edge_steer.pairs.endpoint import Endpoint
    from edge_steer.pairs.solutions import load_chosen
    from edge_steer.storage.records import Store

    if (price_in is None) != (price_out is None):
        raise click.UsageError("--price-in and --price-out belong together")
    prices = None if price_in is None or price_out is None else (price_in, price_out)
    if rewriter and (model or base_url):
        raise click.UsageError("--rewriter is a model on this machine; leave out --model and --base-url")
    solutions = load_chosen(solutions_file)[:limit]
    if dry_run:
        click.echo(rewrite.prompt_of(solutions[0]))
        click.echo(f"\nnothing sent; estimate of all: {_used(rewrite.estimate(solutions), prices)}")
        return
    if out is None:
        raise click.UsageError("name the pairs to write with --out, or only look with --dry-run")
    with contextlib.ExitStack() as stack:
        ask: Rewriter
        if rewriter:
            backend, identity = _llama(stack, rewriter, None, None, engine)
            ask, header = rewrite.by_model(backend, max_tokens or LOCAL_TOKENS), identity["model"]
        else:
            endpoint = Endpoint(
                model or rewrite.MODEL,
                base_url,
                max_tokens or ENDPOINT_TOKENS,
                temperature,
                reasoning_effort,
                timeout,
                attempts,
                concurrency,
            )
            ask = endpoint.ask
            header = {"name": endpoint.model, "endpoint": endpoint.shown,
                      "temperature": temperature, "reasoning_effort": reasoning_effort}  # fmt: skip
        store = stack.enter_context(Store.open(_kept_beside(out), rewrite.header_of(header)))
        progress = stack.enter_context(progress_bar())
        total = len(rewrite.unfinished(solutions, store))
        done = 0
        progress("rewriting", 0, total)

        def show(_: object) -> None:
            nonlocal done
            done += 1
            progress("rewriting", done, total)

        already = len(store.records)
        rewrites = rewrite.rewrite(solutions, ask, store, show)
        used = rewrite.usage(store.records[already:])
        ever = rewrite.usage(store.records)
    made, left_out = rewrite.pairs_of(solutions, rewrites)
    list_left_out(f"{name}: {why}" for name, why in left_out)
    if used.requests:
        click.echo(f"used: {_used(used, prices)}")
    if ever != used:
        click.echo(f"used over all runs: {_used(ever, prices)}")
    pair.write(out, made)
    again = "; the same command asks again for the rest" if left_out else ""
    click.echo(f"wrote {out}: {len(made)} pairs of {len(solutions)} solutions{again}")
    click.echo(f"next: edge-steer pairs check {out} -o checked.jsonl")


def list_left_out(lines: Iterable[str]) -> None:
    """What gave nothing, and why, on stderr."""
    listed = list(lines)
    for line in listed[:LISTED]:
        say(f"left out: {line}")
    if len(listed) > LISTED:
        say(f"left out: {len(listed) - LISTED} more")


def _task(name: str, split: str | None, limit: int | None, protocol: "Protocol") -> "Task":
    from edge_steer.pairs.solutions import CALIBRATION
    from edge_steer.tasks.load import load_task

    return load_task(name, protocol=protocol, split=split or CALIBRATION.get(name), limit=limit)


def _changed(task: "Task", settings: dict[str, Any], sampling: dict[str, Any]) -> "Task":
    given, drawn = ({k: v for k, v in values.items() if v is not None} for values in (settings, sampling))
    return replace(
        task, settings=replace(task.settings, **given, sampling=replace(task.settings.sampling, **drawn))
    )  # fmt: skip


def _evaluations(name: str, task: "Task", asked: tuple[str, ...]) -> "list[Task]":
    """The tasks whose problems are left out; by default the test split where this is another."""
    from edge_steer.pairs.solutions import CALIBRATION
    from edge_steer.tasks.load import load_task

    if asked:
        return [load_task(given) for given in asked]
    if task.name not in CALIBRATION:
        return []
    try:
        return [load_task(task.name)]
    except EdgeSteerError as error:
        say(f"not held against the test split: {error}; or name it with --evaluation {task.name}=FILE")
        return []


def _disjoint(task: "Task", evaluations: "Sequence[Task]") -> "Task":
    """The task without the problems that are evaluation problems too; says what was compared and left out."""
    from edge_steer.pairs.solutions import shared_problems

    if not evaluations:
        say("disjointness from evaluation problems was not checked; name them with --evaluation TASK")
    shared: dict[str, tuple[Sample, str]] = {}
    for evaluation in evaluations:
        found = shared_problems(task.samples, evaluation.samples)
        shared |= {mine.id: (mine, f"{evaluation.name} {other.id}") for mine, other in found}
        say(
            f"{len(found)} of {len(task.samples)} problems are among the {len(evaluation.samples)} of {evaluation.name}"
        )
    list_left_out(f"{identity}: is {other}" for identity, (_, other) in shared.items())
    if len(shared) == len(task.samples):
        raise EdgeSteerError(f"every problem of {task.name} is an evaluation problem; take another --task or --split")
    return replace(task, samples=tuple(sample for sample in task.samples if sample.id not in shared))


def _llama(
    stack: contextlib.ExitStack, model: str, quant: str | None, revision: str | None, options: "EngineOptions"
) -> "tuple[Engine, dict[str, Any]]":
    """A GGUF in llama.cpp, and what identifies its numbers."""
    from edge_steer.llama.engine import Engine
    from edge_steer.models import quantize
    from edge_steer.storage.files import digest

    path = quantize.gguf_for(model, quant, revision=revision, progress=NOTES)
    engine = stack.enter_context(Engine.load(path, options))
    return engine, {
        "model": {"name": path.stem, "digest": digest(path)},
        "backend": {"name": "llama.cpp", **asdict(engine.options)},
        "versions": _versions("edge-steer", "llama-cpp-python", "math-verify"),
    }


def _torch(
    stack: contextlib.ExitStack, model: str, quant: str | None, revision: str | None, options: "EngineOptions"
) -> "tuple[Backend, dict[str, Any]]":
    """A Hugging Face model in PyTorch, and what identifies its numbers."""
    from edge_steer.reference.model import Reference

    if quant:
        raise click.UsageError("--quant needs --backend llama: PyTorch runs the weights as they are, in float32")
    reference = Reference.load(model, revision=revision, threads=options.threads)
    return reference, {
        "model": {"name": reference.model.name, "digest": reference.model.revision},
        "backend": {"name": "torch", "dtype": "float32", "threads": options.threads},
        "versions": _versions("edge-steer", "torch", "transformers", "math-verify"),
    }


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}


def _kept_beside(out: Path) -> Path:
    """Where the finished rewrites of a file of pairs are kept."""
    return out.with_name(f"{out.stem}.rewrites.jsonl")


def _used(usage: "Usage", prices: tuple[float, float] | None) -> str:
    text = f"{usage.requests} requests, {usage.prompt_tokens:,} tokens sent, {usage.completion_tokens:,} received"
    if usage.uncounted:
        text += f" ({usage.uncounted} requests came without counts)"
    return text if prices is None else f"{text}, cost {usage.cost(*prices):.4f}"


def _print_solutions(solutions: "Sequence[Solution]", chosen: "Sequence[Solution]", count: int) -> None:
    what = Counter(
        "error" if s.finish == "error" else "cut off" if not s.whole else "right" if s.correct else "wrong"
        for s in solutions
    )
    rows = [[name, str(what[name])] for name in ("right", "wrong", "cut off", "error")]
    problems = len({solution.id for solution in solutions})
    print_table(["", ""], rows, f"{len(solutions)} solutions of {problems} problems")
    for solution in solutions:
        if solution.error:
            say(f"{solution.id}: {solution.error}")
    short = "" if len(chosen) == count else f", {count} were asked: give more problems, or several --samples"
    click.echo(f"{len(chosen)} solutions to use{short}")
