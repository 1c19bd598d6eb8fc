"""Requests driven through one llama.cpp context, which may come at any time: decode first, then admit.

Takes jobs (requests with their steering), calls back with pieces and completions. Where all live requests agree, they
are steered by llama.cpp's own control vector; where they differ, or steer layer 0 or some tokens alone, by rows added
to the residual stream. Adapters are a whole batch's: requests of others wait until it ends. It loads no model.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from edge_steer.core.backend import Completion
from edge_steer.core.errors import EdgeSteerError, ModelError, OutOfMemory
from edge_steer.core.vector import Array
from edge_steer.llama.context import ControlVectorSteering, GrowingContext, LlamaContext, RowSteering, steering_of
from edge_steer.llama.model import Adapters, LlamaModel
from edge_steer.llama.prefix_cache import NO_KEYS, PrefixCache
from edge_steer.llama.sequence import Job, News, PromptPart, RunningSequence, Usage, by_prompt, need_rows, shares_batch


class Scheduler:
    """The running sequences are 0..k-1: llama.cpp runs a batch as one graph only if its ids have no holes.

    One that runs alone may be any, so that it goes on where its prompt is cached, or where least is lost.
    """

    def __init__(self, model: LlamaModel, contexts: GrowingContext, *, keep_cache: bool) -> None:
        """keep_cache: go on with what was cached before there was nothing to do."""
        self._model, self._contexts, self._keep_cache = model, contexts, keep_cache
        self.usage = Usage()
        self._arrived, self._waiting, self._cancelled = deque[Job](), deque[Job](), deque[int]()
        self._running: list[RunningSequence | None] = []
        self._filling: tuple[int, RunningSequence] | None = None
        self._admitting = False  # the running sequences wait until all prompts are prefilled that find a sequence
        self._news = News()
        self._cache: PrefixCache | None = None
        self._steering: ControlVectorSteering | RowSteering
        self._steered: list[int] = []  # the tickets that the next step is steered for, in their order

    @property
    def busy(self) -> bool:
        """Whether a job has not ended, or its listener was not told."""
        return bool(self._arrived or self._waiting or self._filling or self._running or self._news)

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
        if self._has_holes and not self._admitting:  # a callback raised before they were filled
            self._compact()
        if self._running and not self._admitting:
            self._decode()
            self._news.tell()
        if self._waiting or self._filling or self._admitting or self._has_holes:
            self._admit()
        self._news.tell()
        return self.busy

    def abandon(self, tickets: Iterable[int]) -> None:
        """Drop these jobs and tell nobody."""
        abandoned = set(tickets)
        self._arrive()
        for _, sequence in self._remove(abandoned):
            if sequence:
                sequence.close()
        self._news.drop(abandoned)

    def rest(self) -> None:
        """Nothing is to do for a while: what takes rows, and asks about every node, becomes a plain context again."""
        if not self.busy and self._cache and self._cache.context.hooked:
            self._take_context(1, 1, rows=False, idle=False)

    def forget(self) -> None:
        """Forget all that is cached; nothing may be running."""
        self._cache = None

    def _arrive(self) -> None:
        """Queue what has come: jobs of one prompt run one after the other."""
        arrived: list[Job] = []
        while self._arrived:
            job = self._arrived.popleft()
            if refusal := job.refusal or self._why_unsteerable(job):
                self._fail(job, refusal)
            else:
                arrived.append(job)
        self._fit(by_prompt(arrived))

    def _why_unsteerable(self, job: Job) -> str:
        """Why a steered job cannot be served where llama.cpp applies no control vector to this model."""
        try:
            if job.offsets:
                self._contexts.check_steerable()
        except ModelError as error:
            return str(error)
        return ""

    def _fit(self, arrived: list[Job]) -> None:
        """Make the context serve these jobs beside those that are live; what memory cannot hold ends as an error."""
        live = [sequence.job for sequence in self._sequences()] + [*self._waiting]
        while arrived:
            jobs, before = live + arrived, self._contexts.current
            stays = live or self._keep_cache  # to make a server's context again takes it a second; see rest
            rows = need_rows(jobs) or bool(stays and before and before.hooked)
            length = max(job.length for job in jobs)
            try:
                self._take_context(length, len(jobs), rows, idle=not live)
                break
            except OutOfMemory as error:
                longest = max(job.length for job in arrived)
                for job in [job for job in arrived if job.length == longest]:
                    arrived.remove(job)
                    self._fail(job, str(error))
        self._waiting.extend(arrived)

    def _take_context(self, length: int, sequences: int, rows: bool, *, idle: bool) -> None:
        if idle and self._cache and not self._keep_cache:
            self._cache.clear()
        cached = self._cache.cached() if self._cache else []
        filling = [self._filling[0]] if self._filling else []
        keep = sorted({*filling, *cached, *(slot for slot, sequence in enumerate(self._running) if sequence)})
        try:
            self._contexts.fit(length, sequences, hooked=rows, keep=keep)
        finally:  # what is refused may have been made again as it was
            if (context := self._contexts.current) and (self._cache is None or self._cache.context is not context):
                self._cache = self._cache.moved_to(context) if self._cache else PrefixCache(context)
                self._steering, self._steered = steering_of(context), []

    def _sequences(self) -> list[RunningSequence]:
        return [*filter(None, self._running), *([self._filling[1]] if self._filling else [])]

    def _admit(self) -> None:
        """Prefill one batch, so that a cancel and Ctrl-C wait for no more than that.

        While someone reads along, the running sequences decode between two batches; else all prompts come first.
        """
        budget, read_along = self._context.batch, self._read_along
        while budget > 0 and (count := self._prefill(budget)) is not None:
            budget -= count if read_along else budget
        self._admitting = not self._read_along and bool(self._filling or self._next_job)
        if not self._admitting and self._has_holes:
            self._compact()

    @property
    def _has_holes(self) -> bool:
        holes = self._running.count(None)
        return bool(holes) and not (self._running[-1] and holes == len(self._running) - 1)

    @property
    def _read_along(self) -> bool:
        return any(sequence.job.on_piece for sequence in filter(None, self._running))

    @property
    def _next_job(self) -> Job | None:
        """The next that waits, where a sequence is free and its adapters are in force, or nothing runs."""
        if not self._waiting or self._free_slot() >= self._slots:
            return None
        job = self._waiting[0]
        return job if self._model.runs_with(job.adapters) or not self._sequences() else None

    def _prefill(self, budget: int) -> int | None:
        """Run a batch of up to `budget` tokens of prompts; how many it has, None if no prompt can go on.

        A prompt has batches of its own, and its last token joins the next step. But where the cache is kept, prompts
        share a batch, and bring their last tokens where those are steered like the rest: first tokens come sooner.
        """
        parts: list[PromptPart] = []
        while budget > 0 and (part := self._next_part(budget, parts)):
            parts.append(part)
            budget -= len(part.tokens)
            if not self._keep_cache:
                break
        if not parts:
            return None
        try:
            self._news.tell()  # that their answers have begun
        finally:
            self._compute(parts)
        return sum(len(part.tokens) for part in parts)

    def _compute(self, parts: Sequence[PromptPart]) -> None:
        """Run this batch of prompts, and take the first tokens of those whose last token it has."""
        ends = list(itertools.accumulate(len(part.tokens) for part in parts))
        if ends[-1] and self._run(parts):
            for part in parts:
                self._advance(part)
            if answered := [(part.slot, end - 1) for part, end in zip(parts, ends, strict=True) if part.answered]:
                self._take(answered, self._context.logits())

    def _next_part(self, budget: int, parts: Sequence[PromptPart]) -> PromptPart | None:
        """What comes into a batch beside these parts, of the prompt that is being prefilled or the next that waits.

        Only a batch's first prompt may be longer than what room there is.
        """
        if not (self._filling or self._begin(budget, parts)):
            return None
        assert self._filling
        slot, sequence = self._filling
        answered = self._keep_cache and sequence.job.is_steered_alike
        rest = sequence.job.request.prompt[sequence.position : None if answered else -1]
        if len(rest) > budget:
            return PromptPart(slot, sequence, rest[:budget], answered=False)
        return PromptPart(self._join(slot, sequence), sequence, rest, answered)

    def _begin(self, budget: int, parts: Sequence[PromptPart]) -> bool:
        """Have a job that is being prefilled: the next one gets a sequence and what is cached of its prompt."""
        while not self._filling and (job := self._next_job):
            self._adapt(job.adapters)
            slot = self._free_slot()
            if self._keep_cache and not self._running and len(self._waiting) == 1:
                slot = self._prefixes.place(job.keys[:-1] if job.reuses else NO_KEYS)
            donor, common = self._donor(job, slot)
            if parts and not shares_batch(parts, job, slot, common, budget, hooked=self._context.hooked):
                return False
            if self._read_along and len(job.keys) - common > budget and slot < len(self._running):
                self._compact()  # a hole would split every batch until the prompt is whole
                slot = len(self._running)
                donor, common = self._donor(job, slot)
            self._waiting.popleft()
            self._rescue(slot, donor, common if donor == slot else 0)
            common = self._prefixes.begin(slot, donor, common, job.steering)
            try:
                self._filling = slot, RunningSequence(job, common, self._model)
            except EdgeSteerError as error:
                self._fail(job, str(error))
                continue
            self.usage.reused += common
            self._news.add(job.ticket, job.on_prefill, common)
        return self._filling is not None

    def _adapt(self, adapters: Adapters) -> None:
        """Run with these adapters from now on, and first all jobs with the same that wait by now."""
        if not self._model.runs_with(adapters):
            self._model.adapt(self._context.handle, adapters)
            self._waiting = deque(sorted(self._waiting, key=lambda job: job.adapters != adapters))

    def _donor(self, job: Job, slot: int) -> tuple[int, int]:
        return self._prefixes.donor(job.keys[:-1], slot) if job.reuses else (slot, 0)

    def _run(self, parts: Sequence[PromptPart]) -> bool:
        """Decode a batch of prompts; where that fails, they end as errors."""
        self._steered = []
        rows = np.array([row for part in parts for row in part.rows()], dtype=np.int64)
        try:
            self._steering.before_prompts([(part.sequence.job.offsets, len(part.tokens)) for part in parts])
            self._context.decode(*rows.T)
        except EdgeSteerError as error:
            self._filling = None
            for part in parts:
                self._prefixes.hold(part.slot, NO_KEYS, None)
                self._finish(part.sequence.job, part.sequence.end("error", str(error)))
                if part.slot < len(self._running):
                    self._running[part.slot] = None
            return False
        return True

    def _advance(self, part: PromptPart) -> None:
        """Take note of what of a prompt is computed; `RunningSequence.take` does it for the last token."""
        job, count = part.sequence.job, len(part.tokens) - part.answered
        part.sequence.position += count
        self.usage.prefilled += count
        self._prefixes.hold(part.slot, job.keys[: part.sequence.position], job.steering)
        self._news.add(job.ticket, job.on_prefill, part.sequence.position + part.sequence.prefilled)

    def _join(self, slot: int, sequence: RunningSequence) -> int:
        """Have the sequence that was being prefilled run; where."""
        self._filling = None
        if not self._running:
            self._running = [None] * (slot + 1)
        if slot < len(self._running):
            self._running[slot] = sequence
            return slot
        self._prefixes.move(slot, len(self._running))
        self._running.append(sequence)
        return len(self._running) - 1

    def _free_slot(self) -> int:
        return self._running.index(None) if None in self._running else len(self._running)

    def _compact(self) -> None:
        """Fill every hole with the last running sequence."""
        while None in self._running:
            last = self._running.pop()
            if last:
                hole = self._running.index(None)
                self._rescue(hole, len(self._running), 0)
                self._prefixes.move(len(self._running), hole)
                self._running[hole] = last

    def _rescue(self, slot: int, source: int, stays: int) -> None:
        """Save what the slot has cached behind the first `stays` positions from what `source` has, if it is kept."""
        if self._keep_cache:
            busy = {slot, source, *([self._filling[0]] if self._filling else [])}
            self._prefixes.rescue(slot, stays, sorted({*range(len(self._running), self._slots)} - busy))

    def _decode(self) -> None:
        """One token for every running sequence."""
        running = [sequence for sequence in self._running if sequence]
        first = len(self._running) - len(running)  # there are no holes, but before one that runs alone
        try:
            tickets = [sequence.job.ticket for sequence in running]
            if tickets != self._steered:
                self._steering.before_step([sequence.offsets for sequence in running])
                self._steered = [] if any(sequence.job.steers_by_token for sequence in running) else tickets
            logits = self._context.decode_next([s.next_token for s in running], [s.position for s in running], first)
        except EdgeSteerError as error:
            for slot, sequence in enumerate(running, first):
                self._prefixes.hold(slot, NO_KEYS, None)
                self._finish(sequence.job, sequence.end("error", str(error)))
            self._running = []
            return
        self._take([(first + row, row) for row in range(len(running))], logits)

    def _take(self, rows: Sequence[tuple[int, int]], logits: Array) -> None:
        """Take a token for each of these running sequences; those that end leave a hole.

        rows: the sequence of each row of logits, and which token of the batch it comes from.
        """
        self.usage.generated += len(rows)
        best: list[int] = logits.argmax(axis=1).tolist()
        for row, (slot, batch_token) in enumerate(rows):
            sequence = self._running[slot]
            assert sequence
            try:
                token = sequence.sampler.sample(self._context.handle, batch_token) if sequence.sampler else best[row]
            except EdgeSteerError as error:
                self._leave(slot, sequence.end("error", str(error)))
                continue
            piece = sequence.take(token, logits[row])
            if piece:
                self._news.add(sequence.job.ticket, sequence.job.on_piece, piece)
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
                if self._keep_cache:
                    self._prefixes.hold(slot, sequence.keys, sequence.job.steering)
        if self._filling and self._filling[1].job.ticket in tickets:
            removed.append((self._filling[1].job, self._filling[1]))
            self._filling = None
        removed += [(job, None) for job in self._waiting if job.ticket in tickets]
        self._waiting = deque(job for job in self._waiting if job.ticket not in tickets)
        if not (self._admitting and self._filling):  # which may be in a hole
            self._compact()
        return removed

    def _fail(self, job: Job, error: str) -> None:
        self._finish(job, Completion("", (), "error", error=error))

    def _finish(self, job: Job, completion: Completion) -> None:
        self._news.add(job.ticket, job.on_done, completion)

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
