"""Requests driven through one llama.cpp context, which may come at any time: decode first, then admit.

Takes jobs (requests with their steering), calls back with pieces and completions. Where all live requests agree, they
are steered by llama.cpp's own control vector; where they differ, or steer layer 0, by rows added to the residual
stream. It loads no model.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from edge_steer.core.backend import Completion
from edge_steer.core.errors import EdgeSteerError, ModelError, OutOfMemory
from edge_steer.llama.context import ControlVectorSteering, GrowingContext, LlamaContext, RowSteering, steering_of
from edge_steer.llama.model import LlamaModel
from edge_steer.llama.prefix_cache import NO_KEYS, PrefixCache
from edge_steer.llama.sequence import Job, RunningSequence, Usage


class Scheduler:
    """The running sequences are always 0..k-1: llama.cpp runs a batch as one graph only if its ids have no holes."""

    def __init__(self, model: LlamaModel, contexts: GrowingContext, *, keep_cache: bool) -> None:
        """keep_cache: go on with what was cached before there was nothing to do."""
        self._model, self._contexts, self._keep_cache = model, contexts, keep_cache
        self.usage = Usage()
        self._arrived: deque[Job] = deque()
        self._cancelled: deque[int] = deque()
        self._waiting: deque[Job] = deque()
        self._running: list[RunningSequence | None] = []
        self._filling: tuple[int, RunningSequence] | None = None
        self._calls: deque[tuple[int, Callable[[], Any]]] = deque()  # ticket, what its listener is to be told
        self._cache: PrefixCache | None = None
        self._steering: ControlVectorSteering | RowSteering | None = None
        self._step_is_steered = False

    @property
    def busy(self) -> bool:
        """Whether a job has not ended, or its listener was not told."""
        return bool(self._arrived or self._waiting or self._filling or self._running or self._calls)

    def submit(self, job: Job) -> None:
        """Queue a job; any thread may."""
        self._arrived.append(job)

    def cancel(self, ticket: int) -> None:
        """End the job before its next token and free its sequence; any thread may. Nothing if it has ended."""
        self._cancelled.append(ticket)

    def step(self) -> bool:
        """Decode one token of every running sequence, then admit; whether there is more to do.

        Nothing is lost where a callback raises: the next step goes on.
        """
        if self._arrived or self._cancelled:
            self._arrive()
            self._cancel()
        if None in self._running:  # a callback raised before they were filled
            self._compact()
        if self._running:
            self._decode()
            self._call()
        if self._waiting or self._filling or None in self._running:
            self._admit()
        self._call()
        return self.busy

    def abandon(self, tickets: Iterable[int]) -> None:
        """Drop these jobs and tell nobody."""
        abandoned = set(tickets)
        self._arrive()
        for _, sequence in self._remove(abandoned):
            if sequence:
                sequence.close()
        self._calls = deque(call for call in self._calls if call[0] not in abandoned)

    def forget(self) -> None:
        """Forget all that is cached; nothing may be running."""
        self._cache = None

    def _arrive(self) -> None:
        """Queue what has come: jobs of one prompt run one after the other."""
        arrived: list[Job] = []
        while self._arrived:
            job = self._arrived.popleft()
            if job.refusal:
                self._fail(job, job.refusal)
            else:
                arrived.append(job)
        first: dict[tuple[int, ...], int] = {}
        for place, job in enumerate(arrived):
            first.setdefault(job.request.prompt, place)
        arrived.sort(key=lambda job: first[job.request.prompt])
        if arrived and not self._probe_passes(arrived):
            arrived = [job for job in arrived if not job.steering]
        self._fit(arrived)

    def _probe_passes(self, arrived: list[Job]) -> bool:
        """Whether llama.cpp applies a control vector to this model; if not, steered jobs end here."""
        if not any(job.steering for job in arrived):
            return True
        try:
            self._contexts.check_steerable()
        except ModelError as error:
            for job in arrived:
                if job.steering:
                    self._fail(job, str(error))
            return False
        return True

    def _fit(self, arrived: list[Job]) -> None:
        """Make the context serve these jobs beside those that are live; what memory cannot hold ends as an error."""
        live = [sequence.job for sequence in self._sequences()] + [*self._waiting]
        idle = not live
        while arrived:
            jobs = live + arrived
            rows = len({id(job.steering) for job in jobs}) > 1 or any(job.needs_rows for job in jobs)
            length = max(job.length for job in jobs)
            try:
                self._take_context(length, len(jobs), rows, idle)
                break
            except OutOfMemory as error:
                longest = max(job.length for job in arrived)
                for job in [job for job in arrived if job.length == longest]:
                    arrived.remove(job)
                    self._fail(job, str(error))
        self._waiting.extend(arrived)

    def _take_context(self, length: int, sequences: int, rows: bool, idle: bool) -> None:
        before = self._contexts.current
        if idle and self._cache and not self._keep_cache:
            self._cache.clear()
        cached = self._cache.cached() if self._cache else []
        filling = [self._filling[0]] if self._filling else []
        keep = sorted({*range(len(self._running)), *filling, *cached})
        rows = rows or bool(keep and not idle and before and before.hooked)
        context = self._contexts.fit(length, sequences, hooked=rows, keep=keep)
        if self._cache is None or context is not before:
            self._cache = self._cache.moved_to(context) if self._cache else PrefixCache(context)
            self._steering, self._step_is_steered = steering_of(context), False

    def _sequences(self) -> list[RunningSequence]:
        filling = [self._filling[1]] if self._filling else []
        return [*filter(None, self._running), *filling]

    def _admit(self) -> None:
        """Prefill prompts, all but their last token, which the next step decodes with the others.

        While someone reads along, the running sequences wait for no more than one batch of it.
        """
        read_along = any(sequence and sequence.job.on_piece for sequence in self._running)
        budget = self._context.batch if read_along else sys.maxsize
        while budget > 0 and self._begin(budget):
            budget -= self._fill(budget)
        self._compact()

    def _begin(self, budget: int) -> bool:
        """Have a job that is being prefilled: the next one gets a sequence and what is cached of its prompt."""
        while not self._filling and self._waiting and (slot := self._free_slot()) < self._slots:
            job = self._waiting[0]
            donor, common = self._prefixes.donor(job.keys[:-1], slot)
            if len(job.keys) - 1 - common > budget and slot < len(self._running):
                self._compact()  # a hole would split every batch until the prompt is whole
                slot = len(self._running)
                donor, common = self._prefixes.donor(job.keys[:-1], slot)
            self._waiting.popleft()
            self._rescue(slot, donor)
            common = self._prefixes.begin(slot, donor, common, job.steering)
            try:
                self._filling = slot, RunningSequence(job, common, self._model)
            except EdgeSteerError as error:
                self._fail(job, str(error))
                continue
            self.usage.reused += common
        return self._filling is not None

    def _fill(self, budget: int) -> int:
        """Prefill up to `budget` tokens; how many were."""
        assert self._filling and self._steering
        slot, sequence = self._filling
        job, start = sequence.job, sequence.position
        part = job.request.prompt[start:-1][:budget]
        try:
            self._steering.before_prompt(job.offsets)
            self._step_is_steered = False
            self._context.prefill(part, start, slot)
        except EdgeSteerError as error:
            self._filling = None
            self._prefixes.hold(slot, NO_KEYS, None)
            self._finish(job, sequence.end("error", str(error)))
            return len(part)
        sequence.position += len(part)
        self.usage.prefilled += len(part)
        self._prefixes.hold(slot, job.keys[: sequence.position], job.steering)
        if sequence.prefilled:
            self._join(slot, sequence)
        return len(part)

    def _join(self, slot: int, sequence: RunningSequence) -> None:
        self._filling, self._step_is_steered = None, False
        if slot < len(self._running):
            self._running[slot] = sequence
            return
        self._prefixes.move(slot, len(self._running))
        self._running.append(sequence)

    def _free_slot(self) -> int:
        return self._running.index(None) if None in self._running else len(self._running)

    def _compact(self) -> None:
        """Fill every hole with the last running sequence."""
        while None in self._running:
            self._step_is_steered = False
            last = self._running.pop()
            if last:
                hole = self._running.index(None)
                self._rescue(hole, len(self._running))
                self._prefixes.move(len(self._running), hole)
                self._running[hole] = last

    def _rescue(self, slot: int, source: int) -> None:
        """Save what the slot has cached from what `source` has, if it is to be kept beyond the running sequences."""
        if self._keep_cache:
            busy = {slot, source, *([self._filling[0]] if self._filling else [])}
            self._prefixes.rescue(slot, [idle for idle in range(len(self._running), self._slots) if idle not in busy])

    def _decode(self) -> None:
        """One token for every running sequence; those that end leave a hole."""
        running: list[RunningSequence] = self._running  # type: ignore[assignment]  # _compact left no holes
        try:
            if not self._step_is_steered:
                assert self._steering
                self._steering.before_step([sequence.offsets for sequence in running])
                self._step_is_steered = not any(sequence.job.steers_by_token for sequence in running)
            logits = self._context.decode_next([s.next_token for s in running], [s.position for s in running])
        except EdgeSteerError as error:
            for slot, sequence in enumerate(running):
                self._prefixes.hold(slot, NO_KEYS, None)
                self._finish(sequence.job, sequence.end("error", str(error)))
            self._running = []
            return
        self.usage.generated += len(running)
        best: list[int] = logits.argmax(axis=1).tolist()
        for slot, sequence in enumerate(running):
            job = sequence.job
            try:
                token = best[slot] if sequence.sampler is None else sequence.sampler.sample(self._context.handle, slot)
            except EdgeSteerError as error:
                self._leave(slot, sequence.end("error", str(error)))
                continue
            piece = sequence.take(token, logits[slot])
            if piece and job.on_piece:
                self._calls.append((job.ticket, partial(job.on_piece, piece)))
            if sequence.answer.finish:
                self._leave(slot, sequence.end())

    def _leave(self, slot: int, completion: Completion) -> None:
        """End the sequence and leave a hole."""
        sequence = self._running[slot]
        assert sequence
        self._running[slot] = None
        if self._keep_cache:
            self._prefixes.hold(slot, sequence.keys, sequence.job.steering)
        self._finish(sequence.job, completion)

    def _cancel(self) -> None:
        cancelled = set()
        while self._cancelled:
            cancelled.add(self._cancelled.popleft())
        for job, sequence in self._remove(cancelled) if cancelled else ():
            self._finish(job, sequence.end("cancelled") if sequence else Completion("", (), "cancelled"))

    def _remove(self, tickets: set[int]) -> list[tuple[Job, RunningSequence | None]]:
        """Take these jobs out, wherever they are, with their sequences."""
        removed: list[tuple[Job, RunningSequence | None]] = []
        for slot, sequence in enumerate(self._running):
            if sequence and sequence.job.ticket in tickets:
                removed.append((sequence.job, sequence))
                self._running[slot] = None
        if self._filling and self._filling[1].job.ticket in tickets:
            removed.append((self._filling[1].job, self._filling[1]))
            self._filling = None
        removed += [(job, None) for job in self._waiting if job.ticket in tickets]
        self._waiting = deque(job for job in self._waiting if job.ticket not in tickets)
        self._compact()
        return removed

    def _fail(self, job: Job, error: str) -> None:
        self._finish(job, Completion("", (), "error", error=error))

    def _finish(self, job: Job, completion: Completion) -> None:
        if job.on_done:
            self._calls.append((job.ticket, partial(job.on_done, completion)))

    def _call(self) -> None:
        while self._calls:
            self._calls.popleft()[1]()

    @property
    def _context(self) -> LlamaContext:
        assert self._contexts.current
        return self._contexts.current

    @property
    def _prefixes(self) -> PrefixCache:
        assert self._cache
        return self._cache

    @property
    def _slots(self) -> int:
        return self._context.sequences
