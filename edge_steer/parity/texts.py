"""Token ids to compare on: from pairs, plain texts, or a file of either.

Takes what a user compares on and the Backend that tokenises it, gives TokenisedTexts. It runs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from edge_steer.core.backend import Backend, Tokens
from edge_steer.core.errors import EdgeSteerError
from edge_steer.pairs.pair import Pair, read_pairs
from edge_steer.storage.files import read_lines

EFFECT_POSITIONS = 8  # of each text, evenly spaced
FEW_DELIMITERS = 3


@dataclass(frozen=True)
class TokenisedText:
    """Token ids to compare on; the first `prompt` of them are the prompt.

    delimiters: for a steering of phase "delimiter" the positions it steers.
    """

    tokens: Tokens
    prompt: int
    delimiters: tuple[int, ...] = ()

    @property
    def following(self) -> npt.NDArray[np.int64]:
        """The tokens after the prompt. The position before each of them is compared."""
        return np.asarray(self.tokens[self.prompt :], dtype=np.int64)

    @property
    def effect_rows(self) -> npt.NDArray[np.int64]:
        """Which of the compared positions the effect of steering is measured at: some of all, and of the delimiters."""
        last = len(self.tokens) - self.prompt - 1
        delimiters = np.array(self.delimiters, dtype=np.int64) - self.prompt + 1
        return np.unique(np.concatenate((_spread(np.arange(last + 1)), _spread(delimiters))))

    @property
    def first_block_positions(self) -> npt.NDArray[np.int64]:
        """Positions at which the residual stream after the first steered block is compared.

        They are the effect's and two of the prompt. Those two tell the phases apart.
        """
        return np.unique([0, (self.prompt - 1) // 2, *(self.effect_rows + self.prompt - 1)])

    @property
    def to_delimiters(self) -> Self:
        """The text as far as the first few of its delimiters."""
        return replace(self, tokens=self.tokens[: self.delimiters[:FEW_DELIMITERS][-1] + 1])

    def shortened(self, prompt: int, following: int) -> Self:
        """The text's first tokens: at most `prompt` of the prompt and `following` behind them."""
        prompt = min(self.prompt, prompt)
        return type(self)(self.tokens[: prompt + following], prompt)


TextSource = TokenisedText | Pair | str
Texts = str | Path | Sequence[TextSource]


def tokenise_texts(texts: Texts, backend: Backend) -> list[TokenisedText]:
    """What `texts=` of parity functions takes, as token ids.

    texts: a file (see `read_texts`), or a sequence of pairs (their negative sides), plain texts (their first token is
    the prompt) or token ids. Errors: EdgeSteerError for anything else.
    """
    if isinstance(texts, str | Path):
        return read_texts(texts, backend)
    return [_tokenised(text, backend) for text in texts]


def read_texts(path: str | Path, backend: Backend) -> list[TokenisedText]:
    """Texts from a JSONL of pairs, or from plain text with one text a line.

    Errors: EdgeSteerError for an empty or unreadable file.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        return tokenise_texts(read_pairs(path), backend)
    return tokenise_texts(read_lines(path, "texts: pairs as .jsonl, or plain text with one text a line"), backend)


def question_and_answer(backend: Backend, question: str, answer: str) -> TokenisedText:
    """The text of a question in the chat template, followed by its answer."""
    prompt = backend.chat([{"role": "user", "content": question}])
    return TokenisedText(prompt + backend.encode(answer, start=False), len(prompt))


def _spread(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """At most EFFECT_POSITIONS of them, evenly spaced."""
    if not len(positions):
        return positions
    return positions[np.linspace(0, len(positions) - 1, EFFECT_POSITIONS).astype(np.int64)]


def _tokenised(text: TextSource, backend: Backend) -> TokenisedText:
    if isinstance(text, TokenisedText):
        return text
    if isinstance(text, Pair):
        prompt, answer = text.sides[1].tokens(backend)
        return TokenisedText(prompt + answer, max(1, len(prompt)))
    if isinstance(text, str):
        return TokenisedText(backend.encode(text), 1)
    raise EdgeSteerError(f"a {type(text).__name__} is no text to compare on; give pairs, strings or TokenisedTexts")
