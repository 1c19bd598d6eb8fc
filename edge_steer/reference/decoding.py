"""Rows of a batch being answered in PyTorch: their tokens, their growing text, how the next token is chosen.

Takes logits and requests, gives token ids and text. It runs no model.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from edge_steer.core.backend import Completion, Request, TokenLogprobs
from edge_steer.core.sampling import Sampling
from edge_steer.core.steering import Offsets
from edge_steer.core.streaming import Text

Decode = Callable[[Sequence[int]], str]


class Run:
    """A request being answered: one row of a batch."""

    def __init__(
        self, index: int, request: Request, offsets: Offsets | None, room: int, decode: Decode, streams: bool
    ) -> None:
        """room: how many tokens it may make. streams: whether anyone listens to its text."""
        self.index, self.request, self.offsets, self.room = index, request, offsets, room
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.finish: Literal["stop", "length"] | None = None
        self.generator = torch.Generator().manual_seed(request.sampling.seed)
        self.started = 0.0
        self._decode = decode
        self._characters = Characters(decode)
        self._text = Text(request.stop) if streams or request.stop else None

    def take(self, token: int, logprobs: TokenLogprobs | None, ended: bool) -> str:
        """Take the next token, of which an end token is not kept; give the text that can be shown by it."""
        if not ended:
            self.tokens.append(token)
            if logprobs:
                self.logprobs.append(logprobs)
        full = len(self.tokens) == self.room
        new = ""
        if self._text:
            new = "" if ended else self._text.add(self._characters.add(token))
            if ended or full:
                new += self._text.add(self._characters.finish()) + self._text.finish()
            ended = ended or self._text.stopped
        self.finish = "stop" if ended else "length" if full else None
        return new

    def completion(self) -> Completion:
        assert self.finish
        text = self._text.text if self._text and self._text.stopped else self._decode(self.tokens)
        seconds = time.perf_counter() - self.started
        return Completion(text, tuple(self.tokens), self.finish, tuple(self.logprobs), seconds=seconds)


class Characters:
    """Tokens to whole characters: those of a character that needs more tokens wait for them."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._tokens: list[int] = []  # those of the last characters, for context, and those not yet told
        self._told = 0  # how many of these tokens have been told

    def add(self, token: int) -> str:
        """The characters that are whole by this token."""
        self._tokens.append(token)
        new = self._untold()
        if new.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        del self._tokens[: self._told]
        self._told = len(self._tokens)
        return new

    def finish(self) -> str:
        """What is left, whole or not."""
        new = self._untold()
        self._told = len(self._tokens)
        return new

    def _untold(self) -> str:
        return self._decode(self._tokens)[len(self._decode(self._tokens[: self._told])) :]


def choose(logits: Tensor, runs: Sequence[Run]) -> list[int]:
    """The next token of each row of logits (rows, vocabulary)."""
    tokens: list[int] = logits.argmax(-1).tolist()
    for row, run in enumerate(runs):
        sampling = run.request.sampling
        if not (sampling.temperature or sampling.penalises):
            continue
        scores = logits[row].cpu()
        if sampling.penalises:
            scores = penalised(scores, [*run.request.prompt, *run.tokens][-sampling.repeat_last_n :], sampling)
        tokens[row] = draw(scores, sampling, run.generator) if sampling.temperature else int(scores.argmax())
    return tokens


def penalised(logits: Tensor, seen: Sequence[int], sampling: Sampling) -> Tensor:
    """Logits (vocabulary,) less what the tokens seen cost, as llama.cpp's penalties sampler has it.

    A logit above 0 is divided by repeat_penalty, another multiplied by it; then off goes
    count * frequency_penalty + presence_penalty.
    """
    occurrences = Counter(seen)
    tokens, counts = torch.tensor(list(occurrences)), torch.tensor(list(occurrences.values()))
    found = logits[tokens]
    found = torch.where(found > 0, found / sampling.repeat_penalty, found * sampling.repeat_penalty)
    result = logits.clone()
    result[tokens] = found - (counts * sampling.frequency_penalty + sampling.presence_penalty)
    return result


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


def token_logprobs(logits: Tensor, token: int, count: int) -> TokenLogprobs:
    """The log-probability of the token and those of the `count` likeliest, from logits (vocabulary,)."""
    values = logits.double().log_softmax(0)
    best = values.topk(min(count, len(values)))
    return TokenLogprobs(
        token, float(values[token]), tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    )
