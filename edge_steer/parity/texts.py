"""Token ids to compare on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_steer.core.backend import Backend, Tokens
from edge_steer.pairs import pair as pairs_pair
from edge_steer.storage.files import read_lines

EFFECT_POSITIONS = 8  # of each, evenly spaced


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


def read_texts(path: Path, backend: Backend) -> list[Text]:
    """Texts from a JSONL of pairs (question as prompt, negative as answer) or plain text, one a line.

    Errors: EdgeSteerError for an empty or unreadable file.
    """
    if path.suffix == ".jsonl":
        return [answered(backend, pair.question, pair.negative) for pair in pairs_pair.read(path)]
    lines = read_lines(path, "texts: pairs as .jsonl, or plain text with one text a line")
    return [Text(backend.encode(line), 1) for line in lines]


def answered(backend: Backend, question: str, answer: str) -> Text:
    """The text of a question in the chat template followed by its answer."""
    prompt = backend.chat([{"role": "user", "content": question}])
    return Text(prompt + backend.encode(answer, start=False), len(prompt))
