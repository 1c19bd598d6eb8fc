"""The commands eval and compare: methods side by side on tasks, and two runs on the same problems.

Takes click's strings and folders of results, prints figures. Rows are on disk before anything is printed.
"""

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_steer.core.errors import EdgeSteerError
from edge_steer.terminal.options import FOLDER, engine_options, steering_from, steering_options
from edge_steer.terminal.progress import NOTES, progress_bar, say
from edge_steer.terminal.tables import print_table

if TYPE_CHECKING:
    from edge_steer.core.backend import Backend, EngineOptions
    from edge_steer.evaluation.figures import Comparison, Figure, Summary
    from edge_steer.tasks.load import Protocol
    from edge_steer.tasks.task import Task


NAMES = {"accuracy": "accuracy", "steps": "steps", "tokens": "tokens", "density": "density", "nll": "NLL"}
ALL_TASKS = "all tasks, weighted by their problems"
MIN_DISCORDANT = 6  # with fewer McNemar's exact p stays above 0.05, whichever way they fall


@click.command("eval")
@click.argument("model")
@click.option(
    "--task",
    "tasks",
    required=True,
    multiple=True,
    help="Tasks, as gsm8k,math500: a name, NAME=FILE, or a task.toml of your own.",
)
@click.option("--file", "files", multiple=True, metavar="TASK=FILE", help="Read a task from its published file.")
@click.option("--split", help="Split of a task that has several.")
@click.option("--limit", type=click.IntRange(1), help="Only the first problems of each task.")
@click.option(
    "--protocol",
    type=click.Choice(["densesteer", "bias-only"]),
    default="densesteer",
    show_default=True,
    help="The paper whose prompts, lengths and sampling are used where no option says otherwise.",
)
@click.option("--methods", help="Of unsteered,steered,dense-prompt.  [default: unsteered, and steered with a --vector]")
@click.option("--samples", type=click.IntRange(1), help="Completions of each problem.")
@click.option("--prompt", help="Prompt template with {question}.")
@click.option("--system", help="System message; '' is none.")
@click.option("-n", "--max-tokens", type=click.IntRange(1))
@click.option("--temperature", type=click.FloatRange(0), help="0 is greedy.")
@click.option("--top-k", type=click.IntRange(0), help="0 is off.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="1 is off.")
@click.option("--min-p", type=click.FloatRange(0, 1), help="0 is off.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1))
@click.option("--nll/--no-nll", default=True, show_default=True, help="Score each text under the unsteered model.")
@click.option(
    "--grading-seconds",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Time limit for grading an answer.",
)
@click.option("--backend", "runtime", type=click.Choice(["llama", "torch"]), default="llama", show_default=True)
@click.option("--quant", help="Quantise MODEL to this type first (cached).")
@click.option("--revision", help="Commit of a hub model.")
@click.option("--out", type=FOLDER, help="Folder of the results.  [default: results/<model>/<digest of the settings>]")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@steering_options
@engine_options
def eval_command(
    model: str,
    tasks: tuple[str, ...],
    files: tuple[str, ...],
    split: str | None,
    limit: int | None,
    protocol: "Protocol",
    methods: str | None,
    nll: bool,
    grading_seconds: float,
    runtime: str,
    quant: str | None,
    revision: str | None,
    out: Path | None,
    as_json: bool,
    vectors: tuple[str, ...],
    layers: str | None,
    strength: float,
    phase: str,
    **rest: Any,
) -> None:
    """Evaluate MODEL on tasks: accuracy, steps, tokens, density and NLL, methods side by side.

    MODEL is a GGUF file, a Hugging Face folder or a hub id. Every completion is a row on disk before the next is
    counted; the same command goes on where it was stopped.
    """
    from edge_steer.evaluation import evaluate, results
    from edge_steer.tasks.grading import Graders

    steering = steering_from(vectors, layers, strength, phase)
    names = methods.split(",") if methods else ["unsteered", *(["steered"] if steering else [])]
    changes = {key: rest.pop(key) for key in ("samples", "prompt", "system", "max_tokens")}
    sampling = {key: rest.pop(key) for key in ("temperature", "top_k", "top_p", "min_p", "seed")}
    found = [_changed(task, changes, sampling) for task in _load(tasks, files, protocol, split, limit)]
    for task in found:
        evaluate.methods_of(names, task, steering)
    with contextlib.ExitStack() as stack:
        graders = stack.enter_context(Graders(seconds=grading_seconds))
        load = _torch if runtime == "torch" else _llama
        backend, identity = load(stack, model, quant, revision, rest["engine"])
        header = evaluate.header_of(
            **identity, tasks=found, methods=names, steering=steering, nll=nll, grading_seconds=grading_seconds
        )
        if out is None:
            key = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:12]
            out = Path("results", identity["model"]["name"].split("/")[-1], key)
        say(f"rows go to {out / results.ROWS}")
        progress = stack.enter_context(progress_bar())
        cells = evaluate.make(
            out, header, backend, found, names, steering, graders=graders, progress=progress, nll=nll
        )  # fmt: skip
        written = results.save(out, header, cells)
    if as_json:
        click.echo(json.dumps(written))
        return
    _print_summaries(results.summaries(cells))
    _print_comparisons(results.comparisons(cells))
    click.echo(f"wrote {out / results.ROWS} and {results.SUMMARY}")


@click.command("compare")
@click.argument("before", metavar="A[:METHOD]")
@click.argument("after", metavar="B[:METHOD]")
@click.option("--json", "as_json", is_flag=True)
def compare_command(before: str, after: str, as_json: bool) -> None:
    """Paired comparison of two result folders of eval, A and B, on the problems that both hold.

    Without a METHOD each method that both hold is compared with itself.
    """
    from edge_steer.evaluation import results

    (one, first), (other, second) = _side(before), _side(after)
    (header, left), (other_header, right) = results.load(one), results.load(other)
    if first or second:
        methods = [(first or str(second), second or str(first))]
    else:
        methods = [(name, name) for name in header["methods"] if name in other_header["methods"]]
    found = results.between(left, right, methods)
    if not found:
        raise EdgeSteerError(
            f"no task with a method that both hold: {one} has {_held(left)}; {other} has {_held(right)}"
        )
    if as_json:
        click.echo(json.dumps([{"task": task, **asdict(comparison)} for task, comparison in found]))
        return
    for task, described in header["tasks"].items():
        if described["digest"] != other_header["tasks"].get(task, described)["digest"]:
            say(f"{task}: the two hold different sets of problems; those of the same id are compared")
    click.echo(f"{other} minus {one}")
    _print_comparisons(found)


def _load(
    names: tuple[str, ...], files: tuple[str, ...], protocol: "Protocol", split: str | None, limit: int | None
) -> "list[Task]":
    from edge_steer.tasks.load import load_task

    asked = [name.strip() for given in names for name in given.split(",")]
    at = dict(_assignment(given) for given in files)
    if unknown := [name for name in at if name not in asked]:
        raise click.UsageError(f"--file names the task {unknown[0]!r}, which no --task asks for")
    tasks = [load_task(name, protocol=protocol, file=at.get(name), split=split, limit=limit) for name in asked]
    if len({task.name for task in tasks}) < len(tasks):
        raise click.UsageError("a task is named twice")
    return tasks


def _assignment(given: str) -> tuple[str, Path]:
    name, sign, path = given.partition("=")
    if not (name and sign and path):
        raise click.UsageError(f"--file {given!r}: write TASK=FILE")
    return name, Path(path)


def _changed(task: "Task", changes: Mapping[str, Any], sampling: Mapping[str, Any]) -> "Task":
    """The task with the settings that were given in place of the protocol's."""
    given = {key: value for key, value in changes.items() if value is not None}
    if "system" in given:
        given["system"] = given["system"] or None
    drawn = {key: value for key, value in sampling.items() if value is not None}
    settings = replace(task.settings, **given, sampling=replace(task.settings.sampling, **drawn))
    return replace(task, settings=settings)


def _llama(
    stack: contextlib.ExitStack, model: str, quant: str | None, revision: str | None, options: "EngineOptions"
) -> "tuple[Backend, dict[str, Any]]":
    """A GGUF in llama.cpp, and what identifies its numbers."""
    from edge_steer.llama.engine import Engine
    from edge_steer.llama.library import system_info
    from edge_steer.models import quantize
    from edge_steer.storage.files import digest
    from edge_steer.storage.gguf_header import read_header

    path = quantize.gguf_for(model, quant, revision=revision, progress=NOTES)
    engine = stack.enter_context(Engine.load(path, options))
    return engine, {
        "model": {"name": path.stem, "digest": digest(path), "parameters": read_header(path).parameters},
        "backend": {"name": "llama.cpp", **asdict(engine.options)},
        "versions": {**_versions("edge-steer", "math-verify", "sympy"), **system_info()},
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
        "versions": _versions("edge-steer", "math-verify", "sympy", "torch", "transformers"),
    }


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}


def _side(given: str) -> tuple[Path, str | None]:
    folder, colon, method = given.rpartition(":")
    return (Path(folder), method) if colon and not Path(given).is_dir() else (Path(given), None)


def _held(cells: Iterable[tuple[str, str]]) -> str:
    return "; ".join(", ".join(cell) for cell in cells) or "no rows"


def _print_summaries(summaries: "Mapping[tuple[str, str], Summary]") -> None:
    for task in dict.fromkeys(task for task, _ in summaries):
        of = {method: summary for (name, method), summary in summaries.items() if name == task}
        print_table(
            ["", *NAMES.values(), "cut off", "errors"],
            (
                [method, *(_figure(n, s.figures.get(n)) for n in NAMES), str(s.truncated), str(s.errors)]
                for method, s in of.items()
            ),
            f"{task or ALL_TASKS}, {next(iter(of.values())).samples} problems: means with 95% intervals",
        )
    if any(figure.interval is None for summary in summaries.values() for figure in summary.figures.values()):
        click.echo("where an interval is missing there are too few problems to bootstrap one")


def _print_comparisons(comparisons: "list[tuple[str, Comparison]]") -> None:
    for task in dict.fromkeys(task for task, _ in comparisons):
        found = [comparison for name, comparison in comparisons if name == task]
        print_table(
            ["", *NAMES.values(), "lost / gained", "p"],
            (
                [
                    f"{c.after}\n- {c.before}",
                    *(_figure(name, c.differences.get(name), "+") for name in NAMES),
                    "" if c.lost is None else f"{c.lost} / {c.gained}",
                    "" if c.p_value is None else f"{c.p_value:.2g}",
                ]
                for c in found
            ),
            f"{task or ALL_TASKS}: differences on the same {found[0].problems} problems; p: McNemar's exact test",
        )
        for c in found:
            if c.lost is not None and c.gained is not None and c.lost + c.gained < MIN_DISCORDANT:
                click.echo(
                    f"{c.after} - {c.before}: {c.lost + c.gained} problems solved by one alone are too few for p < 0.05"
                )
            if c.left_out:
                click.echo(f"{c.after} - {c.before}: left out {c.left_out} problems that only one of them has")


def _figure(name: str, figure: "Figure | None", sign: str = "") -> str:
    """A mean, and in a second line its interval."""
    if figure is None:
        return ""
    scale, digits = {"accuracy": (100, "1f"), "tokens": (1, "1f"), "nll": (1, "3f")}.get(name, (1, "2f"))
    mean, *ends = (f"{scale * value:{sign}.{digits}}" for value in (figure.mean, *(figure.interval or ())))
    unit = "%" if name == "accuracy" else ""
    return f"{mean}{unit}\n{'..'.join(ends)}" if ends else f"{mean}{unit}"
