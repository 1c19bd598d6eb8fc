"""What the two say: the same problems, greedy, at several doses of a steering; accuracy, lengths, where texts part.

A dose is a factor on the strengths of a steering: 0 is unsteered, 1 as given. Takes a Backend, a task and a Store,
gives rows; from the rows of both sides gives figures, paired comparisons and the texts to compare on. Greedy decoding
amplifies rounding, so that texts part where the model is undecided; the figures tell whether that matters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np

from edge_steer.core.backend import Backend, Tokens
from edge_steer.core.progress import Progress
from edge_steer.core.steering import Steering
from edge_steer.evaluation.evaluate import evaluate
from edge_steer.evaluation.figures import Comparison, Summary, compare, summarise
from edge_steer.parity.texts import Text
from edge_steer.parity.tolerances import Finding, finding
from edge_steer.storage.records import Store
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.rows import Method, Row
from edge_steer.tasks.task import Task

Rows = dict[float, list[Row]]  # dose -> the rows of all problems
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
    parted: list[tuple[str, int]]
    median_parted: float | None


def name_of(dose: float) -> str:
    """The method of rows at a dose."""
    return f"dose {dose:g}"


def method_of(steering: Sequence[Steering], dose: float) -> Method:
    """The steering at a dose; nothing at 0."""
    scaled = tuple(replace(s, strength=dose * s.strength) for s in steering) if dose else ()
    return Method(name_of(dose), scaled)


def rows_of(
    backend: Backend,
    task: Task,
    steering: Sequence[Steering],
    doses: Sequence[float],
    *,
    store: Store,
    graders: Graders,
    progress: Progress,
) -> Rows:
    """A backend's answers at every dose; those the store holds are not made again."""
    found: Rows = {}
    for dose in doses:
        done = 0

        def count(_row: Row, dose: float = dose) -> None:
            nonlocal done
            done += 1
            progress(f"answering at {name_of(dose)}", min(done, len(task.samples)), len(task.samples))

        found[dose] = evaluate(
            backend, task, method_of(steering, dose), graders=graders, store=store, on_row=count
        )  # fmt: skip
    return found


def texts_of(backend: Backend, task: Task, rows: Sequence[Row]) -> list[Text]:
    """The rows' answers behind their prompts, to compare distributions on; rows without one are left out."""
    questions = {sample.id: sample for sample in task.samples}
    texts = []
    for row in rows:
        prompt = backend.chat(task.messages(questions[row.id]))
        answer = backend.encode(row.text, start=False) if row.answered and row.text else ()
        if answer:
            texts.append(Text(prompt + answer, len(prompt)))
    return texts


def doses(reference: Rows, other: Rows, encode: Callable[[str], Tokens]) -> list[Dose]:
    """Both sides dose by dose. Errors: EdgeSteerError where one side has no completion at all."""
    return [_dose(dose, reference[dose], other[dose], encode) for dose in sorted(reference)]


def findings(found: Sequence[Dose], most_lost: float) -> list[Finding]:
    """Accuracy lost against the reference, at doses 0 and 1."""
    result = []
    for dose in found:
        if dose.dose in (0, 1) and (lost := dose.comparison.differences.get("accuracy")):
            interval = (-lost.interval[1], -lost.interval[0]) if lost.interval else None
            result.append(finding(f"accuracy lost at {name_of(dose.dose)}", -lost.mean, interval, most_lost))
    return result


def _dose(dose: float, reference: Sequence[Row], other: Sequence[Row], encode: Callable[[str], Tokens]) -> Dose:
    texts: Mapping[str, str] = {row.id: row.text for row in reference}
    parted = [
        (row.id, _common(encode(texts[row.id]), encode(row.text)))
        for row in other
        if row.id in texts and row.text != texts[row.id]
    ]
    return Dose(
        dose=dose,
        reference=summarise(reference),
        other=summarise(other),
        comparison=compare(reference, other),
        equal=sum(row.text == texts.get(row.id) for row in other),
        parted=sorted(parted, key=lambda found: (found[1], found[0])),
        median_parted=float(np.median([tokens for _, tokens in parted])) if parted else None,
    )


def _common(a: Tokens, b: Tokens) -> int:
    """How many tokens two texts have in common, from the first on."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
