"""Two runs of the lm-evaluation-harness compared question by question, from what `--log_samples` wrote.

Takes files or folders of samples, gives paired differences of every metric. It does not need the harness.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.stats import MIN_VALUES, Interval, bootstrap, mcnemar
from edge_steer.storage.files import read_lines

SAMPLES = re.compile(r"samples_.+_\d{4}-\d\d-\d\dT[\d.:-]+\.jsonl")
Measure = tuple[str, str, str]  # task, filter, metric
Question = tuple[str, int, str]  # task, doc_id, doc_hash
Run = dict[Measure, dict[Question, float]]


@dataclass(frozen=True)
class HarnessComparison:
    """One metric of two runs on the questions that both answered; `left_out` counts those of only one.

    task: "" is all tasks together. difference: after minus before. interval: at 95%, None for fewer than MIN_VALUES
    questions. lost, gained, p_value: McNemar's exact test, None for a metric that is not 0 or 1.
    """

    task: str
    filter: str
    metric: str
    questions: int
    left_out: int
    before: float
    after: float
    difference: float
    interval: Interval | None
    lost: int | None
    gained: int | None
    p_value: float | None


def has_samples(path: str | Path) -> bool:
    """Whether a path is a file of samples, or a folder with such files at any depth."""
    return bool(_files(Path(path)))


def read_samples(path: str | Path) -> Run:
    """Every numeric metric of a run, by question.

    path: a file samples_<task>_<date>.jsonl, or a folder that holds such files of one run.
    Errors: EdgeSteerError for no such file, two of one task, or a line that is no sample.
    """
    files = _files(Path(path))
    if not files:
        raise EdgeSteerError(f"{path} holds no samples_<task>_<date>.jsonl; run the harness with its samples logged")
    run: Run = {}
    seen: dict[str, Path] = {}
    for file in files:
        task = file.name.removeprefix("samples_").rpartition("_")[0]
        if task in seen:
            raise EdgeSteerError(f"{seen[task]} and {file.name} are two runs of {task}; name one of the files")
        seen[task] = file
        for question, filter_name, metrics in _samples(file, task):
            for metric, value in metrics.items():
                run.setdefault((task, filter_name, metric), {})[question] = value
    return run


def compare_samples(before: str | Path, after: str | Path) -> list[HarnessComparison]:
    """Two runs, metric by metric, on the questions that both have; with several tasks also all of them together.

    A question is the same if its number and the digest of its content are. Errors: EdgeSteerError for nothing in
    common, or as `read_samples`.
    """
    one, other = _with_totals(read_samples(before)), _with_totals(read_samples(after))
    compared = [_compare(measure, one[measure], other[measure]) for measure in one if measure in other]
    if not (comparisons := [comparison for comparison in compared if comparison.questions]):
        raise EdgeSteerError(f"{before} and {after} have no question and metric in common")
    return comparisons


def _compare(measure: Measure, before: Mapping[Question, float], after: Mapping[Question, float]) -> HarnessComparison:
    shared = [question for question in before if question in after]
    pairs = np.array([(before[question], after[question]) for question in shared]).reshape(-1, 2)
    changes = pairs[:, 1] - pairs[:, 0]
    lost = gained = None
    if np.isin(pairs, (0, 1)).all():
        lost, gained = int((changes < 0).sum()), int((changes > 0).sum())
    task, filter_name, metric = measure
    return HarnessComparison(
        task=task,
        filter=filter_name,
        metric=metric,
        questions=len(shared),
        left_out=len(before.keys() ^ after.keys()),
        before=float(pairs[:, 0].mean()) if shared else 0.0,
        after=float(pairs[:, 1].mean()) if shared else 0.0,
        difference=float(changes.mean()) if shared else 0.0,
        interval=bootstrap(changes) if len(shared) >= MIN_VALUES else None,
        lost=lost,
        gained=gained,
        p_value=None if lost is None or gained is None else mcnemar(lost, gained),
    )


def _with_totals(run: Run) -> Run:
    """The run with each metric over all tasks too, as the task "", where several have it."""
    totals: Run = {}
    for (_, filter_name, metric), values in run.items():
        totals.setdefault(("", filter_name, metric), {}).update(values)
    tasks = {measure: sum(measure[1:] == other[1:] for other in run) for measure in totals}
    return {**run, **{measure: values for measure, values in totals.items() if tasks[measure] > 1}}


def _samples(file: Path, task: str) -> Iterator[tuple[Question, str, dict[str, float]]]:
    for number, line in enumerate(read_lines(file, "samples of the harness, one JSON object a line"), 1):
        try:
            sample = json.loads(line)
            question = task, int(sample["doc_id"]), str(sample["doc_hash"])
            yield question, str(sample["filter"]), _numbers(sample)
        except (ValueError, KeyError, TypeError) as error:
            raise EdgeSteerError(f"{file}, line {number} is no sample of the harness: {error!r}") from None


def _numbers(sample: Mapping[str, Any]) -> dict[str, float]:
    values = {metric: sample[metric] for metric in sample["metrics"]}
    return {metric: float(value) for metric, value in values.items() if isinstance(value, int | float)}


def _files(path: Path) -> list[Path]:
    candidates = sorted(path.rglob("samples_*.jsonl")) if path.is_dir() else [path] if path.is_file() else []
    return [file for file in candidates if SAMPLES.fullmatch(file.name)]
