"""`edge-steer pairs`: generate solutions, rewrite them, check the pairs, show them; contrast.py makes other pairs.

Takes click's values, calls the library, prints what it gives and what it leaves out.
"""

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_steer.core.errors import EdgeSteerError
from edge_steer.terminal import options
from edge_steer.terminal.group import resumable
from edge_steer.terminal.parameters import FILE, MODEL, TASK
from edge_steer.terminal.progress import NOTES, progress_bar, say
from edge_steer.terminal.tables import print_table

if TYPE_CHECKING:
    from edge_steer.core.backend import EngineOptions
    from edge_steer.models.load import Runtime
    from edge_steer.pairs.checks import CheckReport
    from edge_steer.pairs.rewrite import Rewriter
    from edge_steer.pairs.solutions import Solution
    from edge_steer.tasks.answers import Kind

LISTED = 10  # lines of what was left out; more are only counted
ENDPOINT_TOKENS, LOCAL_TOKENS = 8192, 2048  # most of a rewrite: endpoints think out of sight
MILLION = "for a million tokens"


@click.group("pairs")
def pairs_group() -> None:
    """Contrastive pairs: make, rewrite, check, look at them."""


@pairs_group.command()
@click.argument("model", type=MODEL)
@click.option("--task", "task_name", type=TASK, required=True, help="A task's name, NAME=FILE or a task.toml.")
@click.option("-o", "--output", type=FILE, required=True, help="Where to keep the solutions (.jsonl).")
@click.option("--solutions", "count", type=click.IntRange(1), default=50, show_default=True,
              help="How many solutions to use.")  # fmt: skip
@click.option("--problems", type=click.IntRange(1), help="Only the first problems of the task.")
@click.option("--per-problem", type=click.IntRange(1),
              help="Most solutions used of a problem.  [default: 1; all --samples with --style]")  # fmt: skip
@click.option("--style", type=click.Choice(["dense"]),
              help="Solve under a dense instruction; for contrast own-samples.")  # fmt: skip
@click.option("--wrong", is_flag=True, help="Use wrong solutions too.")
@options.evaluation_option
@options.grading_option
@options.runtime_option
@options.quant_option
@options.revision_option
@options.task_options
@options.engine_options
@resumable
def generate(
    model: str,
    task_name: str,
    output: Path,
    count: int,
    problems: int | None,
    per_problem: int | None,
    style: str | None,
    wrong: bool,
    evaluations: tuple[str, ...],
    grading_seconds: float,
    runtime: "Runtime",
    quant: str | None,
    revision: str | None,
    task_choice: options.TaskChoice,
    engine: "EngineOptions",
) -> None:
    """Solve calibration problems with MODEL itself, graded; right and whole solutions are used.

    MODEL is a GGUF file, a Hugging Face folder or a hub id. The same command goes on where a stopped one ended.
    """
    from edge_steer.evaluation.evaluate import DENSE_PROMPT
    from edge_steer.models.load import load
    from edge_steer.pairs.solutions import generate_solutions, read_solutions
    from edge_steer.tasks import calibration
    from edge_steer.tasks.grading import Graders

    if style and task_choice.system:
        raise click.UsageError("--style has a system message of its own; leave out --system")
    split = task_choice.split or calibration.CALIBRATION_SPLITS.get(task_name)
    system = DENSE_PROMPT if style else task_choice.system
    task = replace(task_choice, split=split, system=system).load(task_name, problems)
    per_problem = per_problem or (task.settings.samples if style else 1)
    excluded = calibration.evaluation_tasks(task, evaluations, NOTES)
    task = calibration.leave_out_evaluation_problems(task, excluded, NOTES)
    with (
        Graders(seconds=grading_seconds) as graders,
        progress_bar() as progress,
        load(model, quant, runtime=runtime, revision=revision, options=engine, progress=progress) as backend,
    ):
        chosen = generate_solutions(
            backend, task, output, count=count, per_problem=per_problem, wrong=wrong,
            at_once=engine.parallel, graders=graders, progress=progress,
        )  # fmt: skip
    _print_solutions(read_solutions(output), len(chosen), count)
    following = f"contrast own-samples {output} SOLUTIONS" if style else f"rewrite {output}"
    click.echo(f"wrote {output}; next: edge-steer pairs {following} -o pairs.jsonl")


@pairs_group.command()
@click.argument("solutions_file", metavar="SOLUTIONS", type=FILE)
@click.option("-o", "--output", type=FILE, help="Where to write the pairs (.jsonl).")
@click.option("--model", help="Model of the endpoint.  [default: gpt-5.1, as DenseSteer]")
@click.option("--base-url", help="The endpoint's address.  [default: $OPENAI_BASE_URL, else OpenAI's]")
@click.option("--rewriter", type=MODEL, metavar="MODEL", help="Rewrite with this model on this machine instead.")
@click.option("--rules", "rules_source", default="conservative", show_default=True, metavar="NAME|FILE",
              help="Rules: conservative, ours, paraphrase, or a file with {problem} and {solution}.")  # fmt: skip
@click.option("--examples", type=FILE, help="Pairs (.jsonl) to show the rewriter as worked examples.")
@click.option("--candidates", type=click.IntRange(1), default=1, show_default=True, help="Rewrites of each solution.")
@click.option("--solutions", "count", type=click.IntRange(1), help="Only the first solutions.")
@click.option("-n", "--max-tokens", type=click.IntRange(1),
              help="Most tokens of a rewrite, thinking included.  [default: 8192, 2048 with --rewriter]")  # fmt: skip
@click.option("--temperature", type=click.FloatRange(0), help="[default: the endpoint's own, 0 with --rewriter]")
@click.option("--reasoning-effort", help="As the endpoint knows it, such as low.  [default: its own]")
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Requests at once.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=300.0, show_default=True,
              help="Seconds for one attempt.")  # fmt: skip
@click.option("--attempts", type=click.IntRange(1), default=8, show_default=True, help="Attempts at a request.")
@click.option("--price-in", type=click.FloatRange(0), help=f"Price {MILLION} sent, to know the cost.")
@click.option("--price-out", type=click.FloatRange(0), help=f"Price {MILLION} received.")
@click.option("--dry-run", is_flag=True, help="Send nothing: print a prompt and an estimate.")
@options.engine_options
@resumable
def rewrite(
    solutions_file: Path,
    output: Path | None,
    model: str | None,
    base_url: str | None,
    rewriter: str | None,
    rules_source: str,
    examples: Path | None,
    candidates: int,
    count: int | None,
    max_tokens: int | None,
    temperature: float | None,
    price_in: float | None,
    price_out: float | None,
    dry_run: bool,
    engine: "EngineOptions",
    **sending: Any,
) -> None:
    """Have SOLUTIONS rewritten densely, by an OpenAI-compatible endpoint or a --rewriter, and write the pairs.

    The key is taken from $OPENAI_API_KEY; a server on this machine needs none. Only the problem and the solution are
    sent. Each finished rewrite is kept in a file beside the pairs, and is not asked for again. Of several candidates
    'pairs check --best-candidate' keeps the likeliest.
    """
    from edge_steer.models.load import load
    from edge_steer.pairs.endpoint import Endpoint
    from edge_steer.pairs.pair import read_pairs, write_pairs
    from edge_steer.pairs.rewrite import (
        DEFAULT_REWRITER,
        ModelRewriter,
        dense_pairs,
        estimate_usage,
        prompt_of,
        rewrite_solutions,
    )
    from edge_steer.pairs.rules import read_rules, with_examples
    from edge_steer.pairs.solutions import read_chosen_solutions

    if (price_in is None) != (price_out is None):
        raise click.UsageError("--price-in and --price-out belong together")
    prices = None if price_in is None or price_out is None else (price_in, price_out)
    if rewriter and (model or base_url or sending["reasoning_effort"]):
        raise click.UsageError(
            "--rewriter is a model on this machine; leave out --model, --base-url and --reasoning-effort"
        )
    rules = read_rules(rules_source)
    if examples:
        rules = with_examples(rules, read_pairs(examples))
    solutions = read_chosen_solutions(solutions_file)[:count]
    if dry_run:
        click.echo(prompt_of(solutions[0], rules))
        estimate = estimate_usage(solutions, rules, candidates=candidates)
        click.echo(f"\nnothing sent; estimate of all: {estimate.text(prices)}")
        return
    if output is None:
        raise click.UsageError("name the pairs to write with --output, or only look with --dry-run")
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(progress_bar())
        rewriting_model: Rewriter
        if rewriter:
            backend = stack.enter_context(load(rewriter, options=engine, progress=progress))
            rewriting_model = ModelRewriter(backend, max_tokens or LOCAL_TOKENS, temperature or 0.0)
        else:
            tokens, name = max_tokens or ENDPOINT_TOKENS, model or DEFAULT_REWRITER
            rewriting_model = Endpoint(name, base_url, tokens, temperature, **sending)
        rewriting = rewrite_solutions(
            solutions, rewriting_model, output.with_name(f"{output.stem}.rewrites.jsonl"), rules=rules,
            candidates=candidates, progress=progress,
        )  # fmt: skip
    dense = dense_pairs(solutions, rewriting.rewrites)
    list_left_out(dense.left_out)
    if rewriting.usage.requests:
        click.echo(f"used: {rewriting.usage.text(prices)}")
    if rewriting.total_usage != rewriting.usage:
        click.echo(f"used over all runs: {rewriting.total_usage.text(prices)}")
    write_pairs(dense.pairs, output)
    again = "; the same command asks again for the rest" if dense.left_out else ""
    click.echo(f"wrote {output}: {len(dense.pairs)} pairs of {len(solutions)} solutions{again}")
    best = " --model MODEL --best-candidate" if candidates > 1 else ""
    click.echo(f"next: edge-steer pairs check {output} -o checked.jsonl{best}")


@pairs_group.command()
@click.argument("file", type=FILE)
@click.option("-o", "--output", type=FILE, help="Write the pairs that pass here (.jsonl).")
@click.option("--model", type=MODEL, help="The model the pairs are for: its tokenizer counts.  [default: words count]")
@click.option("--numbers/--no-numbers", default=True, show_default=True,
              help="Drop a pair whose rewrite drops or adds a computed number.")  # fmt: skip
@click.option("--nll", is_flag=True, help="Score both sides under --model.")
@click.option("--max-nll-ratio", type=click.FloatRange(0, min_open=True),
              help="Drop rewrites with more than this times the NLL of the own solution.")  # fmt: skip
@click.option("--best-candidate", is_flag=True, help="Of the pairs of one negative, keep the one of the lowest NLL.")
@click.option("--keep-lowest", type=click.IntRange(1), help="Of the pairs that pass, keep those of the lowest NLL.")
@click.option("--only-nll", is_flag=True, help="Judge pairs of any kind by their NLL alone.")
@click.option("--traces", multiple=True, metavar="NAME=SOLUTIONS",
              help="Score another model's solutions to the same problems too.")  # fmt: skip
@click.option("--plot", type=FILE, help="Plot the NLL of every text (.png).")
@click.option("--grader", "kind", type=click.Choice(["math", "letter"]), default="math", show_default=True)
@options.grading_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a pair, then one of the NLL.")
@options.engine_options
def check(
    file: Path,
    output: Path | None,
    model: str | None,
    numbers: bool,
    nll: bool,
    max_nll_ratio: float | None,
    best_candidate: bool,
    keep_lowest: int | None,
    only_nll: bool,
    traces: tuple[str, ...],
    plot: Path | None,
    kind: "Kind",
    grading_seconds: float,
    as_json: bool,
    engine: "EngineOptions",
) -> None:
    """Check that each rewrite is right, denser, has the same computed numbers and, if asked, is likely enough.

    What is dropped is listed with the reason. Without --output the status is 1 if a pair is dropped.
    """
    from edge_steer.models.load import load
    from edge_steer.pairs.checks import check_pairs
    from edge_steer.pairs.criteria import Criteria
    from edge_steer.pairs.pair import read_pairs, write_pairs
    from edge_steer.pairs.solutions import read_solutions
    from edge_steer.tasks.grading import Graders

    numbers, rewrites = numbers and not only_nll, not only_nll
    criteria = Criteria(numbers, max_nll_ratio, keep_lowest, rewrites, rewrites, best_candidate)
    if only_nll and not criteria.by_nll:
        raise click.UsageError("--only-nll needs --max-nll-ratio, --best-candidate or --keep-lowest")
    scored = nll or criteria.by_nll or bool(traces) or plot is not None
    if scored and not model:
        raise click.UsageError("an NLL is that of a model: name it with --model")
    others = {name: read_solutions(path) for name, path in map(_name_and_path, traces)}
    pairs = read_pairs(file)
    with contextlib.ExitStack() as stack:
        graders = stack.enter_context(Graders(seconds=grading_seconds))
        progress = stack.enter_context(progress_bar())
        backend = stack.enter_context(load(model, options=engine, progress=progress)) if model else None
        count_tokens = (lambda text: len(backend.encode(text, start=False))) if backend else None
        report = check_pairs(
            pairs, backend=backend if scored else None, count_tokens=count_tokens, criteria=criteria,
            graders=graders, kind=kind, traces=others, progress=progress,
        )  # fmt: skip
    if plot:
        from edge_steer.evaluation.plots import plot_likelihoods

        texts = {row.source: list(row.values.values()) for row in report.likelihoods}
        plot_likelihoods(texts, f"under {Path(str(model)).name}", plot)
    if as_json:
        _print_json(report)
    else:
        _print_report(report, "tokens" if model else "words")
        passed = [*["right and denser"] * rewrites, *["with the same computed numbers"] * numbers]
        passed += ["likely enough"] * criteria.by_nll
        click.echo(f"{len(report.passing)} of {len(pairs)} pairs are {', '.join(passed)}")
    if output:
        if not report.passing:
            raise EdgeSteerError(f"no pair passes; {output} is not written")
        write_pairs(report.passing, output)
        say(f"wrote {output}")
    elif report.dropped:
        sys.exit(1)


@pairs_group.command()
@click.argument("file", type=FILE)
@click.option("--pairs", "count", type=click.IntRange(1), default=3, show_default=True, help="How many pairs.")
def show(file: Path, count: int) -> None:
    """Print pairs side by side: the text of the style to leave and that of the style to steer towards."""
    from edge_steer.pairs.pair import read_pairs

    pairs = read_pairs(file)
    for pair in pairs[:count]:
        negative, positive = reversed(pair.sides)
        same = positive.prompt == negative.prompt
        print_table(
            ["sparse (negative)", "dense (positive)"],
            [[side.answer if same else f"{side.prompt_text}\n\n{side.answer}" for side in (negative, positive)]],
            positive.prompt_text if same else None,
        )
    click.echo(f"{min(count, len(pairs))} of {len(pairs)} pairs shown")


def _name_and_path(text: str) -> tuple[str, Path]:
    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise click.UsageError(f"--traces {text!r}: write NAME=FILE")
    return name, Path(path)


def list_left_out(lines: Sequence[str]) -> None:
    """What gave no pair, and why, on stderr."""
    more = [f"{len(lines) - LISTED} more"] if len(lines) > LISTED else []
    for line in (*lines[:LISTED], *more):
        say(f"left out: {line}")


def _print_solutions(solutions: "Sequence[Solution]", chosen: int, count: int) -> None:
    outcomes = Counter(solution.outcome for solution in solutions)
    rows = [[name, str(outcomes[name])] for name in ("right", "wrong", "cut off", "error")]
    problems = len({solution.id for solution in solutions})
    print_table(["", ""], rows, f"{len(solutions)} solutions of {problems} problems")
    for solution in solutions:
        if solution.error:
            say(f"{solution.id}: {solution.error}")
    short = "" if chosen == count else f", {count} were asked: give more problems, or several --samples"
    click.echo(f"{chosen} solutions to use{short}")


def _print_json(report: "CheckReport") -> None:
    for record in report.records():
        click.echo(json.dumps(record))
    if report.likelihoods:
        click.echo(json.dumps({"nll": [asdict(row) for row in report.likelihoods]}))


def _print_report(report: "CheckReport", unit: str) -> None:
    rows = [[name, f"{negative:.1f}", f"{positive:.1f}"] for name, (negative, positive) in report.means.items()]
    print_table(["", "sparse", "dense"], rows, f"means over {len(report.pairs)} pairs, counted in {unit}")
    rows = []
    for row in report.likelihoods:
        interval = "" if row.interval is None else "{:.3f}..{:.3f}".format(*row.interval)
        rows.append([row.source, str(len(row.values)), f"{row.mean:.3f}", interval, f"{row.ratio:.2f}"])
    if rows:
        print_table(["", "texts", "NLL", "95% interval", "to own"], rows, "NLL per token in nats under the model")
    for remark in report.remarks:
        click.echo(remark)
