"""Contrastive pairs: two texts, one of the style to steer towards and one of the style to leave.

Takes and gives JSONL files and frozen values; gives the token ids of each side of a pair. It knows nothing of models,
of how a pair is made, or of whether it is a good one.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

from edge_steer.core.backend import Message, Tokens
from edge_steer.core.errors import EdgeSteerError
from edge_steer.storage.files import readable, replacing

REQUIRED = ("question", "positive", "negative")


class Tokenizer(Protocol):
    """What a side needs of a backend."""

    def encode(self, text: str, *, start: bool = True) -> Tokens: ...

    def chat(self, messages: Sequence[Message]) -> Tokens: ...


@dataclass(frozen=True)
class Side:
    """One text of a pair and what stands before it: a conversation, or plain text."""

    prompt: tuple[Message, ...] | str
    answer: str

    @property
    def prompt_text(self) -> str:
        """The prompt for a reader; roles are named where there is more than the user's turn."""
        if isinstance(self.prompt, str):
            return self.prompt
        named = len(self.prompt) > 1
        return "\n".join(f"{turn['role']}: {turn['content']}" if named else turn["content"] for turn in self.prompt)

    def tokens(self, tokenizer: Tokenizer) -> tuple[Tokens, Tokens]:
        """Prompt and answer as token ids; an empty plain prompt is a BOS if the model wants one, else no token."""
        prompt = tokenizer.encode(self.prompt) if isinstance(self.prompt, str) else tokenizer.chat(self.prompt)
        return prompt, tokenizer.encode(self.answer, start=False)


@dataclass(frozen=True)
class Pair:
    """A question, the answer of the wanted style (DenseSteer's x+, dense) and that of the other (x-, sparse).

    answer: the right final answer, if known. id: a name for messages. system: a system message before the question.
    negative_question, negative_system: the negative's own prompt, where the two differ; negative_system "" is none.
    raw: no chat template: the question, which may then be empty, and the answer are one plain text.
    Errors: EdgeSteerError for a field of another type, an empty one, two equal sides, or a raw pair with a system
    message.
    """

    question: str
    positive: str
    negative: str
    answer: str | None = None
    id: str | None = None
    system: str | None = None
    negative_question: str | None = None
    negative_system: str | None = None
    raw: bool = False

    def __post_init__(self) -> None:
        values = asdict(self)
        if not isinstance(values.pop("raw"), bool):
            raise EdgeSteerError(f"field 'raw' is {type(self.raw).__name__}; it must be true or false")
        may_be_empty = {"negative_system", *(("question", "negative_question") if self.raw else ())}
        for name, value in values.items():
            if value is None and name not in REQUIRED:
                continue
            if not isinstance(value, str):
                raise EdgeSteerError(f"field {name!r} is {type(value).__name__}; it must be text")
            if not value.strip() and name not in may_be_empty:
                raise EdgeSteerError(f"field {name!r} is empty")
        if self.raw and (self.system is not None or self.negative_system is not None):
            raise EdgeSteerError("a raw pair has no chat template, and no place for a system message; leave it out")
        positive, negative = self.sides
        if positive == negative:
            raise EdgeSteerError("positive and negative are equal; a pair needs two different answers, or questions")

    @property
    def sides(self) -> tuple[Side, Side]:
        """Positive and negative, each with its own prompt."""
        question = self.question if self.negative_question is None else self.negative_question
        system = self.system if self.negative_system is None else self.negative_system
        return self._side(self.question, self.system, self.positive), self._side(question, system, self.negative)

    @property
    def negative_digest(self) -> str:
        """SHA-256 of the negative and its prompt, in hex; pairs that share it are candidates of one negative."""
        side = self.sides[1]
        return hashlib.sha256(json.dumps([side.prompt, side.answer]).encode()).hexdigest()

    def _side(self, question: str, system: str | None, answer: str) -> Side:
        if self.raw:
            return Side(question, answer)
        before: tuple[Message, ...] = ({"role": "system", "content": system},) if system else ()
        return Side((*before, {"role": "user", "content": question}), answer)


@dataclass(frozen=True)
class ContrastPairs:
    """Pairs that were made, and a line for each source of one that gave none: its name and the reason."""

    pairs: tuple[Pair, ...]
    left_out: tuple[str, ...] = ()


FIELDS = {field.name: field.default for field in fields(Pair)}


def read_pairs(path: str | Path) -> tuple[Pair, ...]:
    """Pairs of a JSONL file, one object a line with the fields of Pair; blank lines are skipped.

    Errors: EdgeSteerError that names the file and the line, or says that the file is missing or empty.
    """
    path, pairs = Path(path), []
    for number, line in enumerate(readable(path, "pairs, one JSON object a line").read_bytes().split(b"\n"), 1):
        if line.strip():
            try:
                pairs.append(_parse(line))
            except EdgeSteerError as error:
                raise EdgeSteerError(f"{path}, line {number}: {error}") from None
    if not pairs:
        raise EdgeSteerError(f"{path} holds no pairs; expected one JSON object a line")
    return tuple(pairs)


def write_pairs(pairs: Sequence[Pair], path: str | Path) -> None:
    """Write pairs as JSONL, the whole file or nothing.

    Errors: EdgeSteerError if the path cannot be written, or for no pairs.
    """
    path = Path(path)
    if not pairs:
        raise EdgeSteerError(f"no pairs to write to {path}; at least one is needed")
    with replacing(path) as temporary:
        temporary.write_bytes(_serialise(pairs))


def digest_pairs(pairs: Sequence[Pair]) -> str:
    """SHA-256 of the file that `write_pairs` writes of the pairs, in hex."""
    return hashlib.sha256(_serialise(pairs)).hexdigest()


def _parse(line: bytes) -> Pair:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise EdgeSteerError(f"not UTF-8 at byte {error.start + 1}; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise EdgeSteerError(f"not JSON at column {error.colno}: {error.msg}") from None
    if not isinstance(row, dict):
        raise EdgeSteerError(f"a {type(row).__name__}; an object with {', '.join(REQUIRED)} is needed")
    if missing := [name for name in REQUIRED if name not in row]:
        raise EdgeSteerError(f"field {missing[0]!r} is missing; needed are {', '.join(REQUIRED)}")
    if extra := sorted(row.keys() - FIELDS.keys()):
        raise EdgeSteerError(f"unknown field {extra[0]!r}; allowed are {', '.join(FIELDS)}")
    return Pair(**row)


def _serialise(pairs: Sequence[Pair]) -> bytes:
    """JSON lines; a field that has its default value is left out."""
    rows = ({name: value for name, value in asdict(pair).items() if value != FIELDS[name]} for pair in pairs)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
