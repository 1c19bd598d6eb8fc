"""Contrastive pairs: two answers to one question, one of the style to steer towards and one of the style to leave.

Takes and gives JSONL files and frozen values; checks that both answers are right and that they differ in density.
It knows nothing of models: tokens are counted, and answers graded, by functions it is handed.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_steer.errors import EdgeSteerError
from edge_steer.files import readable, replacing
from edge_steer.tasks import count_steps

Count = Callable[[str], int]  # text -> number of tokens
Grade = Callable[[str, str], bool]  # solution, expected answer -> whether it is right

REQUIRED = ("question", "positive", "negative")
OPTIONAL = ("answer", "id")


@dataclass(frozen=True)
class Pair:
    """A question, the answer of the wanted style (DenseSteer's x+, dense) and that of the other (x-, sparse).

    answer: the right final answer, if known. id: a name for messages.
    Errors: EdgeSteerError for a field that is not text, an empty one, or two equal answers.
    """

    question: str
    positive: str
    negative: str
    answer: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is None and name in OPTIONAL:
                continue
            if not isinstance(value, str):
                raise EdgeSteerError(f"field {name!r} is {type(value).__name__}; it must be text")
            if not value.strip():
                raise EdgeSteerError(f"field {name!r} is empty")
        if self.positive == self.negative:
            raise EdgeSteerError("positive and negative are equal; a pair needs two different answers")


@dataclass(frozen=True)
class PairCheck:
    """What `check` found of one pair. Steps are paragraphs; density is tokens per step (rho in DenseSteer)."""

    name: str
    positive_right: bool
    negative_right: bool
    positive_steps: int
    negative_steps: int
    positive_tokens: int
    negative_tokens: int

    @property
    def right(self) -> bool:
        return self.positive_right and self.negative_right

    @property
    def positive_density(self) -> float:
        return self.positive_tokens / self.positive_steps

    @property
    def negative_density(self) -> float:
        return self.negative_tokens / self.negative_steps

    @property
    def density_ratio(self) -> float:
        return self.positive_density / self.negative_density


def read(path: Path) -> tuple[Pair, ...]:
    """Pairs of a JSONL file, one object a line with the fields of Pair; blank lines are skipped.

    Errors: EdgeSteerError that names the file and the line, or says that the file is missing or empty.
    """
    pairs = []
    for number, line in enumerate(readable(path, "pairs, one JSON object a line").read_bytes().split(b"\n"), 1):
        if line.strip():
            try:
                pairs.append(_parse(line))
            except EdgeSteerError as error:
                raise EdgeSteerError(f"{path}, line {number}: {error}") from None
    if not pairs:
        raise EdgeSteerError(f"{path} holds no pairs; expected one JSON object a line")
    return tuple(pairs)


def write(path: Path, pairs: Sequence[Pair]) -> None:
    """Write pairs as JSONL, the whole file or nothing. Errors: EdgeSteerError if the path cannot be written."""
    with replacing(path) as temporary:
        temporary.write_bytes(_serialise(pairs))


def digest(pairs: Sequence[Pair]) -> str:
    """SHA-256 of the file that `write` makes of the pairs, in hex."""
    return hashlib.sha256(_serialise(pairs)).hexdigest()


def check(pairs: Sequence[Pair], count: Count, grade: Grade | None = None) -> list[PairCheck]:
    """Grade and measure both answers of each pair.

    A pair without `answer` is graded against what its negative, the model's own solution, puts in \\boxed{...}.
    grade: None compares the text in the last \\boxed{...} with the expected answer.
    """
    grade = grade or _boxes
    found = []
    for number, pair in enumerate(pairs, 1):
        expected = pair.answer if pair.answer is not None else boxed(pair.negative)
        found.append(
            PairCheck(
                name=pair.id or f"pair {number}",
                positive_right=expected is not None and grade(pair.positive, expected),
                negative_right=expected is not None and grade(pair.negative, expected),
                positive_steps=count_steps(pair.positive),
                negative_steps=count_steps(pair.negative),
                positive_tokens=count(pair.positive),
                negative_tokens=count(pair.negative),
            )
        )
    return found


def boxed(text: str) -> str | None:
    """What stands in the last \\boxed{...} of the text, braces matched; None if there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if not depth:
            return text[start:end].strip()
    return None


def _boxes(solution: str, expected: str) -> bool:
    return boxed(solution) == expected.strip()


def _parse(line: bytes) -> Pair:
    try:
        fields = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise EdgeSteerError(f"not UTF-8 at byte {error.start + 1}; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise EdgeSteerError(f"not JSON at column {error.colno}: {error.msg}") from None
    if not isinstance(fields, dict):
        raise EdgeSteerError(f"a {type(fields).__name__}; an object with {', '.join(REQUIRED)} is needed")
    if missing := [name for name in REQUIRED if name not in fields]:
        raise EdgeSteerError(f"field {missing[0]!r} is missing; needed are {', '.join(REQUIRED)}")
    if extra := sorted(fields.keys() - {*REQUIRED, *OPTIONAL}):
        raise EdgeSteerError(f"unknown field {extra[0]!r}; allowed are {', '.join((*REQUIRED, *OPTIONAL))}")
    return Pair(**fields)


def _serialise(pairs: Sequence[Pair]) -> bytes:
    rows = ({name: value for name, value in asdict(pair).items() if value is not None} for pair in pairs)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
