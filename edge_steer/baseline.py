"""What the reference says of texts, live from a Backend or saved in a file for another process or machine.

A saved reference is one file: a line that names the format, a line of JSON (model, steering, vocabulary, texts), then
a block of bytes for each text: its length as int64, and inside it, all little-endian:

    for each position: float64 log(sum(exp(logits))), uint32 count, a bit for each token of the vocabulary (first token
    in the highest bit), then float32 logits of the tokens whose bit is set
    for each of the first steered texts: what steering adds to logits (float32 positions x vocabulary) and to the
    residual stream after the last block (float32 positions x hidden), at EFFECT_POSITIONS positions, and to that after
    the first steered block (float32 positions x hidden), at these and the first and a middle one of the prompt

Kept are the token that follows and those whose log-probability is above -16, which are those llama-perplexity counts.
It compares nothing: divergence.py and parity.py do.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from edge_steer.backend import Backend, Tokens
from edge_steer.errors import EdgeSteerError
from edge_steer.files import digest, readable, replacing
from edge_steer.stats import Floats, logsumexp
from edge_steer.vector import Array, ModelIdentity, Steering

FORMAT = b"edge-steer reference 1\n"
CUT = -16.0  # nats; less likely tokens are not saved
EFFECT_TEXTS = 16  # of the steered ones
EFFECT_POSITIONS = 8  # of each, evenly spaced
PIECE_BYTES = 2**22  # of logits that are made from a file at a time; so few stay in the cache of the processor
MAX_HEADER = 2**26

Piece = tuple[Array, Floats]  # logits (positions, vocabulary), and log(sum(exp(logits))) of each position


@dataclass(frozen=True)
class Text:
    """Token ids to compare on; the first `prompt` of them are the prompt."""

    tokens: Tokens
    prompt: int

    @property
    def following(self) -> npt.NDArray[np.int64]:
        """The tokens after the prompt, each of which a position is compared on."""
        return np.asarray(self.tokens[self.prompt :], dtype=np.int64)

    @property
    def effect_rows(self) -> npt.NDArray[np.int64]:
        """Which of these positions the effect of steering is taken at."""
        last = len(self.tokens) - self.prompt - 1
        return np.unique(np.linspace(0, last, EFFECT_POSITIONS).astype(np.int64))

    @property
    def placed_positions(self) -> npt.NDArray[np.int64]:
        """Where it is looked at what is added: two positions of the prompt, which tell the phases apart, and these."""
        return np.unique([0, (self.prompt - 1) // 2, *(self.effect_rows + self.prompt - 1)])


@dataclass(frozen=True)
class Shift:
    """Steered minus unsteered at a text's effect_rows: logits, and the residual stream after the last block.

    placed: the residual stream after the first steered block, at the text's placed_positions. Nothing has been made of
    the vector there yet, so it is what was added, in a quantised model too.
    """

    logits: Array
    states: Array
    placed: Array


class Baseline(Protocol):
    """The reference's side of a comparison: texts under no steering, others under a steering."""

    @property
    def model(self) -> ModelIdentity: ...

    @property
    def unsteered(self) -> Sequence[Text]: ...

    @property
    def steered(self) -> Sequence[Text]: ...

    @property
    def steering(self) -> Sequence[Mapping[str, object]]:
        """What the steered texts are steered with; see `described`."""

    def rows(self, index: int, steered: bool) -> Iterator[Piece]:
        """The logits of one of the unsteered or steered texts, piece by piece; a piece is valid until the next."""

    def shift(self, index: int) -> Shift:
        """What steering does to one of the first EFFECT_TEXTS steered texts."""


class Live:
    """A Backend that is asked anew each time."""

    def __init__(
        self, backend: Backend, unsteered: Sequence[Text], steered: Sequence[Text], steering: Sequence[Steering]
    ) -> None:
        """Texts without a token after their prompt are left out.

        Errors: EdgeSteerError if none is left, ModelError where llama.cpp computes otherwise than the backend's model.
        """
        self.unsteered, self.steered = ([t for t in texts if len(t.following)] for texts in (unsteered, steered))
        if not self.unsteered:
            raise EdgeSteerError("no texts to compare on; at least one with a token after its prompt is needed")
        backend.check_comparable(max(len(text.tokens) for text in (*self.unsteered, *self.steered)))
        self.backend, self._with = backend, steering

    @property
    def model(self) -> ModelIdentity:
        return self.backend.model

    @property
    def steering(self) -> list[dict[str, object]]:
        return described(self._with)

    def rows(self, index: int, steered: bool) -> Iterator[Piece]:
        text, steering = (self.steered[index], self._with) if steered else (self.unsteered[index], ())
        for logits in self.backend.logit_rows(text.tokens[:-1], text.prompt, steering):
            yield logits, logsumexp(logits)

    def shift(self, index: int) -> Shift:
        return shift(self.backend, self.steered[index], self._with, first_layer(self.steering))


class Saved:
    """A saved reference, read as it is asked. Errors: EdgeSteerError for a file that is none, or is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with readable(path, "a saved reference of edge-steer").open("rb") as file:
            if file.readline(len(FORMAT)) != FORMAT:
                raise EdgeSteerError(f"{path} is no saved reference; make one with: edge-steer parity --save-reference")
            try:
                head = json.loads(file.readline(MAX_HEADER))
                self.model = ModelIdentity(**head["model"])
                self.steering: list[dict[str, object]] = head["steering"]
                self.source: dict[str, Any] = head["source"]
                self.answers: dict[str, list[dict[str, Any]]] = head["answers"]
                self._vocabulary = int(head["vocabulary"])
                self.unsteered, self.steered = (
                    [Text(tuple(map(int, text["tokens"])), int(text["prompt"])) for text in head[name]]
                    for name in ("unsteered", "steered")
                )
            except (ValueError, KeyError, TypeError) as error:
                raise self._damaged(f"its header: {error}") from None
            self._blocks = []
            while size := file.read(8):
                begin, length = file.tell(), int.from_bytes(size, "little")
                if len(size) < 8 or begin + length > path.stat().st_size:
                    raise self._damaged("its last block is cut off")
                self._blocks.append((begin, length))
                file.seek(length, 1)
        shifts = min(EFFECT_TEXTS, len(self.steered))
        if len(self._blocks) != len(self.unsteered) + len(self.steered) + shifts or self._vocabulary < 1:
            raise self._damaged(f"it has {len(self._blocks)} blocks")

    @property
    def digest(self) -> str:
        return digest(self.path)

    def rows(self, index: int, steered: bool) -> Iterator[Piece]:
        text = (self.steered if steered else self.unsteered)[index]
        begin, length = self._blocks[index + steered * len(self.unsteered)]
        count, at_once = len(text.following), max(1, PIECE_BYTES // (4 * self._vocabulary))
        with self.path.open("rb") as file:
            file.seek(begin)
            # room that is used again and again: new memory costs as much as what is done with it
            logits, room = (np.empty((min(at_once, count), self._vocabulary), dtype="<f4") for _ in range(2))
            for first in range(0, count, at_once):
                piece = logits[: count - first]
                yield piece, self._fill(piece, room.reshape(-1), file)
            if file.tell() != begin + length:
                raise self._damaged(f"block {index} has another length than its text")

    def shift(self, index: int) -> Shift:
        begin, length = self._blocks[len(self.unsteered) + len(self.steered) + index]
        text, hidden = self.steered[index], self.model.hidden_size
        rows = len(text.effect_rows)
        shapes = ((rows, self._vocabulary), (rows, hidden), (len(text.placed_positions), hidden))
        if length != 4 * sum(rows * width for rows, width in shapes):
            raise self._damaged(f"the effect on steered text {index} has {length} bytes")
        with self.path.open("rb") as file:
            file.seek(begin)
            return Shift(*(np.frombuffer(file.read(4 * r * w), "<f4").reshape(r, w) for r, w in shapes))

    def _fill(self, logits: Array, room: Array, file: BufferedReader) -> Floats:
        """Read the next rows into `logits`; gives their totals. room: for as many numbers."""
        width = 12 + (self._vocabulary + 7) // 8
        heads, counts, end = [], [], 0
        for _ in logits:
            heads.append(head := file.read(width))
            counts.append(count := int.from_bytes(head[8:12], "little"))
            if len(head) < width or count > self._vocabulary:
                raise self._damaged("a row is cut off, or has more logits than there are tokens")
            end += file.readinto(room[end : end + count].view(np.uint8).data) // 4
        head_bytes = np.frombuffer(b"".join(heads), np.uint8).reshape(len(logits), width)
        kept = np.unpackbits(head_bytes[:, 12:], axis=1, count=self._vocabulary).view(np.bool_)
        if [np.count_nonzero(row) for row in kept] != counts or end != sum(counts):
            raise self._damaged("a row has another number of logits than its bits say")
        logits.fill(-np.inf)
        logits[kept] = room[:end]
        return np.ascontiguousarray(head_bytes[:, :8]).view("<f8")[:, 0]

    def _damaged(self, why: str) -> EdgeSteerError:
        return EdgeSteerError(f"{self.path} is damaged: {why}; make it anew")


def save(
    path: Path,
    live: Baseline,
    source: Mapping[str, object],
    answers: Mapping[str, Sequence[Mapping[str, object]]],
) -> None:
    """Write a saved reference. source: what the header says of where the reference comes from.

    answers: the reference's rows by dose, as they are recorded; may be empty.
    Errors: EdgeSteerError where the file cannot be written.
    """
    vocabulary = next(live.rows(0, False))[0].shape[1]
    head = {
        "model": asdict(live.model),
        "source": {**source},
        "answers": {dose: list(rows) for dose, rows in answers.items()},
        "steering": live.steering,
        "vocabulary": vocabulary,
        "unsteered": [asdict(text) for text in live.unsteered],
        "steered": [asdict(text) for text in live.steered],
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(FORMAT + json.dumps(head).encode() + b"\n")
        for steered, texts in enumerate((live.unsteered, live.steered)):
            for index, text in enumerate(texts):
                with _Block(file) as block:
                    block.rows(live.rows(index, bool(steered)), text.following)
        for index in range(min(EFFECT_TEXTS, len(live.steered))):
            found = live.shift(index)
            with _Block(file) as block:
                for part in (found.logits, found.states, found.placed):
                    block.write(part.astype("<f4").tobytes())


def shift(backend: Backend, text: Text, steering: Sequence[Steering], first: int) -> Shift:
    """What steering does to a text in a backend. first: the first block that the reference is steered at."""
    wanted = text.effect_rows
    seen = wanted[-1] + text.prompt  # tokens that are looked at
    tokens, last = text.tokens[:seen], backend.model.block_count - 1
    placed = text.placed_positions
    later = np.isin(placed, wanted + text.prompt - 1)
    blocks = sorted({first, last})
    logits, states = [], []
    for given in (steering, ()):
        logits.append(_picked(backend.logit_rows(tokens, text.prompt, given), wanted))
        states.append(backend.record(tokens, blocks, placed.tolist(), prompt=text.prompt, steering=given))
    added = {block: states[0][block] - states[1][block] for block in blocks}
    return Shift(logits[0] - logits[1], added[last][later], added[first])


def first_layer(steering: Sequence[Mapping[str, Any]]) -> int:
    """The first block that a described steering adds something at."""
    return min(int(layer) for one in steering for layer in one["layers"])


def described(steering: Sequence[Steering]) -> list[dict[str, object]]:
    """A steering as files tell it: the digest of each vector, strength, layers and phase."""
    return [
        {"vector": s.vector.digest, "strength": s.strength, "layers": list(s.layers or ()), "phase": s.phase}
        for s in steering
    ]


class _Block:
    """A block being written: its length stands before it once it is whole."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __enter__(self) -> "_Block":
        self._begin = self._file.tell()
        self._file.write(bytes(8))
        return self

    def __exit__(self, *_: object) -> None:
        end = self._file.tell()
        self._file.seek(self._begin)
        self._file.write((end - self._begin - 8).to_bytes(8, "little"))
        self._file.seek(end)

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def rows(self, pieces: Iterator[Piece], following: npt.NDArray[np.int64]) -> None:
        for logits, totals in pieces:
            chosen, following = following[: len(logits)], following[len(logits) :]
            for row, total, token in zip(logits, totals, chosen, strict=True):
                kept = row > total + CUT
                kept[token] = True
                self.write(np.float64(total).astype("<f8").tobytes() + int(kept.sum()).to_bytes(4, "little"))
                self.write(np.packbits(kept).tobytes() + row[kept].astype("<f4").tobytes())


def _picked(pieces: Iterator[Array], wanted: npt.NDArray[np.int64]) -> Array:
    """Copies of some rows of a stream."""
    found, first = [], 0
    for piece in pieces:
        found.append(piece[wanted[(wanted >= first) & (wanted < first + len(piece))] - first])
        first += len(piece)
    picked: Array = np.concatenate(found)
    return picked
