"""Calibration problems: what a model solves to make pairs or is trained on, without those that evaluations use.

Takes names of tasks and Tasks, gives a Task. It knows nothing of models, solutions or pairs.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.tasks.load import load_task
from edge_steer.tasks.protocols import Protocol
from edge_steer.tasks.task import Sample, Task

CALIBRATION_SPLITS = {"gsm8k": "train", "wordproblems": "calibration"}  # splits that no evaluation uses
LISTED = 10  # problems listed as left out; more are only counted


def load_calibration_task(
    name: str, *, protocol: Protocol = "densesteer", split: str | None = None, limit: int | None = None
) -> Task:
    """`load_task`, but without a split it takes the one of CALIBRATION_SPLITS. Errors: EdgeSteerError."""
    return load_task(name, protocol=protocol, split=split or CALIBRATION_SPLITS.get(name), limit=limit)


def evaluation_tasks(task: Task, names: Sequence[str] = (), progress: Progress = SILENT) -> list[Task]:
    """The tasks whose problems `task` must not hold: those named, else the test split of the same task.

    A task without a calibration split has no such test split. One that cannot be read is noted, not raised.
    Errors: EdgeSteerError for a name that is no task.
    """
    if names:
        return [load_task(name) for name in names]
    if task.name not in CALIBRATION_SPLITS:
        return []
    try:
        return [load_task(task.name)]
    except EdgeSteerError as error:
        progress.note(f"not compared with the test split: {error}; or name evaluation tasks, as {task.name}=FILE")
        return []


def leave_out_evaluation_problems(task: Task, evaluations: Sequence[Task], progress: Progress = SILENT) -> Task:
    """`task` without the problems that one of `evaluations` has too; notes say what was compared and left out.

    Problems are the same if `normal_text` of their questions is. Splits of a generated task share none, so nothing is
    said where none is compared with it. Errors: EdgeSteerError if no problem is left.
    """
    if not evaluations and not task.draw:
        progress.note("disjointness from evaluation problems was not checked; name the evaluation tasks")
    left_out: dict[str, str] = {}
    for evaluation in evaluations:
        shared = shared_problems(task.samples, evaluation.samples)
        left_out |= {sample.id: f"{evaluation.name} {other.id}" for sample, other in shared}
        progress.note(
            f"{len(shared)} of {len(task.samples)} problems are among the {len(evaluation.samples)} of "
            f"{evaluation.name}"
        )
    for identity, other in list(left_out.items())[:LISTED]:
        progress.note(f"left out: {identity}: is {other}")
    if len(left_out) > LISTED:
        progress.note(f"left out: {len(left_out) - LISTED} more")
    if len(left_out) == len(task.samples):
        raise EdgeSteerError(f"every problem of {task.name} is an evaluation problem; take another task or split")
    return replace(task, samples=tuple(sample for sample in task.samples if sample.id not in left_out))


def shared_problems(samples: Sequence[Sample], evaluation: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """Each sample that is also an evaluation problem, with that problem: `normal_text` is compared."""
    known = {normal_text(sample.question): sample for sample in evaluation}
    return [(sample, known[text]) for sample in samples if (text := normal_text(sample.question)) in known]


def normal_text(text: str) -> str:
    """Lower-case letters and digits in Unicode's compatibility form, with nothing between them but single spaces."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold().replace("_", " ")))
