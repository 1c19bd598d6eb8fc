"""The reference's side in a file: written once, read without the reference.

A saved reference is one file: a line that names the format, a line of JSON (model, steering, vocabulary, texts), then
a block of bytes for each text: its length as int64, and inside it, all little-endian:

    for each position: float64 log(sum(exp(logits))), uint32 count, a bit for each token of the vocabulary (first token
    in the highest bit), then float32 logits of the tokens whose bit is set
    for each of the first steered texts: what steering changes in the logits (float32 positions x vocabulary) and in the
    residual stream after the last block (float32 positions x hidden), at the text's effect_rows, and in that after
    the first steered block (float32 positions x hidden), at these and the first and a middle one of the prompt

It holds the token that follows and those whose log-probability is above -16, which are those llama-perplexity counts.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edge_steer.core.backend import Backend
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.stats import Floats
from edge_steer.core.vector import Array, ModelIdentity
from edge_steer.parity.baseline import EFFECT_TEXTS, Baseline, Piece, SteeringEffect, SteeringRecord
from edge_steer.parity.texts import TokenisedText
from edge_steer.storage.files import readable, replacing

FORMAT = b"edge-steer reference 1\n"
CUT = -16.0  # nats; less likely tokens are not saved
PIECE_BYTES = 2**22  # of logits that are read at a time; so few stay in the cache of the processor
MAX_HEADER = 2**26


class SavedReference:
    """A reference in a file. Logits are read when they are asked for."""

    def __init__(self, path: str | Path, exact_backend: Backend | None = None) -> None:
        """exact_backend: the running reference, for the mechanism, which a file cannot answer.

        Errors: EdgeSteerError for a file that is no saved reference, or is damaged.
        """
        self.path = path = Path(path)
        self.exact_backend = exact_backend
        with readable(path, "a saved reference of edge-steer").open("rb") as file:
            if file.readline(len(FORMAT)) != FORMAT:
                raise EdgeSteerError(f"{path} is no saved reference")
            try:
                head = json.loads(file.readline(MAX_HEADER))
                self.model = ModelIdentity(**head["model"])
                self.steering = tuple(
                    SteeringRecord(**{**record, "layers": tuple(record["layers"])}) for record in head["steering"]
                )
                self.source: dict[str, Any] = head["source"]
                self.answers: dict[str, list[dict[str, Any]]] = head["answers"]
                self._vocabulary = int(head["vocabulary"])
                self.unsteered, self.steered = (
                    [_text(text) for text in head[name]] for name in ("unsteered", "steered")
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
        effects = min(EFFECT_TEXTS, len(self.steered))
        if len(self._blocks) != len(self.unsteered) + len(self.steered) + effects or self._vocabulary < 1:
            raise self._damaged(f"it has {len(self._blocks)} blocks")

    def rows(self, index: int, steered: bool) -> Iterator[Piece]:
        text = (self.steered if steered else self.unsteered)[index]
        begin, length = self._blocks[index + steered * len(self.unsteered)]
        count, at_once = len(text.following), max(1, PIECE_BYTES // (4 * self._vocabulary))
        with self.path.open("rb") as file:
            file.seek(begin)
            # reused buffers: allocating costs as much as computing
            logits, buffer = (np.empty((min(at_once, count), self._vocabulary), dtype="<f4") for _ in range(2))
            for first in range(0, count, at_once):
                piece = logits[: count - first]
                yield piece, self._fill(piece, buffer.reshape(-1), file)
            if file.tell() != begin + length:
                raise self._damaged(f"block {index} has another length than its text")

    def effect(self, index: int) -> SteeringEffect:
        begin, length = self._blocks[len(self.unsteered) + len(self.steered) + index]
        text, hidden = self.steered[index], self.model.hidden_size
        rows = len(text.effect_rows)
        shapes = ((rows, self._vocabulary), (rows, hidden), (len(text.first_block_positions), hidden))
        if length != 4 * sum(rows * width for rows, width in shapes):
            raise self._damaged(f"the effect on steered text {index} has {length} bytes")
        with self.path.open("rb") as file:
            file.seek(begin)
            return SteeringEffect(*(np.frombuffer(file.read(4 * r * w), "<f4").reshape(r, w) for r, w in shapes))

    def _fill(self, logits: Array, buffer: Array, file: BufferedReader) -> Floats:
        """Read the next rows into `logits`; gives their totals. buffer: for as many numbers."""
        width = 12 + (self._vocabulary + 7) // 8
        heads, counts, end = [], [], 0
        for _ in logits:
            heads.append(head := file.read(width))
            counts.append(count := int.from_bytes(head[8:12], "little"))
            if len(head) < width or count > self._vocabulary:
                raise self._damaged("a row is cut off, or has more logits than there are tokens")
            end += file.readinto(buffer[end : end + count].view(np.uint8).data) // 4
        head_bytes = np.frombuffer(b"".join(heads), np.uint8).reshape(len(logits), width)
        likely = np.unpackbits(head_bytes[:, 12:], axis=1, count=self._vocabulary).view(np.bool_)
        if [np.count_nonzero(row) for row in likely] != counts or end != sum(counts):
            raise self._damaged("a row has another number of logits than its bits say")
        logits.fill(-np.inf)
        logits[likely] = buffer[:end]
        return np.ascontiguousarray(head_bytes[:, :8]).view("<f8")[:, 0]

    def _damaged(self, why: str) -> EdgeSteerError:
        return EdgeSteerError(f"{self.path} is damaged: {why}; save it again")


def save(
    path: str | Path,
    baseline: Baseline,
    source: Mapping[str, object],
    answers: Mapping[str, Sequence[Mapping[str, object]]],
    progress: Progress = SILENT,
) -> None:
    """Write a saved reference. source: where the reference comes from, for the header.

    answers: the reference's rows by dose, as they are recorded; may be empty.
    Errors: EdgeSteerError where the file cannot be written.
    """
    vocabulary = next(baseline.rows(0, False))[0].shape[1]
    head = {
        "model": asdict(baseline.model),
        "source": {**source},
        "answers": {dose: list(rows) for dose, rows in answers.items()},
        "steering": [asdict(record) for record in baseline.steering],
        "vocabulary": vocabulary,
        "unsteered": [asdict(text) for text in baseline.unsteered],
        "steered": [asdict(text) for text in baseline.steered],
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(FORMAT + json.dumps(head).encode() + b"\n")
        for steered, texts in enumerate((baseline.unsteered, baseline.steered)):
            doing = f"the reference on {'steered' if steered else 'unsteered'} texts"
            for index, text in enumerate(progress.counted(doing, texts)):
                with _Block(file) as block:
                    block.rows(baseline.rows(index, bool(steered)), text.following)
        effects = range(min(EFFECT_TEXTS, len(baseline.steered)))
        for index in progress.counted("the effect of steering on the reference", effects):
            effect = baseline.effect(index)
            with _Block(file) as block:
                for part in (effect.logits, effect.states, effect.at_first_block):
                    block.write(part.astype("<f4").tobytes())


def _text(saved: Mapping[str, Any]) -> TokenisedText:
    tokens, delimiters = (tuple(map(int, saved.get(key, ()))) for key in ("tokens", "delimiters"))
    return TokenisedText(tokens, int(saved["prompt"]), delimiters)


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
                likely = row > total + CUT
                likely[token] = True
                self.write(np.float64(total).astype("<f8").tobytes() + int(likely.sum()).to_bytes(4, "little"))
                self.write(np.packbits(likely).tobytes() + row[likely].astype("<f4").tobytes())
