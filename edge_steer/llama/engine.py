"""llama.cpp as a Backend: requests of any steering in one running batch on one GGUF file.

Takes requests, gives completions, logits and likelihoods. Where all requests agree, they are steered by llama.cpp's
own control vector; where they differ, or steer layer 0 or some tokens alone, by rows added to the residual stream.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from edge_steer.core.architectures import check_architecture
from edge_steer.core.backend import (
    Completion,
    EngineOptions,
    Lora,
    Message,
    OnDone,
    OnStates,
    OnText,
    Piece,
    Recording,
    Request,
    SharedPrompt,
    Tokens,
    available_cores,
)
from edge_steer.core.errors import ModelError, RequestError
from edge_steer.core.quants import QUANTS
from edge_steer.core.runtime import Runtime
from edge_steer.core.steering import Offsets, Steering, by_row
from edge_steer.core.streaming import common_prefix
from edge_steer.core.vector import Array, ModelIdentity
from edge_steer.llama.context import (
    ControlVectorSteering,
    GrowingContext,
    LlamaContext,
    RowSteering,
    steering_of,
)
from edge_steer.llama.library import interrupts_wait, system_info
from edge_steer.llama.model import LlamaModel
from edge_steer.llama.prefix_cache import NO_KEYS, CacheKeys, LiveSteering, LiveSteerings, cache_keys
from edge_steer.llama.scheduler import Scheduler
from edge_steer.llama.sequence import Job, OnCompletion, OnPiece, OnPrefill, Usage
from edge_steer.storage.digests import digest
from edge_steer.storage.gguf_header import read_header
from edge_steer.storage.provenance import Provenance, versions

DEFAULTS = EngineOptions()
LOGITS_BYTES = 2**28  # how much of a teacher-forced text's logits is held at a time; each piece more costs time


class Engine(Runtime):
    """One GGUF model that answers requests, which may come at any time. Close it when done.

    One thread owns it and calls everything but `submit` and `cancel`, which any thread may call.
    """

    def __init__(self, model: LlamaModel, options: EngineOptions = DEFAULTS) -> None:
        """Errors: ModelError for a context below 1."""
        if options.context is not None and options.context < 1:
            raise ModelError(f"a context of {options.context} positions asked; it must be at least 1")
        self.context = options.context or model.trained_context
        threads = available_cores() if options.threads is None else options.threads
        self.options = replace(options, context=self.context, threads=threads)
        self._model = model
        self._contexts = GrowingContext(model, self.options)
        self._scheduler = Scheduler(model, self._contexts, keep_cache=options.keep_cache)
        self._steerings = LiveSteerings(self.offsets, model.adapters(None))
        self._tickets = itertools.count()
        self._scored = NO_KEYS
        self._scored_steering: LiveSteering | None = None  # held, so that its number in `_scored` stays its own

    @classmethod
    def load(cls, path: Path | str, options: EngineOptions = DEFAULTS) -> Self:
        """Load a GGUF file. Errors: ModelError."""
        o = options
        model = LlamaModel(Path(path), o.gpu_layers, template=o.template, date=o.date, lora=o.lora, loras=o.loras)
        return cls(model, o)

    def close(self) -> None:
        self._contexts.close()
        self._model.close()

    @property
    def parallel(self) -> int:
        """How many sequences may run at once."""
        return self.options.parallel

    @property
    def usage(self) -> Usage:
        """Tokens computed and reused so far."""
        return self._scheduler.usage

    @property
    def model(self) -> ModelIdentity:
        return self._model.identity

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

    @property
    def delimiters(self) -> Tokens:
        return self._model.delimiters

    @property
    def vocabulary(self) -> LlamaModel:
        """The model's tokens, their bytes and its chat template; any thread may ask."""
        return self._model

    @cached_property
    def provenance(self) -> Provenance:
        """What this model's numbers depend on."""
        path, file_type = self._model.path, self._model.metadata.get("general.file_type")
        return Provenance(
            model={
                "name": self.model.name,
                "quant": next((quant for quant, number in QUANTS.items() if str(number) == file_type), "unknown"),
                "digest": digest(path),
                "parameters": read_header(path).parameters,
            },
            backend={"name": "llama.cpp", **self.options.described()},
            versions={**versions("edge-steer"), **system_info()},
        )

    def check_steering(self, steering: Sequence[Steering]) -> None:
        if self._steerings.get(steering):
            check_architecture(self.model.architecture)

    def check_comparable(self, longest: int) -> None:
        """See Backend.check_comparable: llama.cpp is what others are compared with."""

    def encode(self, text: str, *, start: bool = True) -> Tokens:
        return self._model.tokenize(text, add_special=start)

    def chat(self, messages: Sequence[Message]) -> Tokens:
        return self._model.chat(messages)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._model.text(tokens)

    def reserve(self) -> None:
        """Take the memory of `parallel` sequences of `context` positions now, as a server does, and keep it.

        Errors: OutOfMemory if there is not so much.
        """
        self._contexts.reserve()

    def submit(
        self,
        request: Request,
        *,
        on_piece: OnPiece | None = None,
        on_done: OnCompletion | None = None,
        on_prefill: OnPrefill | None = None,
        reuse: bool = True,
    ) -> int:
        """Queue a request; its ticket. Any thread may; the callbacks come from the thread that calls `step`.

        on_piece is called with the Piece of each token, on_done once with the Completion, on_prefill with the number of
        prompt tokens that are there: at first those that were cached, then after each batch. reuse: take what is cached
        of the prompt. A request that cannot be served ends with finish "error".

        Errors: VectorError for a steering that does not fit the model, ModelError for an architecture that cannot be
        steered or an adapter that was not loaded.
        """
        adapters = self._model.adapters(request.loras)
        steering = self._steerings.get(request.steering, adapters)
        if steering and steering.offsets:
            check_architecture(self.model.architecture)
        ticket = next(self._tickets)
        prompt = request.prompt
        keys = cache_keys(prompt, len(prompt), steering)
        self._scheduler.submit(
            Job(
                ticket, request, adapters, steering, self.room(request), keys, on_piece, on_done, on_prefill, reuse,
                self.refusal(request),
            )
        )  # fmt: skip
        return ticket

    def cancel(self, ticket: int) -> None:
        """End a request before its next token; it finishes as "cancelled". Any thread may; nothing if it has ended."""
        self._scheduler.cancel(ticket)

    def step(self) -> bool:
        """Decode one token of every running request, then admit those that wait; whether there is more to do.

        Where a callback raises, the exception passes through, and the next step goes on.
        """
        self._scored = NO_KEYS
        self._contexts.expect_more()
        with interrupts_wait():
            return self._scheduler.step()

    def rest(self) -> None:
        """To be called when nothing was to do for a while: makes ready for requests that are steered alike again."""
        with interrupts_wait():
            self._scheduler.rest()

    def generate(
        self, requests: Sequence[Request], on_text: OnText | None = None, on_done: OnDone | None = None
    ) -> list[Completion]:
        """Continue every request in one running batch; see Backend.generate.

        Unless the options keep the cache, each call starts from an empty one: answers depend on its requests alone.
        """
        done: dict[int, Completion] = {}

        def finish(index: int, completion: Completion) -> None:
            done[index] = completion
            if on_done:
                on_done(index, completion)

        def show(index: int, piece: Piece) -> None:
            if piece.text and on_text:
                on_text(index, piece.text)

        if any(self._steerings.get(request.steering) for request in requests):
            self._contexts.check_steerable()
        self._scored = NO_KEYS
        tickets: list[int] = []
        try:
            for index, request in enumerate(requests):
                on_piece = partial(show, index) if on_text else None
                tickets.append(self.submit(request, on_piece=on_piece, on_done=partial(finish, index)))
            while len(done) < len(requests):
                with interrupts_wait() as interrupts:
                    while len(done) < len(requests) and not interrupts:
                        self._scheduler.step()
        finally:
            self._scheduler.abandon(tickets)
        return [done[index] for index in range(len(requests))]

    def logit_rows(
        self,
        tokens: Sequence[int],
        prompt: int,
        steering: Sequence[Steering] = (),
        recording: Recording | None = None,
        loras: Sequence[Lora] | None = None,
    ) -> Iterator[Array]:
        """See Backend.logit_rows. What the tokens have in common with those scored last is not computed again.

        loras: see Request. Errors: ModelError for one that was not loaded.
        """
        self.check_text(tokens, prompt)
        live = self._steerings.get(steering, self._model.adapters(loras))
        offsets = live.offsets if live else None
        if offsets:
            check_architecture(self.model.architecture)
            self._contexts.check_steerable()
        if recording is not None:
            self.check_recording(recording, tokens)
            yield from self._read(tokens, prompt, offsets, recording, loras, logits=True)
            return
        context = self._context_alone(len(tokens), loras, hooked=offsets is not None and offsets.needs_rows)
        chunk = self._rows_at_once(context)
        keys = cache_keys(tokens, prompt, live)
        start = common_prefix(self._scored, keys[: prompt - 1])
        if not context.forget(0, start):
            start = 0
            context.forget(0)
        self._scored = NO_KEYS
        steer = steering_of(context)
        steer.before_prompts([(offsets, 1)])
        context.prefill(tokens[start : prompt - 1], start, 0)
        for first in range(prompt - 1, len(tokens), chunk):
            part = tokens[first : first + chunk]
            steer.before_step(by_row(offsets, part, first, prompt))
            context.decode(part, np.arange(first, first + len(part)), 0, 1)
            self._scored, self._scored_steering = keys[: first + len(part)], live
            yield context.logits()

    def record(
        self,
        tokens: Sequence[int],
        layers: Sequence[int],
        positions: Sequence[int] | None = None,
        *,
        prompt: int | None = None,
        steering: Sequence[Steering] = (),
    ) -> dict[int, Array]:
        """See Backend.record."""
        prompt = len(tokens) if prompt is None else prompt
        self.check_text(tokens, prompt)
        chosen = np.arange(len(tokens)) if positions is None else np.asarray(positions, dtype=np.int64)
        rising, places = np.unique(chosen, return_inverse=True)
        recording = Recording(layers, rising.tolist())
        self.check_recording(recording, tokens)
        added = self.offsets(steering)
        offsets = added.up_to(max(layers)) if added else None
        for _ in self._read(tokens, prompt, offsets, recording, None, logits=False):
            pass
        return {layer: states[places] for layer, states in recording.states.items()}

    def _read(
        self,
        tokens: Sequence[int],
        prompt: int,
        offsets: Offsets | None,
        recording: Recording,
        loras: Sequence[Lora] | None,
        *,
        logits: bool,
    ) -> Iterator[Array]:
        """Fill a recording and, if asked, give the logits of the same pass; else no block beyond its last is run."""
        context = self._context_alone(len(tokens), loras, hooked=True)
        native = logits and not (offsets and offsets.needs_rows)
        steer = ControlVectorSteering(context) if native else RowSteering(context)
        at_once = self._rows_at_once(context)
        recorded = np.zeros(len(tokens), dtype=np.bool_)
        recorded[list(recording.positions)] = True
        wanted = recorded | (np.arange(len(tokens)) >= prompt - 1) if logits else recorded
        states = []
        self._scored = NO_KEYS
        context.forget(0)
        context.read(recording.layers, logits=logits)
        try:
            for first, last, step in ((0, prompt - 1, context.batch), (prompt - 1, len(tokens), at_once)):
                for begin in range(first, last, step):
                    part = slice(begin, min(begin + step, last))
                    if native and begin < prompt - 1:
                        steer.before_prompts([(offsets, 1)])
                    else:
                        steer.before_step(by_row(offsets, tokens[part], begin, prompt))
                    context.decode(tokens[part], np.arange(begin, part.stop), 0, wanted[part])
                    states.append(context.states()[:, recorded[part][wanted[part]]])
                    if logits and begin >= prompt - 1:
                        yield context.logits()
        finally:
            context.read(())
            steer.before_prompts([(None, 1)])
            context.forget(0)
        recording.states = dict(zip(recording.layers, np.concatenate(states, axis=1), strict=True))

    def answer_states(
        self, prompts: Sequence[SharedPrompt], layers: Sequence[int], take: OnStates, *, batch_tokens: int = 1024
    ) -> None:
        """See Recorder.answer_states. What an answer's tokens have in common with those before is computed once."""
        self.model.check_layers(layers)
        context = self._context_alone(max(prompt.longest for prompt in prompts), hooked=True)
        self._scored = cached = NO_KEYS
        context.forget(0)
        context.read(layers)
        try:
            for index, prompt in enumerate(prompts):
                states = []
                for answer, count in zip(prompt.answers, prompt.averaged, strict=True):
                    tokens = cache_keys((*prompt.prompt, *answer), 0, None)
                    start = min(common_prefix(cached, tokens), len(tokens) - count)
                    if not context.forget(0, start):
                        start = 0
                        context.forget(0)
                    cached = tokens
                    states.append(self._mean_state(context, tokens, start, len(tokens) - count, batch_tokens))
                take(index, np.stack(states, axis=1))
        finally:
            context.read(())
            context.forget(0)

    def _mean_state(self, context: LlamaContext, tokens: CacheKeys, start: int, first: int, batch_tokens: int) -> Array:
        """Decode from position `start` on; the mean of the states from `first` on: float32 (layers, hidden)."""
        step = min(context.batch, batch_tokens)
        if len(tokens) - first > (most := self._rows_at_once(context)):
            step = min(step, most)
        total: npt.NDArray[np.float64] | float = 0.0
        for begin in range(start, len(tokens), step):
            part = tokens[begin : begin + step]
            positions = np.arange(begin, begin + len(part))
            context.decode(part, positions, 0, positions >= first)
            total = total + context.states().sum(axis=1, dtype=np.float64)
        return np.asarray(total / (len(tokens) - first), dtype=np.float32)

    def _rows_at_once(self, context: LlamaContext) -> int:
        """How many tokens' logits llama.cpp may hold."""
        return max(1, min(context.batch, LOGITS_BYTES // (4 * self._model.vocab_size)))

    def _context_alone(self, length: int, loras: Sequence[Lora] | None = None, *, hooked: bool) -> LlamaContext:
        """The context for one text; what answers have cached is lost. Errors: RequestError while they are generated."""
        if self._scheduler.busy:
            raise RequestError("answers are being generated; ask for logits or states when they are done")
        self._scheduler.forget()
        before = self._contexts.current
        context = self._contexts.fit(length, 1, hooked=hooked)
        if context is not before:
            self._scored = NO_KEYS
        if context.hooked:
            context.add({})  # what the last answers were steered by
        self._model.adapt(context.handle, self._model.adapters(loras))
        return context
