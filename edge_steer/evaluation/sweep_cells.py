"""The cells of a sweep, a layer at a strength each, and the choice of one by figures on the dev problems.

Takes layers, strengths and summaries, gives cells. It answers no problem and reads no file.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, get_args

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.steering import Steering
from edge_steer.core.vector import Phase, SteeringVector, check_strength
from edge_steer.evaluation.figures import Summary
from edge_steer.tasks.rows import UNSTEERED, Method

Rule = Literal["accuracy", "density", "tokens"]
RULES: tuple[Rule, ...] = get_args(Rule)
MAX_STRENGTHS = 1000
EQUAL = 1e-9  # figures nearer than this are equal


@dataclass(frozen=True)
class SweepCell:
    """One layer at one strength. The cell of strength 0 belongs to no layer: it is the unsteered model."""

    layer: int | None
    strength: float

    @property
    def name(self) -> str:
        return UNSTEERED.name if self.layer is None else f"layer {self.layer}, strength {self.strength:.12g}"

    @property
    def mildness(self) -> tuple[float, int, bool]:
        """The order in which equals are preferred: weak before strong, early before late, added before subtracted."""
        return abs(self.strength), -1 if self.layer is None else self.layer, self.strength < 0

    def method(self, vector: SteeringVector, phase: Phase) -> Method:
        """Errors: VectorError for a layer the vector has not."""
        if self.layer is None:
            return UNSTEERED
        return Method(self.name, (Steering(vector, self.strength, (self.layer,), phase),))


UNSTEERED_CELL = SweepCell(None, 0.0)


def sweep_cells(layers: Sequence[int], strengths: Sequence[float]) -> tuple[SweepCell, ...]:
    """The unsteered cell, then each layer at each strength."""
    return (UNSTEERED_CELL, *(SweepCell(layer, strength) for layer in layers for strength in strengths))


def parse_strengths(strengths: str | Iterable[float]) -> tuple[float, ...]:
    """Strengths by size, without 0, which is the unsteered cell.

    strengths: "-20:20:2" (both ends, and the step), "1,2.5,4", or numbers. Errors: EdgeSteerError for anything else, a
    range whose steps miss its end, no strength but 0.
    """
    if isinstance(strengths, str):
        return _parse_text(strengths)
    numbers = tuple(strengths)
    for strength in numbers:
        check_strength(strength)
    if not any(numbers):
        raise EdgeSteerError("no strength but 0, which is the unsteered model; name at least one other")
    return tuple(sorted({float(strength) for strength in numbers if strength}))


def choose(summaries: Mapping[SweepCell, Summary], rule: Rule, margin: float = 0.0) -> SweepCell:
    """The cell to use, by figures on the dev split; the unsteered one is a candidate like the others.

    "accuracy": the most accurate cell. "density", "tokens": the densest, or the one of the fewest tokens, of the cells
    whose accuracy is at most `margin` below the unsteered one's. Of equals the mildest: weakest, then earliest layer.
    """
    floor = summaries[UNSTEERED_CELL].accuracy - margin - EQUAL
    candidates = [cell for cell in summaries if rule == "accuracy" or summaries[cell].accuracy >= floor]

    def merit(cell: SweepCell) -> float:
        if rule == "tokens":
            return -summaries[cell].tokens
        return summaries[cell].accuracy if rule == "accuracy" else summaries[cell].density

    best = max(map(merit, candidates)) - EQUAL
    return min((cell for cell in candidates if merit(cell) >= best), key=lambda cell: cell.mildness)


def best_by_layer(summaries: Mapping[SweepCell, Summary]) -> list[SweepCell]:
    """The most accurate cell of each layer, the mildest of equals, and the unsteered one; in the order of layers."""
    best: dict[int | None, SweepCell] = {}
    for cell, summary in summaries.items():
        other = best.get(cell.layer)
        if other is None or (-summary.accuracy, cell.mildness) < (-summaries[other].accuracy, other.mildness):
            best[cell.layer] = cell
    return list(best.values())


def rule_text(rule: Rule, margin: float) -> str:
    """The rule of `choose` in words."""
    if rule == "accuracy":
        return "most accurate on dev, the mildest of equals"
    best = "densest" if rule == "density" else "fewest tokens"
    return f"{best} on dev of those at most {margin:.1%} less accurate than unsteered, the mildest of equals"


def _parse_text(text: str) -> tuple[float, ...]:
    form = "write strengths as FIRST:LAST:STEP, such as -20:20:2, or as a list, such as 0.5,1,2"
    parsed: set[Decimal] = set()
    for part in text.replace(" ", "").split(","):
        numbers = part.split(":")
        if len(numbers) not in (1, 3) or not all(map(_is_number, numbers)):
            raise EdgeSteerError(f"cannot read strengths {text!r}; {form}")
        first, last, step = map(Decimal, numbers if len(numbers) == 3 else (part, part, "1"))
        if step <= 0 or last < first or (last - first) / step >= MAX_STRENGTHS or (last - first) % step:
            raise EdgeSteerError(
                f"strengths {part} do not go from {first} to {last} in up to {MAX_STRENGTHS} steps; {form}"
            )
        parsed.update(first + step * i for i in range(int((last - first) / step) + 1))
    strengths = tuple(sorted(float(strength) for strength in parsed if strength))
    if not strengths:
        raise EdgeSteerError(f"strengths {text!r} hold only 0, which is the unsteered model; {form}")
    return strengths


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[-+]?(\d{1,12}(\.\d{0,12})?|\.\d{1,12})(e[-+]?\d{1,2})?", text))
