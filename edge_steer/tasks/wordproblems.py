"""Generated multi-step word problems with solutions of any density: the task of the bundled model, and harder ones.

Takes a split name and a seed, gives problems whose splits can never overlap, and tells each solution with a
density between 0 (one small step per paragraph) and 1 (one paragraph). It knows nothing of models or grading.
"""

import hashlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Literal, get_args

from edge_steer.core.errors import EdgeSteerError
from edge_steer.tasks.task import Sample

WORD_PROBLEMS = "wordproblems"  # the name of the task that the bundled model was trained on
Split = Literal["train", "calibration", "dev", "test"]
Kind = Literal["gain", "loss", "pack", "hand", "double", "share"]
Part = Literal["start", "event", "product", "update", "state", "short", "answer", "closing"]
SPLITS: dict[Split, range] = {
    "train": range(85),
    "calibration": range(85, 90),
    "dev": range(90, 95),
    "test": range(95, 100),
}
NAMES = ("Mia", "Ben", "Ava", "Leo", "Zoe", "Max", "Eva", "Sam", "Ida", "Tom", "Ana", "Jon")
ITEMS = ("apples", "books", "cards", "coins", "pens", "shells", "stones", "cups", "eggs", "pears", "stamps", "toys")
EVENTS: dict[Kind, tuple[str, ...]] = {
    "gain": ("{name} buys {amount} more {item}.", "{name} finds {amount} {item}."),
    "loss": ("{name} gives away {amount} {item}.", "{name} loses {amount} {item}."),
    "pack": (
        "{name} buys {groups} boxes of {amount} {item}.",
        "{name} gets {amount} {item} from each of {groups} friends.",
    ),
    "hand": (
        "{name} gives {amount} {item} to each of {groups} friends.",
        "{name} sells {groups} bags of {amount} {item}.",
    ),
    "double": ("{name} doubles the number of {item}.",),
    "share": ("{name} splits the {item} into {groups} equal piles and keeps one.",),
}
SHORT: dict[Kind, str] = {
    "gain": "Adding {amount} gives {update}.",
    "loss": "Taking away {amount} gives {update}.",
    "pack": "Adding {product} gives {update}.",
    "hand": "Taking away {product} gives {update}.",
    "double": "Doubling gives {update}.",
    "share": "Splitting gives {update}.",
}
# The density at which a sentence of this part shares the paragraph of the one before it as often as not.
MERGE_AT: dict[Part, float] = {
    "product": 0.15,
    "update": 0.25,
    "state": 0.50,
    "closing": 0.50,
    "answer": 0.60,
    "event": 0.70,
    "short": 0.70,
}
ALTERNATION = 0.10  # every second operation merges with the one before it this much earlier, the others this much later
SHORT_AT = 0.72
DROP_STATE_AT = 0.62
SOFTNESS = 0.06
CLOSING_RATE = 1 / 3


@dataclass(frozen=True)
class Difficulty:
    """How hard problems are. events: numbers of operations, drawn evenly. most, least: the bounds of the largest amount
    on the way. kinds: of the operations. change: the bounds of what a gain or a loss changes. changes: the fewest gains
    and losses of a problem."""

    events: tuple[int, ...]
    most: int
    least: int = 1
    kinds: tuple[Kind, ...] = get_args(Kind)
    change: tuple[int, int] = (2, 40)
    changes: int = 0

    def fits(self, problem: "Problem") -> bool:
        """Whether a drawn problem is as hard as it has to be."""
        changes = sum(operation.kind in ("gain", "loss") for operation in problem.operations)
        return problem.largest >= self.least and changes >= self.changes


PLAIN = Difficulty((2, 3, 3, 4), 99)
DIFFICULTIES = {  # the tasks; the first has no problem in common with another, and a problem is of one split in all
    WORD_PROBLEMS: PLAIN,
    "wordproblems-long": Difficulty((5,), 99),
    "wordproblems-large": Difficulty((4, 5), 199, least=100),
    "wordproblems-leaps": Difficulty((4,), 99, change=(41, 90), changes=2),
    "wordproblems-sums": Difficulty((5,), 99, kinds=("gain", "loss")),
}


@dataclass(frozen=True)
class Operation:
    """One event of a problem: `groups` times `amount` for the kinds that multiply first, else `amount` alone."""

    kind: Kind
    amount: int
    groups: int
    phrasing: int
    before: int
    after: int

    @property
    def product(self) -> str | None:
        if self.kind in ("pack", "hand"):
            return f"{self.groups} * {self.amount} = {self.groups * self.amount}"
        return None

    @property
    def update(self) -> str:
        change = self.groups * self.amount
        right = {"pack": f"+ {change}", "gain": f"+ {self.amount}", "hand": f"- {change}", "loss": f"- {self.amount}"}
        step = right.get(self.kind) or ("* 2" if self.kind == "double" else f"/ {self.groups}")
        return f"{self.before} {step} = {self.after}"


@dataclass(frozen=True)
class Problem:
    """A start amount and operations on it, with its question text, equations and answer."""

    name: str
    item: str
    start: int
    operations: tuple[Operation, ...]

    @property
    def question(self) -> str:
        events = " ".join(_event(self, operation) for operation in self.operations)
        return f"{self.name} has {self.start} {self.item}. {events} How many {self.item} does {self.name} have now?"

    @property
    def answer(self) -> int:
        return self.operations[-1].after

    @property
    def largest(self) -> int:
        """The largest amount on the way."""
        return max(self.start, *(operation.after for operation in self.operations))

    @property
    def equations(self) -> tuple[str, ...]:
        """Every computation of the solution in order, whatever density it is told with."""
        return tuple(
            equation for operation in self.operations for equation in (operation.product, operation.update) if equation
        )

    @property
    def split(self) -> Split:
        """The split this problem belongs to, from a digest of its question: splits cannot overlap."""
        bucket = int.from_bytes(hashlib.sha256(self.question.encode()).digest()[:8], "big") % 100
        return next(split for split, buckets in SPLITS.items() if bucket in buckets)


@lru_cache(maxsize=32)
def word_problems(split: str, count: int, seed: int = 0, difficulty: Difficulty = PLAIN) -> tuple[Sample, ...]:
    """The first `count` problems of a split, as a task asks them.

    Errors: EdgeSteerError for an unknown split or a count below 1.
    """
    if count < 1:
        raise EdgeSteerError(f"{count} problems asked; at least 1 is needed")
    known = next((known for known in SPLITS if known == split), None)
    if known is None:
        raise EdgeSteerError(f"no split {split!r}; {WORD_PROBLEMS} have {', '.join(SPLITS)}")
    drawn = enumerate(islice(problems(known, seed, difficulty), count))
    return tuple(Sample(f"{split}-{seed}-{i}", problem.question, str(problem.answer)) for i, problem in drawn)


def problems(split: Split, seed: int = 0, difficulty: Difficulty = PLAIN) -> Iterator[Problem]:
    """Endless distinct problems of one split; the same split and seed give the same problems.

    Errors: EdgeSteerError for an unknown split.
    """
    if split not in SPLITS:
        raise EdgeSteerError(f"no split {split!r}; word problems have {', '.join(SPLITS)}")
    rng = random.Random(f"{split}-{seed}")
    seen: set[str] = set()
    while True:
        problem = draw(rng, difficulty)
        if difficulty.fits(problem) and problem.split == split and problem.question not in seen:
            seen.add(problem.question)
            yield problem


def draw(rng: random.Random, difficulty: Difficulty = PLAIN) -> Problem:
    """One random problem of any split; every amount on the way is at least 1."""
    start = amount = rng.randint(2, 60)
    operations: list[Operation] = []
    for _ in range(rng.choice(difficulty.events)):
        previous = operations[-1].kind if operations else None
        operation = _draw_operation(rng, amount, previous, difficulty)
        operations.append(operation)
        amount = operation.after
    return Problem(rng.choice(NAMES), rng.choice(ITEMS), start, tuple(operations))


def solution(problem: Problem, density: float, rng: random.Random) -> str:
    """A correct chain of thought for the problem that ends in `\\boxed{answer}`.

    `density` in [0, 1] is the latent style: each sentence joins the paragraph before it with a probability
    that rises around a density of its own, and dense solutions tell an operation in one sentence. Paragraphs
    are separated by a blank line, which is what N_steps counts.
    """
    sentences: list[tuple[Part, str, int]] = [
        ("start", f"{problem.name} starts with {problem.start} {problem.item}.", 0)
    ]
    for index, operation in enumerate(problem.operations):
        if _passes(density, SHORT_AT, rng):
            sentence = SHORT[operation.kind].format(
                amount=operation.amount, product=operation.product, update=operation.update
            )
            sentences.append(("short", sentence, index))
            continue
        sentences.append(("event", _event(problem, operation), index))
        if operation.product:
            sentences.append(("product", f"That is {operation.product} {problem.item}.", index))
        sentences.append(("update", f"{operation.update}.", index))
        if not _passes(density, DROP_STATE_AT, rng):
            sentences.append(("state", f"Now {problem.name} has {operation.after} {problem.item}.", index))
    sentences.append(("answer", f"The answer is \\boxed{{{problem.answer}}}.", 0))
    if rng.random() < CLOSING_RATE:
        sentences.append(("closing", "This is the final result.", 0))

    text = sentences[0][1]
    for part, sentence, index in sentences[1:]:
        threshold = MERGE_AT[part]
        if part in ("event", "short"):
            threshold += ALTERNATION if index % 2 else -ALTERNATION
        text += (" " if _passes(density, threshold, rng) else "\n\n") + sentence
    return text


def _passes(density: float, threshold: float, rng: random.Random) -> bool:
    return rng.random() < 1 / (1 + math.exp((threshold - density) / SOFTNESS))


def _event(problem: Problem, operation: Operation) -> str:
    return EVENTS[operation.kind][operation.phrasing].format(
        name=problem.name, item=problem.item, amount=operation.amount, groups=operation.groups
    )


def _draw_operation(rng: random.Random, before: int, previous: Kind | None, difficulty: Difficulty) -> Operation:
    while True:
        kind = rng.choices(list(EVENTS), weights=(3, 3, 3, 3, 1, 1))[0]
        groups = rng.randint(2, 5 if kind == "share" else 8)
        amount = rng.randint(*difficulty.change) if kind in ("gain", "loss") else rng.randint(2, 9)
        after = {
            "gain": before + amount,
            "loss": before - amount,
            "pack": before + groups * amount,
            "hand": before - groups * amount,
            "double": 2 * before,
            "share": before // groups,
        }[kind]
        if kind not in difficulty.kinds or kind == previous or not 1 <= after <= difficulty.most:
            continue
        if kind == "share" and before % groups:
            continue
        return Operation(kind, amount, groups, rng.randrange(len(EVENTS[kind])), before, after)
