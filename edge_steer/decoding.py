"""One row of a batch being answered in PyTorch: its tokens, its growing text, how its next token is chosen.

Takes logits and requests, gives token ids and text. It runs no model.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from edge_steer.backend import Completion, Request, Sampling
from edge_steer.vector import Offsets


class Run:
    """A request being answered: one row of a batch."""

    def __init__(self, index: int, request: Request, offsets: Offsets | None, room: int, text: "Text | None") -> None:
        self.index, self.request, self.offsets, self.room, self.text = index, request, offsets, room, text
        self.tokens: list[int] = []
        self.finish: Literal["stop", "length"] | None = None
        self.generator = torch.Generator().manual_seed(request.sampling.seed)

    def completion(self, decode: Callable[[Sequence[int]], str]) -> Completion:
        assert self.finish
        text = self.text.text if self.text and self.text.stopped else decode(self.tokens)
        return Completion(text, tuple(self.tokens), self.finish)


class Text:
    """The growing text of one completion: tokens to characters, stop strings found, never shown half."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> None:
        self._decode, self._stop = decode, stop
        self._hold = max((len(s) for s in stop), default=1) - 1
        self._tokens: list[int] = []  # those of the last characters, for context, and those not yet told
        self._told = 0  # how many of these tokens are in `text`
        self._shown = 0
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Take a token; give the characters that can no longer become part of a stop string."""
        self._tokens.append(token)
        return self._tell(complete=False)

    def finish(self) -> str:
        """Give all that was held back."""
        return self._tell(complete=True)

    def _tell(self, complete: bool) -> str:
        before, after = self._decode(self._tokens[: self._told]), self._decode(self._tokens)
        searched = max(0, len(self.text) - self._hold)
        if complete or not after.endswith("\N{REPLACEMENT CHARACTER}"):
            self.text += after[len(before) :]
            del self._tokens[: self._told]
            self._told = len(self._tokens)
        if found := [at for stop in self._stop if (at := self.text.find(stop, searched)) >= 0]:
            self.text, self.stopped = self.text[: min(found)], True
        upto = len(self.text) if complete or self.stopped else max(self._shown, len(self.text) - self._hold)
        new, self._shown = self.text[self._shown : upto], upto
        return new


def choose(logits: Tensor, runs: Sequence[Run]) -> list[int]:
    """The next token of each row of logits (rows, vocabulary)."""
    tokens: list[int] = logits.argmax(-1).tolist()
    for row, run in enumerate(runs):
        if run.request.sampling.temperature:
            tokens[row] = draw(logits[row].cpu(), run.request.sampling, run.generator)
    return tokens


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Top-k, top-p, min-p, temperature, then a draw: the order of llama.cpp."""
    values, ids = logits.double().sort(descending=True, stable=True)
    if sampling.top_k:
        values = values[: sampling.top_k]
    if sampling.top_p < 1:
        shares = values.softmax(0)
        values = values[: int((shares.cumsum(0) - shares < sampling.top_p).sum())]
    if sampling.min_p:
        values = values[values >= values[0] + math.log(sampling.min_p)]
    shares = (values / sampling.temperature).softmax(0)
    return int(ids[torch.multinomial(shares, 1, generator=generator)])
