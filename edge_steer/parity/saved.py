"""What the reference said of texts, in a file: written once, read without the reference."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.stats import Floats
from edge_steer.core.vector import Array, ModelIdentity
from edge_steer.parity.baseline import EFFECT_TEXTS, Baseline, Piece, Shift
from edge_steer.parity.texts import Text
from edge_steer.storage.files import digest, readable, replacing

FORMAT = b"edge-steer reference 1\n"
CUT = -16.0  # nats; less likely tokens are not saved
PIECE_BYTES = 2**22  # of logits that are made from a file at a time; so few stay in the cache of the processor
MAX_HEADER = 2**26


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
