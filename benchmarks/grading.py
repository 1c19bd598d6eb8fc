"""Do gold answers grade as right? Every published benchmark's own answers through the grader that judges the models.

For each file: each gold answer, stated as "The answer is \\boxed{...}.", against itself, which should be right; and the
next problem's gold answer, where it is another, which should be wrong. Failures are listed below the table. An answer
that is wrong as text but equal as mathematics (1,2 and 2,1) is rightly counted as right.

Files: those in --data, named as in docs/tasks.md; else fetched from their pinned sources.
"""

import json
import os
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from edge_steer.core.errors import EdgeSteerError
from edge_steer.tasks.answers import without_tolerance
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.load import TASKS, load_task
from edge_steer.tasks.task import Task

FILES = {
    "gsm8k": "gsm8k_test.jsonl",
    "math500": "math500.jsonl",
    "amc23": "amc23.jsonl",
    "olympiadbench": "olympiadbench.jsonl",
    "aime24": "aime24.jsonl",
    "aime25": "aime25.jsonl",
    "minervamath": "minerva_math.jsonl",
    "logiqa": "logiqa_test.txt",
}


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), default=os.environ.get("EDGE_STEER_DATA"))
@click.option("--task", "names", multiple=True, type=click.Choice(TASKS), default=TASKS)
@click.option("--workers", default=2, show_default=True)
@click.option("--seconds", default=10.0, show_default=True, help="The limit of one answer.")
def main(data: Path | None, names: tuple[str, ...], workers: int, seconds: float) -> None:
    """Print the rates of every benchmark, the failures, and one JSON line."""
    table = Table("benchmark", "problems", "own gold right", "other gold wrong", "graded per second")
    results: dict[str, dict[str, float]] = {}
    failures: list[str] = []
    with Graders(workers, seconds) as graders:
        graders.submit("\\boxed{1}", "1").result()
        for name in names:
            local = data / FILES[name] if data and name in FILES else None
            try:
                task = load_task(name, file=local if local and local.is_file() else None)
            except EdgeSteerError as error:
                click.echo(error, err=True)
                continue
            row, failed = rates(task, graders)
            results[name] = row
            failures += failed
            table.add_row(
                name, f"{row['problems']}", f"{row['right']:.2%}", f"{row['wrong']:.2%}", f"{row['per_second']:.0f}"
            )
    Console(width=120).print(table)
    for line in failures:
        click.echo(line)
    click.echo(json.dumps(results))


def rates(task: Task, graders: Graders) -> tuple[dict[str, float], list[str]]:
    """How many of a task's gold answers grade as they should, and a line for each that does not."""
    start = time.perf_counter()
    own = [graders.submit(statement(sample.answer), sample.answer, task.grader) for sample in task.samples]
    others = [
        (sample, other, graders.submit(statement(other.answer), sample.answer, task.grader))
        for sample, other in zip(task.samples, (*task.samples[1:], task.samples[0]), strict=True)
        if sample.answer != other.answer
    ]
    failed = []
    for sample, future in zip(task.samples, own, strict=True):
        if not (graded := future.result()).correct:
            failed.append(f"{task.name} {sample.id}: {sample.answer} graded wrong {graded.error}")
    right = 1 - len(failed) / len(task.samples)
    mistaken = [
        f"{task.name} {sample.id}: {other.answer} graded right for {sample.answer}"
        for sample, other, future in others
        if future.result().correct
    ]
    wrong = 1 - len(mistaken) / len(others)
    seconds = time.perf_counter() - start
    row = {
        "problems": len(task.samples),
        "right": right,
        "wrong": wrong,
        "per_second": (len(own) + len(others)) / seconds,
    }
    return row, failed + mistaken


def statement(answer: str) -> str:
    """A text that ends in this answer."""
    return f"The answer is \\boxed{{{without_tolerance(answer)}}}."


if __name__ == "__main__":
    main()
