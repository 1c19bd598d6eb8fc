"""The worst answers of a certified file beside the reference's, cut where the two part.

Takes rows of both sides and what the certificate says of each dose, gives examples for report.html. It knows no HTML.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from edge_steer.certificates.behaviour import Dose, RowsByDose
from edge_steer.tasks.rows import Row
from edge_steer.tasks.task import Sample

EXAMPLES = 3  # of each kind, for each file
SHOWN_BEFORE, SHOWN_AFTER = 400, 1200  # characters of a text, before where it parts and after
PIECE = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")
BLANKS = re.compile(r"[^\S\r\n]+(?=\S)")


@dataclass(frozen=True)
class ExampleSide:
    """One side's answer, cut where the two part: what both say, the gap and the piece where they differ, and the rest.

    gap: blanks before the piece, which has its line breaks. marked: "" where the text has ended. left_out: how many
    characters before and after are not shown.
    """

    row: Row
    common: str
    gap: str
    marked: str
    rest: str
    left_out: tuple[int, int]


@dataclass(frozen=True)
class Example:
    """A problem that the two answer differently. tokens: how many they have in common. sample: None if unknown."""

    id: str
    dose: float
    tokens: int
    sample: Sample | None
    reference: ExampleSide
    file: ExampleSide

    @property
    def turned_wrong(self) -> bool:
        return self.reference.row.correct and not self.file.row.correct


def worst_examples(
    behaviour: Sequence[Dose], answers: RowsByDose, rows: RowsByDose, problems: Mapping[str, Sample]
) -> list[Example]:
    """Answers of one file that are wrong where the reference's are right, then those that part earliest.

    behaviour: both sides of the file, dose by dose. Up to EXAMPLES of each kind and no problem twice; those at dose 1
    come first, then unsteered ones, then all others.
    """
    examples = []
    for dose in sorted(behaviour, key=lambda dose: (dose.dose != 1, dose.dose != 0, dose.dose)):
        ours, theirs = ({row.id: row for row in side.get(dose.dose, ())} for side in (answers, rows))
        examples += [
            Example(id, dose.dose, tokens, problems.get(id), *cut_where_they_part(ours[id], theirs[id]))
            for id, tokens in dose.parted
            if id in ours and id in theirs
        ]
    wrong = _distinct(example for example in examples if example.turned_wrong)
    shown = {example.id for example in wrong}
    return wrong + _distinct(example for example in examples if example.id not in shown)


def cut_where_they_part(ours: Row, theirs: Row) -> tuple[ExampleSide, ExampleSide]:
    """Two answers cut at the first word, number or sign in which they differ, with the space before it."""
    a, b = PIECE.findall(ours.text), PIECE.findall(theirs.text)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
    return _side(ours, a, common), _side(theirs, b, common)


def _side(row: Row, pieces: Sequence[str], common: int) -> ExampleSide:
    before, piece, rest = (
        "".join(part) for part in (pieces[:common], pieces[common : common + 1], pieces[common + 1 :])
    )
    first = max(0, len(before) - SHOWN_BEFORE)
    blanks = BLANKS.match(piece)
    return ExampleSide(
        row=row,
        common=before[first:],
        gap=blanks[0] if blanks else "",
        marked=piece[blanks.end() :] if blanks else piece,
        rest=rest[:SHOWN_AFTER],
        left_out=(first, max(0, len(rest) - SHOWN_AFTER)),
    )


def _distinct(examples: Iterable[Example]) -> list[Example]:
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(example.id, example)
    return list(first.values())[:EXAMPLES]
