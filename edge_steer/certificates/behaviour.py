"""What both sides answer: the same problems, greedy, at several doses of a steering.

A dose is a factor on the strengths of a steering: 0 is unsteered, 1 is the steering itself. Takes a Backend, a task and
a Store, gives rows; from the rows of both sides gives figures, paired comparisons and the texts to compare on. Greedy
decoding amplifies rounding, so texts part where the model is undecided; the figures say whether that matters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import numpy as np

from edge_steer.core.backend import Backend, Tokens
from edge_steer.core.progress import Progress
from edge_steer.core.steering import Steering, described
from edge_steer.evaluation.evaluate import Evaluator
from edge_steer.evaluation.figures import Comparison, Summary, compare, summarise
from edge_steer.parity.findings import Finding, finding
from edge_steer.parity.texts import TokenisedText
from edge_steer.storage.records import Store
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.rows import Method, Row
from edge_steer.tasks.task import Task

RowsByDose = dict[float, list[Row]]
DOSES = (-0.5, 0.0, 0.5, 1.0)
FORMAT = "edge-steer parity rows 1"


@dataclass(frozen=True)
class Dose:
    """Both sides at one dose. comparison: the file minus the reference, paired by problem.

    equal: how many texts are the same. parted: of the others, the tokens they have in common, by problem, sorted;
    median_parted their median, None where all are equal.
    """

    dose: float
    reference: Summary
    other: Summary
    comparison: Comparison
    equal: int
    parted: tuple[tuple[str, int], ...]
    median_parted: float | None


def dose_name(dose: float) -> str:
    """The method of rows at a dose."""
    return f"dose {dose:g}"


def dose_method(steering: Sequence[Steering], dose: float) -> Method:
    """The steering at a dose; nothing at 0."""
    scaled = tuple(replace(s, strength=dose * s.strength) for s in steering) if dose else ()
    return Method(dose_name(dose), scaled)


@dataclass(frozen=True)
class Behaviour:
    """What one side is asked: a task's problems, at several doses of its steering."""

    task: Task
    doses: tuple[float, ...]
    steering: tuple[Steering, ...]

    def header(self, model: str, conditions: Mapping[str, object]) -> dict[str, object]:
        """What the rows depend on. model: a digest or a revision. conditions: how it runs."""
        return {
            "format": FORMAT,
            "model": model,
            "steering": described(self.steering),
            "doses": list(self.doses),
            "task": self.task.described(),
            "conditions": {**conditions},
        }

    def answers(self, model: Backend, path: Path, header: Mapping[str, object], progress: Progress) -> RowsByDose:
        """The answers at every dose, kept in the rows file `path`; those that are there are not made again.

        Errors: EdgeSteerError for rows in the file that were made otherwise.
        """
        with Store.open(path, header) as store, Graders() as graders:
            evaluator = Evaluator(model, graders, store=store, progress=progress)
            return {dose: evaluator.rows(self.task, dose_method(self.steering, dose)) for dose in self.doses}


def answer_texts(backend: Backend, task: Task, rows: Sequence[Row]) -> list[TokenisedText]:
    """The rows' answers behind their prompts, to compare distributions on; rows without one are left out."""
    questions = {sample.id: sample for sample in task.samples}
    texts = []
    for row in rows:
        prompt = backend.chat(task.messages(questions[row.id]))
        answer = backend.encode(row.text, start=False) if row.answered and row.text else ()
        if answer:
            texts.append(TokenisedText(prompt + answer, len(prompt)))
    return texts


def compare_doses(reference: RowsByDose, other: RowsByDose, encode: Callable[[str], Tokens]) -> tuple[Dose, ...]:
    """Both sides dose by dose. Errors: EdgeSteerError where one side has no completion at all."""
    return tuple(_dose(dose, reference[dose], other[dose], encode) for dose in sorted(reference))


def accuracy_findings(doses: Sequence[Dose], most_lost: float) -> list[Finding]:
    """Accuracy lost against the reference, at doses 0 and 1."""
    findings = []
    for dose in doses:
        if dose.dose in (0, 1) and (lost := dose.comparison.differences.get("accuracy")):
            interval = (-lost.interval[1], -lost.interval[0]) if lost.interval else None
            findings.append(finding(f"accuracy lost at {dose_name(dose.dose)}", -lost.mean, interval, most_lost))
    return findings


def _dose(dose: float, reference: Sequence[Row], other: Sequence[Row], encode: Callable[[str], Tokens]) -> Dose:
    texts: Mapping[str, str] = {row.id: row.text for row in reference}
    parted = [
        (row.id, _common_prefix(encode(texts[row.id]), encode(row.text)))
        for row in other
        if row.id in texts and row.text != texts[row.id]
    ]
    return Dose(
        dose=dose,
        reference=summarise(reference),
        other=summarise(other),
        comparison=compare(reference, other),
        equal=sum(row.text == texts.get(row.id) for row in other),
        parted=tuple(sorted(parted, key=lambda text: (text[1], text[0]))),
        median_parted=float(np.median([tokens for _, tokens in parted])) if parted else None,
    )


def _common_prefix(a: Tokens, b: Tokens) -> int:
    """How many tokens two texts have in common, from the first on."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
