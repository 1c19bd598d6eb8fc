"""Rows of a batch being answered in PyTorch: their tokens, their growing text, how the next token is chosen.

Takes logits and requests, gives token ids and text. It runs no model.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edge_steer.core.backend import Request, TokenLogprobs
from edge_steer.core.sampling import Sampling
from edge_steer.core.steering import Offsets
from edge_steer.core.streaming import GrowingCompletion

Decode = Callable[[Sequence[int]], str]


class Run(GrowingCompletion):
    """A request being answered: one row of a batch."""

    def __init__(
        self, index: int, request: Request, offsets: Offsets | None, room: int, decode: Decode, streams: bool
    ) -> None:
        """room: how many tokens it may become. streams: whether someone reads its text along."""
        super().__init__(request, room, decode, DecodedCharacters(decode) if streams or request.stop else None)
        self.index, self.request, self.offsets = index, request, offsets
        self.generator = torch.Generator().manual_seed(request.sampling.seed)


class DecodedCharacters:
    """Tokens to whole characters, by decoding those of the last characters again with the new one."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._tokens: list[int] = []  # of the last characters shown, for context, and of those to come
        self._shown = 0  # how many of these tokens are of characters already shown

    def add(self, token: int) -> str:
        """The characters that are whole by this token."""
        self._tokens.append(token)
        new = self._not_shown()
        if new.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        del self._tokens[: self._shown]
        self._shown = len(self._tokens)
        return new

    def finish(self) -> str:
        """What is left, whole or not."""
        new = self._not_shown()
        self._shown = len(self._tokens)
        return new

    def _not_shown(self) -> str:
        return self._decode(self._tokens)[len(self._decode(self._tokens[: self._shown])) :]


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
    scores = logits[tokens]
    scores = torch.where(scores > 0, scores / sampling.repeat_penalty, scores * sampling.repeat_penalty)
    result = logits.clone()
    result[tokens] = scores - (counts * sampling.frequency_penalty + sampling.presence_penalty)
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
