"""The commands eval, compare and perplexity: methods side by side, two runs, their texts.

Takes click's strings and folders of results, prints figures. Rows are on disk before anything is printed.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_steer.terminal.group import resumable
from edge_steer.terminal.options import (
    FOLDER,
    MODEL,
    TASK,
    SteeringChoice,
    TaskChoice,
    engine_options,
    grading_option,
    json_option,
    nll_option,
    quant_option,
    revision_option,
    runtime_option,
    steering_from,
    steering_options,
    task_options,
)
from edge_steer.terminal.progress import NOTES, progress_bar, say
from edge_steer.terminal.tables import print_table

if TYPE_CHECKING:
    from edge_steer.core.backend import EngineOptions
    from edge_steer.evaluation.figures import Comparison, Figure, Summary
    from edge_steer.evaluation.harness import HarnessComparison
    from edge_steer.models.load import Runtime
    from edge_steer.papers.seeds import MethodScores
    from edge_steer.tasks.rows import Method

ALL_TASKS = "all tasks, weighted by their problems"


@click.command("eval")
@click.argument("model", type=MODEL)
@click.option(
    "--task", "tasks", required=True, multiple=True, type=TASK,
    help="Tasks, as gsm8k,math500: a name, NAME=FILE, or a task.toml of your own.",
)  # fmt: skip
@click.option("--problems", type=click.IntRange(1), help="Only the first problems of each task.")
@click.option(
    "--seeds",
    metavar="SEEDS",
    help="Evaluate once with each of these seeds, as 0,1,2: accuracies with their standard deviation.",
)
@task_options
@click.option(
    "--methods",
    help="Of unsteered,steered,dense-prompt,rewriting-prompt.  [default: unsteered, and steered with a --vector]",
)
@click.option(
    "--method",
    "named_vectors",
    multiple=True,
    metavar="NAME=FILE[:STRENGTH]",
    help="A vector as a method of its own, steered as its file says; repeatable.",
)
@click.option(
    "--rules",
    "rules_source",
    default="conservative",
    show_default=True,
    metavar="NAME|FILE",
    help="What rewriting-prompt says: the rules of rewriting, as in `pairs rewrite`.",
)
@steering_options
@nll_option
@grading_option
@runtime_option
@quant_option
@revision_option
@engine_options
@click.option(
    "-o", "--out", type=FOLDER, help="Folder of the results.  [default: results/<model>/<key of the settings>]"
)
@json_option
@resumable
def eval_command(
    model: str,
    tasks: tuple[str, ...],
    problems: int | None,
    seeds: str | None,
    task_choice: TaskChoice,
    methods: str | None,
    named_vectors: tuple[str, ...],
    rules_source: str,
    steering_choice: SteeringChoice,
    nll: bool,
    grading_seconds: float,
    runtime: "Runtime",
    quant: str | None,
    revision: str | None,
    engine: "EngineOptions",
    out: Path | None,
    as_json: bool,
) -> None:
    """Evaluate MODEL on tasks: accuracy, steps, tokens, density and NLL, methods side by side.

    MODEL is a GGUF file, a Hugging Face folder or a hub id. Every completion is a row on disk before the next is
    counted; the same command goes on where it was stopped.
    """
    from edge_steer.evaluation.evaluate import EvaluationSettings, evaluate_tasks, methods_of
    from edge_steer.evaluation.results import ROWS, SUMMARY, comparisons, default_folder, summaries
    from edge_steer.models.load import load
    from edge_steer.pairs.rules import instruction, read_rules
    from edge_steer.papers.seeds import evaluate_seeds

    numbers = _numbers(seeds) if seeds else []
    steering = steering_from(steering_choice)
    names = methods.split(",") if methods else ["unsteered", *(["steered"] if steering else [])]
    rewriting = instruction(read_rules(rules_source)) if "rewriting-prompt" in names else None
    settings = EvaluationSettings(
        tasks=tuple(task_choice.load(name.strip(), problems) for text in tasks for name in text.split(",")),
        methods=(*methods_of(names, steering, rewriting=rewriting).values(), *_named_methods(named_vectors)),
        nll=nll,
        grading_seconds=grading_seconds,
    )
    with (
        progress_bar() as progress,
        load(model, quant, runtime=runtime, revision=revision, options=engine, progress=progress) as backend,
    ):
        header = settings.header(backend.provenance)
        if numbers:
            folder = out or default_folder({**header, "seeds": numbers}, prefix="seeds-")
            say(f"rows go to {folder}, a folder for each seed")
            scores = evaluate_seeds(backend, settings, numbers, folder, progress=progress)
            _print_seeds(scores, as_json)
            return
        folder = out or default_folder(header)
        say(f"rows go to {folder / ROWS}")
        cells = evaluate_tasks(backend, settings, folder=folder, progress=progress)
    if as_json:
        click.echo((folder / SUMMARY).read_text("utf-8").rstrip())
        return
    _print_summaries(summaries(cells))
    _print_comparisons(comparisons(cells))
    click.echo(f"wrote {folder / ROWS} and {SUMMARY}")


@click.command("compare")
@click.argument("before", metavar="A[:METHOD]")
@click.argument("after", metavar="B[:METHOD]")
@json_option
def compare_command(before: str, after: str, as_json: bool) -> None:
    """Paired comparison of two result folders of eval, A and B, on the problems that both hold.

    Without a METHOD each method that both hold is compared with itself. A and B may also be two runs of lm-eval:
    folders, or files, of what --log_samples wrote.
    """
    from edge_steer.evaluation.harness import compare_samples, has_samples
    from edge_steer.evaluation.results import compare_folders, other_problems

    if has_samples(before) or has_samples(after):
        _print_harness(compare_samples(before, after), as_json)
        return
    (one, first), (other, second) = _folder_and_method(before), _folder_and_method(after)
    method = first or second
    by_task = compare_folders(one, other, (first or method, second or method) if method else None)
    if as_json:
        click.echo(json.dumps([{"task": task, **asdict(comparison)} for task, comparison in by_task]))
        return
    for task in other_problems(one, other):
        say(f"{task}: the two hold different sets of problems; those of the same id are compared")
    click.echo(f"{other} minus {one}")
    _print_comparisons(by_task)


@click.command()
@click.argument("model", type=MODEL)
@click.argument("folder", type=FOLDER)
@runtime_option
@quant_option
@engine_options
@json_option
def perplexity(
    model: str, folder: Path, runtime: "Runtime", quant: str | None, engine: "EngineOptions", as_json: bool
) -> None:
    """Log of the mean perplexity of the texts in FOLDER, each alone, under MODEL unsteered.

    FOLDER is of an eval, or of a sweep, of which every dev cell is scored and perplexity.png is drawn. MODEL is the
    one that made the texts. perplexity.json is written there.
    """
    from edge_steer.models.load import load
    from edge_steer.papers.perplexity import draw_perplexities, folder_perplexities, is_sweep

    with (
        progress_bar() as progress,
        load(model, quant, runtime=runtime, options=replace(engine, parallel=1), progress=progress) as backend,
    ):
        results = folder_perplexities(backend, folder, progress=progress)
    if as_json:
        click.echo(json.dumps([asdict(result) for result in results]))
    else:
        print_table(
            ["task", "method", "log of the mean perplexity", "texts"],
            ([result.task, result.method, f"{result.log_mean:.3f}", str(result.texts)] for result in results),
        )
    if is_sweep(folder):
        click.echo(f"wrote {draw_perplexities(folder, results)}", err=True)


def _print_harness(comparisons: "Sequence[HarnessComparison]", as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([asdict(comparison) for comparison in comparisons]))
        return
    print_table(
        ["task", "metric", "before", "after", "difference", "questions", "lost / gained", "p"],
        (
            [
                c.task or "all tasks",
                f"{c.metric}, {c.filter}",
                f"{c.before:.4g}",
                f"{c.after:.4g}",
                f"{c.difference:+.4f}" + (f"\n{c.interval[0]:+.4f} to {c.interval[1]:+.4f}" if c.interval else ""),
                str(c.questions),
                "" if c.lost is None else f"{c.lost} / {c.gained}",
                "" if c.p_value is None else f"{c.p_value:.2g}",
            ]
            for c in comparisons
        ),
        "after minus before on the same questions, with 95% intervals; p: McNemar's exact test",
    )
    if left_out := sum(c.left_out for c in comparisons if c.task):
        click.echo(f"left out {left_out} values of questions that only one of them has")


def _numbers(seeds: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", seeds):
        raise click.UsageError(f"seeds {seeds!r} are no whole numbers with commas between, such as 0,1,2")
    return [int(seed) for seed in seeds.split(",")]


def _print_seeds(scores: "list[MethodScores]", as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([asdict(of_method) for of_method in scores]))
        return
    _print_scores(scores)


def _print_scores(scores: "list[MethodScores]") -> None:
    """Accuracies over seeds, with the average over tasks that all count the same."""
    from edge_steer.papers.seeds import tasks_of

    tasks = tasks_of(scores)
    print_table(
        ["", *tasks, *(["average"] if len(tasks) > 1 else [])],
        (
            [
                of_method.method,
                *(str(of_method.score(task) or "") for task in tasks),
                *([str(of_method.average(tasks) or "")] if len(tasks) > 1 else []),
            ]
            for of_method in scores
        ),
        "accuracy in percent: mean and population standard deviation over seeds; the average is unweighted",
    )


def _named_methods(sources: Sequence[str]) -> "Iterator[Method]":
    """The methods of NAME=FILE[:STRENGTH]."""
    from edge_steer.tasks.rows import Method
    from edge_steer.vectors.steer import steering_of_file

    for text in sources:
        name, _, source = text.partition("=")
        if not (name and source):
            raise click.UsageError(f"--method {text!r} is not NAME=FILE[:STRENGTH]")
        yield Method(name, (steering_of_file(source, progress=NOTES),))


def _folder_and_method(text: str) -> tuple[Path, str | None]:
    folder, colon, method = text.rpartition(":")
    return (Path(folder), method) if colon and not Path(text).is_dir() else (Path(text), None)


def _print_summaries(summaries: "Mapping[tuple[str, str], Summary]") -> None:
    from edge_steer.evaluation.figures import FIGURES

    for task in dict.fromkeys(task for task, _ in summaries):
        by_method = {method: summary for (name, method), summary in summaries.items() if name == task}
        print_table(
            ["", *(kind.label for kind in FIGURES.values()), "cut off", "errors"],
            (
                [method, *_figure_texts(summary.figures, FIGURES), str(summary.truncated), str(summary.errors)]
                for method, summary in by_method.items()
            ),
            f"{task or ALL_TASKS}, {next(iter(by_method.values())).samples} problems: means with 95% intervals",
        )
        _print_wording(
            [(method, summary.figures) for method, summary in by_method.items()],
            f"{task or ALL_TASKS}: what line breaks do not change",
        )
    for (task, method), summary in summaries.items():
        if summary.boxed is not None and summary.lenient is not None and summary.boxed != summary.lenient:
            click.echo(
                f"{task or ALL_TASKS}, {method}: {summary.boxed:.1%} if only the last box counts, "
                f"{summary.lenient:.1%} with answers without a box"
            )
    if any(figure.interval is None for summary in summaries.values() for figure in summary.figures.values()):
        click.echo("where an interval is missing there are too few problems to bootstrap one")


def _print_wording(columns: "Sequence[tuple[str, Mapping[str, Figure]]]", title: str, *, signed: bool = False) -> None:
    """The figures that line breaks cannot move."""
    from edge_steer.evaluation.figures import WORDING

    print_table(
        ["", *(kind.label for kind in WORDING.values())],
        ([name, *_figure_texts(figures, WORDING, signed=signed)] for name, figures in columns),
        title,
    )


def _print_comparisons(comparisons: "Sequence[tuple[str, Comparison]]") -> None:
    from edge_steer.evaluation.figures import FIGURES, MIN_DISCORDANT

    for task in dict.fromkeys(task for task, _ in comparisons):
        of_task = [comparison for name, comparison in comparisons if name == task]
        print_table(
            ["", *(kind.label for kind in FIGURES.values()), "lost / gained", "p"],
            (
                [
                    f"{c.after}\n- {c.before}",
                    *_figure_texts(c.differences, FIGURES, signed=True),
                    "" if c.lost is None else f"{c.lost} / {c.gained}",
                    "" if c.p_value is None else f"{c.p_value:.2g}",
                ]
                for c in of_task
            ),
            f"{task or ALL_TASKS}: differences on the same {of_task[0].problems} problems; p: McNemar's exact test",
        )
        _print_wording(
            [(f"{c.after}\n- {c.before}", c.differences) for c in of_task],
            f"{task or ALL_TASKS}: differences in what line breaks do not change",
            signed=True,
        )
        for c in of_task:
            if c.lost is not None and c.gained is not None and c.lost + c.gained < MIN_DISCORDANT:
                click.echo(
                    f"{c.after} - {c.before}: {c.lost + c.gained} problems solved by one alone are too few for p < 0.05"
                )
            if c.left_out:
                click.echo(f"{c.after} - {c.before}: left out {c.left_out} problems that only one of them has")


def _figure_texts(figures: "Mapping[str, Figure]", names: "Iterable[str]", *, signed: bool = False) -> list[str]:
    """Each figure's mean, and its interval in a second line; "" for one that is not there."""
    from edge_steer.evaluation.figures import interval_text, mean_text

    return [
        f"{mean_text(name, figures[name], signed=signed)}\n{interval_text(name, figures[name], signed=signed)}".rstrip()
        if name in figures
        else ""
        for name in names
    ]
