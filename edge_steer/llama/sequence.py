"""A request on its way through a context: the job that waits, and the sequence that answers it token by token.

Takes logits, gives pieces and the completion. It decodes nothing and knows no other sequence.
"""

import codecs
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from edge_steer.core.backend import Completion, Finish, Piece, Request, TokenLogprobs, Tokens
from edge_steer.core.stats import logsumexp
from edge_steer.core.steering import Offsets
from edge_steer.core.streaming import GrowingCompletion, common_prefix
from edge_steer.core.vector import Array
from edge_steer.llama.model import Adapters, LlamaModel
from edge_steer.llama.prefix_cache import WORTH_COPYING, CacheKeys, LiveSteering, cache_keys
from edge_steer.llama.sampler import LlamaSampler

OnPiece = Callable[[Piece], object]
OnCompletion = Callable[[Completion], object]
OnPrefill = Callable[[int], object]  # how many tokens of the prompt are computed or were cached


@dataclass(frozen=True, eq=False)
class Job:
    """A request to run. room: the most tokens it may become. refusal: why it cannot be served, if it cannot."""

    ticket: int
    request: Request
    adapters: Adapters
    steering: LiveSteering | None
    room: int
    keys: CacheKeys  # of the prompt
    on_piece: OnPiece | None = None
    on_done: OnCompletion | None = None
    on_prefill: OnPrefill | None = None
    reuses: bool = True  # what others have cached of its prompt
    refusal: str = ""

    @property
    def length(self) -> int:
        """The most positions it may take."""
        return len(self.keys) + self.room

    @property
    def offsets(self) -> Offsets | None:
        return self.steering.offsets if self.steering else None

    @property
    def needs_rows(self) -> bool:
        """See Offsets.needs_rows."""
        return self.offsets is not None and self.offsets.needs_rows

    @property
    def is_steered_alike(self) -> bool:
        """Whether the last token of the prompt is steered like those before it."""
        return self.offsets is None or self.offsets.phase == "all"

    @property
    def steers_by_token(self) -> bool:
        """Whether each token decides anew if it is steered."""
        return self.offsets is not None and self.offsets.phase == "delimiter"


def by_prompt(jobs: Sequence[Job]) -> list[Job]:
    """The jobs as they came, but those of one prompt one after the other."""
    first: dict[Tokens, int] = {}
    for place, job in enumerate(jobs):
        first.setdefault(job.request.prompt, place)
    return sorted(jobs, key=lambda job: first[job.request.prompt])


def need_rows(jobs: Sequence[Job]) -> bool:
    """Whether jobs that run together, those of the same adapters, are steered by more than one control vector."""
    ways = {(job.adapters, id(job.offsets)) for job in jobs}
    return len(ways) > len({job.adapters for job in jobs}) or any(job.needs_rows for job in jobs)


class News:
    """What listeners are to be told, in that order; where one of them raises, the others are told the next time."""

    def __init__(self) -> None:
        self._calls: deque[tuple[int, Callable[[], object]]] = deque()  # with the ticket of the job

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, ticket: int, listener: Callable[[Any], object] | None, news: object) -> None:
        if listener:
            self._calls.append((ticket, partial(listener, news)))

    def tell(self) -> None:
        while self._calls:
            self._calls.popleft()[1]()

    def drop(self, tickets: Collection[int]) -> None:
        self._calls = deque(call for call in self._calls if call[0] not in tickets)


@dataclass
class Usage:
    """Tokens so far: prompt tokens computed before the first step, prompt tokens copied or kept, tokens generated."""

    prefilled: int = 0
    reused: int = 0
    generated: int = 0


class RunningSequence:
    """A job in a sequence of the context; `position` is the first one not yet computed. Close it when it ends."""

    def __init__(self, job: Job, position: int, model: LlamaModel) -> None:
        """Errors: RequestError for a sampling that this model cannot serve."""
        request = job.request
        self.job, self.position, self.next_token = job, position, request.prompt[-1]
        greedy = request.sampling.takes_likeliest
        self.sampler = None if greedy else LlamaSampler(request.sampling, request.prompt, model)
        shown = bool(request.stop or job.on_piece)
        self.answer = GrowingCompletion(request, job.room, model.text, _Pieces(model) if shown else None)
        self.answer.reused = position
        self._model = model

    @property
    def prefilled(self) -> bool:
        return self.position == len(self.job.request.prompt) - 1

    @property
    def offsets(self) -> Offsets | None:
        """What steers its next token."""
        offsets = self.job.offsets
        if offsets and not offsets.steered([self.next_token], self.position, len(self.job.request.prompt)).all():
            return None
        return offsets

    @property
    def keys(self) -> CacheKeys:
        """Of all positions computed so far."""
        prompt = self.job.request.prompt
        return cache_keys((*prompt, *self.answer.tokens), len(prompt), self.job.steering)[: self.position]

    def take(self, token: int, logits: Array) -> Piece | None:
        """Take the token that these logits chose; the piece it adds, if any."""
        self.position += 1
        self.next_token = token
        ended = self._model.ends(token)
        count = self.job.request.logprobs
        logprobs = None if count is None else _logprobs(token, logits, count)
        text = self.answer.take(token, ended, logprobs)
        if ended:
            return Piece(text, None) if text else None
        return Piece(text, token, logprobs) if self.job.on_piece else None

    def end(self, finish: Finish | None = None, error: str = "") -> Completion:
        """Free the sampler; the completion so far. finish: why it ends where no token ended it."""
        self.close()
        return self.answer.completion(finish, error)

    def close(self) -> None:
        if self.sampler:
            self.sampler.close()


@dataclass(frozen=True)
class PromptPart:
    """Tokens of a prompt in a batch, from the sequence's position on.

    answered: the prompt's last token is among them, and its logits choose the first token of the answer.
    """

    slot: int
    sequence: RunningSequence
    tokens: Tokens
    answered: bool

    def rows(self) -> Iterator[tuple[int, int, int, int]]:
        """Token, position, sequence and whether its logits are wanted, as a context decodes them."""
        last = len(self.tokens) - 1
        for at, token in enumerate(self.tokens):
            yield token, self.sequence.position + at, self.slot, int(self.answered and at == last)


def shares_batch(parts: Sequence[PromptPart], job: Job, slot: int, common: int, budget: int, *, hooked: bool) -> bool:
    """Whether a prompt of which `common` tokens are cached fits into a batch beside these parts.

    It waits where it can take over more of its prompt from one of them once they are computed. Those steered otherwise
    need rows, of a `hooked` context, and sequences that follow one another, which llama.cpp computes together.
    """
    shared = max(common_prefix(part.sequence.job.keys, job.keys[:-1]) for part in parts)
    alike = all(part.sequence.job.steering is job.steering for part in parts)
    by_rows = hooked and [part.slot for part in parts] == [*range(slot - len(parts), slot)]
    fits = len(job.keys) - common <= budget and (shared < common + WORTH_COPYING or not job.reuses)
    return fits and (alike or by_rows)


class _Pieces:
    """The bytes of tokens to whole characters."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self._decoder.decode(self._model.piece(token))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


def _logprobs(token: int, logits: Array, count: int) -> TokenLogprobs:
    total = float(logsumexp(logits))
    likeliest = np.argpartition(logits, -count)[-count:] if count else np.empty(0, dtype=np.int64)
    ordered = sorted(likeliest.tolist(), key=lambda other: (-logits[other], other))
    return TokenLogprobs(token, float(logits[token]) - total, tuple((t, float(logits[t]) - total) for t in ordered))
