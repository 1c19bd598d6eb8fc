"""Requests driven through one llama.cpp context until all are answered: decode first, then admit.

Takes jobs (requests with their offsets), gives completions as they end. A prompt's beginning that another sequence
holds, computed under the same steering, is copied and not computed again. It chooses no context and loads no model.
"""

import codecs
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edge_steer.core.backend import Completion, Finish, OnText, Request, TokenLogprobs
from edge_steer.core.stats import logsumexp
from edge_steer.core.steering import Offsets
from edge_steer.core.streaming import Text
from edge_steer.core.vector import Array
from edge_steer.llama.context import LlamaContext
from edge_steer.llama.model import LlamaModel
from edge_steer.llama.sampler import LlamaSampler

Codes = npt.NDArray[np.int64]
WORTH_COPYING = 16  # tokens; a shorter common beginning is computed again


@dataclass(frozen=True)
class Job:
    """A request to run: its place among the requests, the most tokens it may become, what its KV cache depends on."""

    index: int
    request: Request
    offsets: Offsets | None
    room: int
    codes: Codes


@dataclass
class Usage:
    """Tokens so far: prompt tokens computed before the first step, prompt tokens copied or kept, tokens generated."""

    prefilled: int = 0
    reused: int = 0
    generated: int = 0


def codes(tokens: Sequence[int], prompt: int, offsets: Offsets | None, number: int) -> Codes:
    """A number for each position that stands for its token and its steering; `number` stands for the offsets.

    Two sequences have the same KV cache as far as their codes agree from the first position on.
    """
    result = np.array(tokens, dtype=np.int64)
    if offsets:
        result[prompt - 1 if offsets.phase == "generated" else 0 :] += number << 32
    return result


def shared(a: Codes, b: Codes) -> int:
    """How many positions two sequences have in common, from the first on."""
    count = min(len(a), len(b))
    differs = a[:count] != b[:count]
    return int(differs.argmax()) if differs.any() else count


def steering_of(context: LlamaContext) -> "_Native | _Rows":
    """How the context is steered: by rows if it is hooked."""
    return _Rows(context) if context.hooked else _Native(context)


class Scheduler:
    """The running sequences are always 0..k-1: llama.cpp runs a batch as one graph only if its ids have no holes."""

    def __init__(
        self,
        model: LlamaModel,
        context: LlamaContext,
        jobs: Sequence[Job],
        *,
        slots: int,
        usage: Usage,
        on_text: OnText | None,
    ) -> None:
        """slots: the most sequences that run at once. Jobs of one prompt run one after the other."""
        first = {job.request.prompt: place for place, job in reversed(list(enumerate(jobs)))}
        self._waiting = sorted(jobs, key=lambda job: first[job.request.prompt])[::-1]
        self._model, self._context, self._slots = model, context, slots
        self._usage, self._on_text = usage, on_text
        self._steering = steering_of(context)
        self._running: list[_Sequence | None] = []
        self._filling: tuple[int, _Sequence] | None = None
        self._cached: list[Codes] = [np.empty(0, dtype=np.int64)] * slots
        self._cancelled: set[int] = set()
        self._can_trim = True

    def run(self) -> Iterator[tuple[int, Completion]]:
        """Answer every job; completions with the index of their job, as they end."""
        try:
            while self._waiting or self._filling or self._running:
                self._admit()
                yield from self._step()
                if self._cancelled:
                    yield from self._cancel()
        finally:
            for sequence in (*self._running, self._filling and self._filling[1]):
                if sequence:
                    sequence.close()

    def cancel(self, index: int) -> None:
        """End the job before its next token and free its sequence."""
        self._cancelled.add(index)

    def _admit(self) -> None:
        """Prefill prompts, all but their last token, which the next step decodes with the others.

        While someone reads along, the running sequences wait for no more than one batch of it.
        """
        budget = self._context.batch if self._on_text and self._running else sys.maxsize
        while budget > 0 and (self._filling or self._begin(budget)):
            assert self._filling
            slot, sequence = self._filling
            budget -= self._fill(slot, sequence, budget)
            if not sequence.prefilled:
                break
            self._join(slot, sequence)
        self._compact()

    def _begin(self, budget: int) -> bool:
        """Give the next job a sequence and what others have cached of its prompt."""
        slot = self._free_slot()
        if not self._waiting or slot >= self._slots:
            return False
        job = self._waiting[-1]
        donor, common = self._donor(job, slot)
        if len(job.codes) - 1 - common > budget and slot < len(self._running):
            self._compact()  # a hole would split every batch until the prompt is whole
            slot = len(self._running)
            donor, common = self._donor(job, slot)
        self._waiting.pop()
        if donor != slot:
            self._context.copy(donor, slot)
        if not self._context.forget(slot, common):
            self._can_trim, common = False, 0
            self._context.forget(slot)
        self._cached[slot] = job.codes[:common]
        self._usage.reused += common
        self._filling = slot, _Sequence.start(job, common, self._model, streams=self._on_text is not None)
        return True

    def _donor(self, job: Job, slot: int) -> tuple[int, int]:
        """The sequence that has most of the job's prompt, and how much; `slot` itself unless copying is worth it."""
        if not self._can_trim:
            return slot, 0
        head = job.codes[:-1]
        common = [shared(cached, head) for cached in self._cached]
        best = max(common)
        return (common.index(best), best) if best >= max(WORTH_COPYING, common[slot] + 1) else (slot, common[slot])

    def _fill(self, slot: int, sequence: "_Sequence", budget: int) -> int:
        job, start = sequence.job, sequence.position
        part = job.request.prompt[start:-1][:budget]
        self._steering.before_prefill(job.offsets)
        self._context.prefill(part, start, slot)
        sequence.position += len(part)
        self._usage.prefilled += len(part)
        self._cached[slot] = job.codes[: sequence.position]
        return len(part)

    def _join(self, slot: int, sequence: "_Sequence") -> None:
        self._filling = None
        if slot < len(self._running):
            self._running[slot] = sequence
            return
        self._move(slot, len(self._running))
        self._running.append(sequence)

    def _free_slot(self) -> int:
        return self._running.index(None) if None in self._running else len(self._running)

    def _compact(self) -> None:
        """Fill every hole with the last running sequence."""
        while None in self._running:
            last = self._running.pop()
            if last:
                hole = self._running.index(None)
                self._move(len(self._running), hole)
                self._running[hole] = last

    def _move(self, source: int, target: int) -> None:
        if source != target:
            self._context.copy(source, target)
            self._cached[target] = self._cached[source]

    def _step(self) -> Iterator[tuple[int, Completion]]:
        """One token for every running sequence; those that end give their completion and leave a hole."""
        running = [sequence for sequence in self._running if sequence]
        if not running:
            return
        self._steering.before_step([sequence.job.offsets for sequence in running])
        tokens, positions = [s.next_token for s in running], [s.position for s in running]
        self._context.decode(tokens, positions, range(len(running)), 1)
        self._usage.generated += len(running)
        logits = self._context.logits()
        best: list[int] = logits.argmax(axis=1).tolist()
        ended: list[tuple[int, Completion]] = []
        for slot, sequence in enumerate(running):
            sampler = sequence.sampler
            token = best[slot] if sampler is None else sampler.sample(self._context.handle, slot)
            if completion := sequence.accept(token, logits[slot], self._on_text):
                self._running[slot] = None
                ended.append((sequence.job.index, completion))
        yield from ended

    def _cancel(self) -> Iterator[tuple[int, Completion]]:
        ended: list[tuple[int, Completion]] = []
        for slot, sequence in enumerate(self._running):
            if sequence and sequence.job.index in self._cancelled:
                self._running[slot] = None
                ended.append((sequence.job.index, sequence.end("cancelled")))
        if self._filling and self._filling[1].job.index in self._cancelled:
            sequence, self._filling = self._filling[1], None
            ended.append((sequence.job.index, sequence.end("cancelled")))
        for job in [job for job in self._waiting if job.index in self._cancelled]:
            self._waiting.remove(job)
            ended.append((job.index, Completion("", (), "cancelled")))
        self._cancelled.clear()
        self._compact()
        yield from ended


@dataclass
class _Sequence:
    """A job in a sequence of the context; `position` is the first one not yet computed."""

    job: Job
    position: int
    next_token: int
    model: LlamaModel
    sampler: LlamaSampler | None
    text: "_Decoded | None"
    started: float
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    @classmethod
    def start(cls, job: Job, position: int, model: LlamaModel, *, streams: bool) -> "_Sequence":
        request, sampling = job.request, job.request.sampling
        sampler = None if sampling.takes_likeliest else LlamaSampler(sampling, request.prompt, model)
        text = _Decoded(request.stop) if request.stop or streams else None
        return cls(job, position, request.prompt[-1], model, sampler, text, time.perf_counter())

    @property
    def prefilled(self) -> bool:
        return self.position == len(self.job.request.prompt) - 1

    def accept(self, token: int, logits: Array, on_text: OnText | None) -> Completion | None:
        """Take the token that its logits chose; its completion if that was the last one."""
        self.position += 1
        self.next_token = token
        ended = self.model.ends(token)
        if not ended:
            self.tokens.append(token)
            if self.job.request.logprobs is not None:
                self.logprobs.append(_logprobs(token, logits, self.job.request.logprobs))
        full = len(self.tokens) >= self.job.room
        if self.text:
            new = "" if ended else self.text.add(self.model.piece(token))
            if (ended or full) and not self.text.stopped:
                new += self.text.finish()
            ended = ended or self.text.stopped
            if new and on_text:
                on_text(self.job.index, new)
        return self.end("stop" if ended else "length") if ended or full else None

    def end(self, finish: Finish) -> Completion:
        self.close()
        raw = b"".join(map(self.model.piece, self.tokens))
        said = self.text.text if self.text else raw.decode(errors="replace")
        seconds = time.perf_counter() - self.started
        return Completion(said, tuple(self.tokens), finish, tuple(self.logprobs), seconds=seconds)

    def close(self) -> None:
        if self.sampler:
            self.sampler.close()


class _Decoded:
    """The growing text of one completion, from the bytes of its tokens."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = Text(stop)

    @property
    def text(self) -> str:
        return self._text.text

    @property
    def stopped(self) -> bool:
        return self._text.stopped

    def add(self, piece: bytes) -> str:
        return self._text.add(self._decoder.decode(piece))

    def finish(self) -> str:
        return self._text.add(self._decoder.decode(b"", final=True)) + self._text.finish()


class _Native:
    """One steering for all, as llama.cpp's own control vector."""

    def __init__(self, context: LlamaContext) -> None:
        self._context = context

    def before_prefill(self, offsets: Offsets | None) -> None:
        self._context.steer(offsets.by_layer if offsets and offsets.phase == "all" else None)

    def before_step(self, offsets: Sequence[Offsets | None]) -> None:
        self._context.steer(offsets[0].by_layer if offsets[0] else None)


class _Rows:
    """A steering of its own for each sequence, as rows added to the residual stream."""

    def __init__(self, context: LlamaContext) -> None:
        self._context = context
        self._in_force: tuple[int, ...] | None = None

    def before_prefill(self, offsets: Offsets | None) -> None:
        self._in_force = None
        whole = offsets.by_layer if offsets and offsets.phase == "all" else {}
        self._context.add({layer: offset[None] for layer, offset in whole.items()})

    def before_step(self, offsets: Sequence[Offsets | None]) -> None:
        asked = tuple(map(id, offsets))
        if asked == self._in_force:
            return
        self._in_force = asked
        rows: dict[int, Array] = {}
        for row, held in enumerate(offsets):
            for layer, offset in held.by_layer.items() if held else ():
                if layer not in rows:
                    rows[layer] = np.zeros((len(offsets), len(offset)), dtype=np.float32)
                rows[layer][row] = offset
        self._context.add(rows)


def _logprobs(token: int, logits: Array, count: int) -> TokenLogprobs:
    total = float(logsumexp(logits))
    likeliest = np.argpartition(logits, -count)[-count:] if count else np.empty(0, dtype=np.int64)
    ordered = sorted(likeliest.tolist(), key=lambda other: (-logits[other], other))
    return TokenLogprobs(token, float(logits[token]) - total, tuple((t, float(logits[t]) - total) for t in ordered))
