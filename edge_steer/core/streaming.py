"""A completion that grows token by token: its tokens, its text up to a stop string, when it ends.

Takes tokens, gives the text that can be shown by now and at last the completion. It runs no model; making characters
of tokens, whole ones, is the caller's. The text does not depend on how its characters were cut into pieces.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_steer.core.backend import Completion, Finish, Request, Timings, TokenLogprobs


class StreamedText:
    """Text up to the stop string that is complete first; where two end together, up to the longer one."""

    def __init__(self, stop: Sequence[str]) -> None:
        """stop: none of them empty."""
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=1)
        self._shown = 0
        self.text = ""
        self.stopped = False

    def add(self, new_characters: str) -> str:
        """Take characters; give those that can no longer become part of a stop string. After a stop, none."""
        if self.stopped:
            return ""
        searched = max(0, len(self.text) + 1 - self._longest)
        self.text += new_characters
        ends = [(at + len(stop), at) for stop in self._stop if (at := self.text.find(stop, searched)) >= 0]
        if ends:
            self.text, self.stopped = self.text[: min(ends)[1]], True
            return self.finish()
        return self._show(len(self.text) - self._held_back())

    def finish(self) -> str:
        """Give all that was held back."""
        return self._show(len(self.text))

    def _show(self, upto: int) -> str:
        new, self._shown = self.text[self._shown : upto], upto
        return new

    def _held_back(self) -> int:
        """How many of the last characters are the beginning of a stop string."""
        tail = self.text[max(0, len(self.text) + 1 - self._longest) :]
        return next((n for n in range(len(tail), 0, -1) if any(s.startswith(tail[-n:]) for s in self._stop)), 0)


class Characters(Protocol):
    """Tokens to whole characters; those of a character that needs more tokens wait for them."""

    def add(self, token: int) -> str:
        """The characters that are whole by this token."""

    def finish(self) -> str:
        """What is left, whole or not."""


class GrowingCompletion:
    """The answer to one request while it is generated. `finish` is None until the last token."""

    def __init__(
        self, request: Request, room: int, decode: Callable[[Sequence[int]], str], characters: Characters | None
    ) -> None:
        """room: how many tokens it may become. characters: None if nobody reads along and nothing stops the text."""
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.ending: TokenLogprobs | None = None
        self.finish: Finish | None = None
        self.reused = 0
        self._room, self._decode, self._characters = room, decode, characters
        self._text = StreamedText(request.stop)
        self._started = time.perf_counter()
        self._first_token = 0.0

    def take(self, token: int, ended: bool, logprobs: TokenLogprobs | None = None) -> str:
        """Take the next token, or learn that it `ended` the text; give the text that can be shown by now."""
        if not self._first_token:
            self._first_token = time.perf_counter()
        if ended:
            self.ending = logprobs
        else:
            self.tokens.append(token)
            if logprobs:
                self.logprobs.append(logprobs)
        full = len(self.tokens) >= self._room
        new = self._grow(token, ended, full) if self._characters else ""
        if ended or self._text.stopped:
            self.finish = "stop"
        elif full:
            self.finish = "length"
        return new

    def completion(self, finish: Finish | None = None, error: str = "") -> Completion:
        """What it has become. finish: why it ends where no token ended it."""
        text = self._text.text if self._text.stopped else self._decode(self.tokens)
        end = time.perf_counter()
        first = self._first_token or end
        timings = Timings(first - self._started, end - first, self.reused)
        return Completion(
            text,
            tuple(self.tokens),
            finish or self.finish or "cancelled",
            tuple(self.logprobs),
            error,
            timings,
            self.ending,
        )

    def _grow(self, token: int, ended: bool, full: bool) -> str:
        assert self._characters
        new = "" if ended else self._text.add(self._characters.add(token))
        if ended or full:
            new += self._text.add(self._characters.finish()) + self._text.finish()
        return new


def common_prefix(first: npt.ArrayLike, second: npt.ArrayLike) -> int:
    """How many numbers two sequences have in common, from the first on."""
    a, b = np.asarray(first), np.asarray(second)
    count = min(len(a), len(b))
    differs = a[:count] != b[:count]
    return int(differs.argmax()) if differs.any() else count
