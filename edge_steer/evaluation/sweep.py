"""A sweep: a vector at every layer and strength on the dev problems, one cell chosen there, that one tried on the test.

Takes two disjoint tasks, a vector and a runner, gives the rows of every cell and the choice. Rows are kept in a
folder, so that a stopped sweep goes on. It loads no model and draws nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal, get_args

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import Progress
from edge_steer.core.steering import Steering
from edge_steer.core.vector import Phase, SteeringVector
from edge_steer.evaluation.figures import Comparison, Summary, compare, summarise
from edge_steer.evaluation.units import Plan, Runner, found, make
from edge_steer.storage.records import Record
from edge_steer.tasks.rows import UNSTEERED, Method, Row
from edge_steer.tasks.task import Task

Rule = Literal["accuracy", "density"]
RULES: tuple[Rule, ...] = get_args(Rule)
FORMAT = "edge-steer sweep 1"
DEV = "dev.jsonl"
MAX_STRENGTHS = 1000
EQUAL = 1e-9  # figures nearer than this are equal


@dataclass(frozen=True)
class Cell:
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


PLAIN = Cell(None, 0.0)


@dataclass(frozen=True)
class Settings:
    """What is swept. dev, test: disjoint parts of one task. strengths: without 0, which is the unsteered cell.

    rule, margin: as `choose` has them. parallel: sequences of an engine, by which units are cut.
    """

    dev: Task
    test: Task
    vector: SteeringVector
    layers: tuple[int, ...]
    strengths: tuple[float, ...]
    phase: Phase
    rule: Rule
    margin: float
    parallel: int
    nll: bool = True

    def __post_init__(self) -> None:
        self.vector.check_layers(self.layers)
        if common := {sample.id for sample in self.dev.samples} & {sample.id for sample in self.test.samples}:
            raise EdgeSteerError(f"problem {min(common)} is in the dev and in the test split; they must be disjoint")

    @property
    def header(self) -> dict[str, object]:
        """What the rows depend on besides the model and the engine."""
        return {
            "format": FORMAT,
            "vector": self.vector.digest,
            "layers": list(self.layers),
            "strengths": list(self.strengths),
            "phase": self.phase,
            "nll": self.nll,
        }

    def plan(self, task: Task, wanted: Sequence[Cell]) -> Plan:
        return Plan.of(task, [cell.method(self.vector, self.phase) for cell in wanted], self.parallel, self.nll)


@dataclass(frozen=True)
class Tested:
    """The chosen cell on the test split, beside the unsteered model. Both are the same where nothing was chosen."""

    unsteered: Summary
    chosen: Summary
    comparison: Comparison | None


@dataclass(frozen=True)
class Results:
    """A sweep as far as it is. header: what its rows depend on. chosen, rule and test: None while dev is not whole.

    problems: of the dev split. changed: rows that came out otherwise when an unfinished unit was made again.
    """

    header: Record
    problems: int
    cells: Mapping[Cell, Summary]
    rule: str | None = None
    chosen: Cell | None = None
    test: Tested | None = None
    changed: int = 0


def parse_strengths(text: str) -> tuple[float, ...]:
    """ "-20:20:2" (both ends, and the step) or "1,2.5,4" -> strengths by size, without 0, which is the unsteered cell.

    Errors: EdgeSteerError for anything else, a range whose steps miss its end, no strength but 0.
    """
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


def cells(layers: Sequence[int], strengths: Sequence[float]) -> tuple[Cell, ...]:
    """The unsteered cell, then each layer at each strength."""
    return (PLAIN, *(Cell(layer, strength) for layer in layers for strength in strengths))


def sweep(settings: Settings, folder: Path, runner: Runner, facts: Mapping[str, object], progress: Progress) -> Results:
    """Every cell on dev, the choice, the chosen cell and the unsteered model on test; a stopped sweep goes on.

    folder: dev.jsonl and test-<cell>.jsonl are kept there. facts: what the rows depend on of the model and the
    engine. progress: called with what is done, how many rows are and how many there will be. Errors: EdgeSteerError.
    """
    header = {**settings.header, **facts}
    every = cells(settings.layers, settings.strengths)
    plan = settings.plan(settings.dev, every)
    made = make(folder / DEV, {**header, **_described("dev", settings.dev)}, plan, runner, progress, "dev")
    summaries = {cell: summarise(made.of(cell.name)) for cell in every}
    chosen = choose(summaries, settings.rule, settings.margin)

    wanted = [PLAIN] if chosen == PLAIN else [PLAIN, chosen]
    path = folder / f"test-{chosen.name.replace(', ', '-').replace(' ', '-')}.jsonl"
    plan = settings.plan(settings.test, wanted)
    tested = make(path, {**header, **_described("test", settings.test)}, plan, runner, progress, "test")
    before, after = tested.of(PLAIN.name), tested.of(chosen.name)
    return Results(
        header={**header, **_described("dev", settings.dev)},
        problems=len(settings.dev.samples),
        cells=summaries,
        rule=explain(settings.rule, settings.margin),
        chosen=chosen,
        test=Tested(summarise(before), summarise(after), None if chosen == PLAIN else compare(before, after)),
        changed=made.changed + tested.changed,
    )


def so_far(folder: Path) -> Results:
    """What a folder holds of the dev split, also while the sweep runs. Errors: EdgeSteerError for no sweep there."""
    header, rows = found(folder / DEV)
    if header.get("format") != FORMAT:
        raise EdgeSteerError(f"{folder / DEV} is no sweep of this edge-steer, which reads {FORMAT!r}")
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        by_method.setdefault(row.method, []).append(row)
    summaries = {
        cell: summarise(by_method[cell.name])
        for cell in cells(header["layers"], header["strengths"])
        if any(row.answered for row in by_method.get(cell.name, ()))
    }
    return Results(header, header["task"]["problems"], summaries)


def choose(summaries: Mapping[Cell, Summary], rule: Rule, margin: float = 0.0) -> Cell:
    """The cell to use, by figures on the dev split; the unsteered one is a candidate like the others.

    "accuracy": the most accurate cell. "density": the densest of the cells whose accuracy is at most `margin` below
    the unsteered one's. Of equals the mildest: weakest, then earliest layer.
    """
    floor = summaries[PLAIN].accuracy - margin - EQUAL
    enough = [cell for cell in summaries if rule == "accuracy" or summaries[cell].accuracy >= floor]

    def merit(cell: Cell) -> float:
        return summaries[cell].accuracy if rule == "accuracy" else summaries[cell].density

    best = max(map(merit, enough)) - EQUAL
    return min((cell for cell in enough if merit(cell) >= best), key=lambda cell: cell.mildness)


def explain(rule: Rule, margin: float) -> str:
    """The rule of `choose` as a reader is told it."""
    if rule == "accuracy":
        return "most accurate on dev, the mildest of equals"
    return f"densest on dev of those at most {margin:.1%} less accurate than unsteered, the mildest of equals"


def _described(split: str, task: Task) -> dict[str, object]:
    settings = asdict(task.settings)
    return {
        "split": split,
        "task": {"name": task.name, "problems": len(task.samples), "digest": task.digest, "settings": settings},
    }


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[-+]?(\d{1,12}(\.\d{0,12})?|\.\d{1,12})(e[-+]?\d{1,2})?", text))
