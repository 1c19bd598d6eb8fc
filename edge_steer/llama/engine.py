"""llama.cpp as a Backend: requests of any steering in one running batch on one GGUF file.

Takes requests, gives completions, logits and likelihoods. Where all requests agree, they are steered by llama.cpp's
own control vector; where they differ, or steer layer 0, by rows added to the residual stream. It chooses the context
and hands it to the scheduler; it never touches llama_cpp but through llama.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from edge_steer.core.architectures import check_architecture
from edge_steer.core.backend import (
    Completion,
    EngineOptions,
    Fork,
    Message,
    OnDone,
    OnStates,
    OnText,
    Request,
    Tokens,
    available_cores,
)
from edge_steer.core.errors import ModelError, OutOfMemory
from edge_steer.core.quants import QUANTS
from edge_steer.core.runtime import Runtime
from edge_steer.core.steering import Offsets, Steering
from edge_steer.core.vector import Array, ModelIdentity
from edge_steer.llama.context import LlamaContext
from edge_steer.llama.library import system_info
from edge_steer.llama.model import LlamaModel
from edge_steer.llama.scheduler import Codes, Job, Scheduler, Usage, codes, shared, steering_of
from edge_steer.storage.digests import digest
from edge_steer.storage.gguf_header import read_header
from edge_steer.storage.provenance import Provenance, versions

DEFAULTS = EngineOptions()
LENGTH_STEP = 256  # contexts grow in steps, so that requests of like length share one
_NOTHING: Codes = np.empty(0, dtype=np.int64)
LOGITS_BYTES = 2**28  # how much of a teacher-forced text's logits is held at a time; each piece more costs time


class Engine(Runtime):
    """One GGUF model that answers requests. Close it when done; its context is freed before its model."""

    def __init__(self, model: LlamaModel, options: EngineOptions = DEFAULTS) -> None:
        """Errors: ModelError for a context below 1."""
        if options.context is not None and options.context < 1:
            raise ModelError(f"a context of {options.context} positions asked; it must be at least 1")
        self.context = options.context or model.trained_context
        self.parallel = options.parallel
        self.threads = available_cores() if options.threads is None else options.threads
        self.options = replace(options, context=self.context, threads=self.threads)
        self._model = model
        self.usage = Usage()
        self._context: LlamaContext | None = None
        self._scheduler: Scheduler | None = None
        self._known: dict[str, tuple[Offsets, int]] = {}
        self._scored = _NOTHING
        self._probed = False

    @classmethod
    def load(cls, path: Path | str, options: EngineOptions = DEFAULTS) -> Self:
        """Load a GGUF file. Errors: ModelError."""
        return cls(LlamaModel(Path(path), options.gpu_layers), options)

    def close(self) -> None:
        if self._context:
            self._context.close()
            self._context = None
        self._model.close()

    @property
    def model(self) -> ModelIdentity:
        return self._model.identity

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

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
            backend={"name": "llama.cpp", **asdict(self.options)},
            versions={**versions("edge-steer"), **system_info()},
        )

    def check_steering(self, steering: Sequence[Steering]) -> None:
        if self._offsets(steering)[0]:
            check_architecture(self.model.architecture)

    def check_comparable(self, longest: int) -> None:
        """llama.cpp computes as llama.cpp does."""

    def encode(self, text: str, *, start: bool = True) -> Tokens:
        return self._model.tokenize(text, add_special=start)

    def chat(self, messages: Sequence[Message]) -> Tokens:
        return self._model.chat(messages)

    def decode(self, tokens: Sequence[int]) -> str:
        return b"".join(map(self._model.piece, tokens)).decode(errors="replace")

    def generate(
        self, requests: Sequence[Request], on_text: OnText | None = None, on_done: OnDone | None = None
    ) -> list[Completion]:
        """Continue every request in one running batch; see Backend.generate.

        Each call starts from an empty cache, so its answers depend on its requests alone.
        """
        done: dict[int, Completion] = {}

        def finish(index: int, completion: Completion) -> None:
            done[index] = completion
            if on_done:
                on_done(index, completion)

        jobs: list[Job] = []
        for index, request in enumerate(requests):
            offsets, number = self._offsets(request.steering)
            if wrong := self.refusal(request):
                finish(index, _failed(wrong))
                continue
            prompt = codes(request.prompt, len(request.prompt), offsets, number)
            jobs.append(Job(index, request, offsets, self.room(request), prompt))

        steerings = list({id(job.offsets): job.offsets for job in jobs}.values())
        hooked = len(steerings) > 1 or any(map(_has_layer_0, steerings))
        while jobs:
            longest = max(len(job.codes) + job.room for job in jobs)
            try:
                context = self._context_for(longest, len(jobs), hooked)
                break
            except OutOfMemory as error:
                for job in [job for job in jobs if len(job.codes) + job.room == longest]:
                    jobs.remove(job)
                    finish(job.index, _failed(str(error)))
        if jobs:
            if steerings[0]:
                self._probe(context)
            self._scored = _NOTHING
            slots = min(context.sequences, len(jobs), self.parallel)
            self._scheduler = Scheduler(self._model, context, jobs, slots=slots, usage=self.usage, on_text=on_text)
            for index, completion in self._scheduler.run():
                finish(index, completion)
        return [done[index] for index in range(len(requests))]

    def cancel(self, index: int) -> None:
        """End a request of the `generate` now running, asked from its callbacks; it finishes as "cancelled"."""
        if self._scheduler:
            self._scheduler.cancel(index)

    def logit_rows(self, tokens: Sequence[int], prompt: int, steering: Sequence[Steering] = ()) -> Iterator[Array]:
        """See Backend.logit_rows. What the tokens have in common with those scored last is not computed again."""
        self.check_text(tokens, prompt)
        offsets, number = self._offsets(steering)
        context = self._context_for(len(tokens), 1, _has_layer_0(offsets))
        if offsets:
            self._probe(context)
        chunk = self._rows_at_once(context)
        depends = codes(tokens, prompt, offsets, number)
        start = shared(self._scored, depends[: prompt - 1])
        if not context.forget(0, start):
            start = 0
            context.forget(0)
        self._scored = _NOTHING
        steer = steering_of(context)
        steer.before_prefill(offsets)
        context.prefill(tokens[start : prompt - 1], start, 0)
        steer.before_step([offsets])
        for first in range(prompt - 1, len(tokens), chunk):
            part = tokens[first : first + chunk]
            context.decode(part, np.arange(first, first + len(part)), 0, 1)
            self._scored = depends[: first + len(part)]
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
        self.model.check_layers(layers)
        chosen = np.asarray(range(len(tokens)) if positions is None else positions, dtype=np.int64)
        self.check_positions(chosen.tolist(), tokens)
        wanted = np.zeros(len(tokens), dtype=np.bool_)
        wanted[chosen] = True
        offsets = _up_to(self._offsets(steering)[0], max(layers))
        context = self._context_for(len(tokens), 1, hooked=True)
        step = self._rows_at_once(context)
        steer = steering_of(context)
        self._scored = _NOTHING
        context.forget(0)
        found = []
        steer.before_prefill(offsets)
        context.read(layers)
        try:
            for first, last in ((0, prompt - 1), (prompt - 1, len(tokens))):
                if first == prompt - 1:
                    steer.before_step([offsets])
                for begin in range(first, last, step):
                    end = min(begin + step, last)
                    context.decode(tokens[begin:end], np.arange(begin, end), 0, wanted[begin:end])
                    found.append(context.states())
        finally:
            context.read(())
            steer.before_prefill(None)
            context.forget(0)
        rows = np.concatenate(found, axis=1)[:, np.searchsorted(np.flatnonzero(wanted), chosen)]
        return dict(zip(layers, rows, strict=True))

    def answer_states(
        self, forks: Sequence[Fork], layers: Sequence[int], take: OnStates, *, batch_tokens: int = 1024
    ) -> None:
        """See Recorder.answer_states. What an answer's tokens have in common with those before is computed once."""
        self.model.check_layers(layers)
        context = self._context_for(max(fork.longest for fork in forks), 1, hooked=True)
        self._scored = held = _NOTHING
        context.forget(0)
        steering_of(context).before_prefill(None)
        context.read(layers)
        try:
            for index, fork in enumerate(forks):
                states = []
                for answer, count in zip(fork.answers, fork.averaged, strict=True):
                    tokens = codes((*fork.prompt, *answer), 0, None, 0)
                    start = min(shared(held, tokens), len(tokens) - count)
                    if not context.forget(0, start):
                        start = 0
                        context.forget(0)
                    held = tokens
                    states.append(self._mean_state(context, tokens, start, len(tokens) - count, batch_tokens))
                take(index, np.stack(states, axis=1))
        finally:
            context.read(())
            context.forget(0)

    def _mean_state(self, context: LlamaContext, tokens: Codes, start: int, first: int, batch_tokens: int) -> Array:
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

    def _offsets(self, steering: Sequence[Steering]) -> tuple[Offsets | None, int]:
        """The offsets, one and the same object for equal ones, and their number; 0 is none."""
        offsets = Offsets.of(steering, self.model)
        if not offsets:
            return None, 0
        return self._known.setdefault(offsets.key, (offsets, len(self._known) + 1))

    def _probe(self, context: LlamaContext) -> None:
        """Refuse an architecture in which llama.cpp takes a control vector and does not apply it."""
        if self._probed or context.hooked:
            return
        seen = []
        slope = np.linspace(-1, 1, self._model.hidden_size, dtype=np.float32)  # LayerNorm would take out a constant
        for offsets in (None, {self._model.block_count - 1: slope}):
            context.forget(0)
            context.steer(offsets)
            context.decode([0], [0], 0, 1)
            seen.append(context.logits().copy())
        if np.array_equal(seen[0], seen[1]):
            raise ModelError(f"llama.cpp ignores control vectors in the architecture {self.model.architecture}")
        context.forget(0)
        self._scored = _NOTHING
        self._probed = True

    def _context_for(self, length: int, sequences: int, hooked: bool = False) -> LlamaContext:
        """The context if it is large enough, else a larger one: memory is taken for what is asked, not the most.

        Errors: OutOfMemory if there is none even for one sequence.
        """
        length = min(-(-length // LENGTH_STEP) * LENGTH_STEP, self.context)
        sequences = min(sequences, self.parallel)
        held = self._context
        if held and held.length >= length and held.sequences >= sequences and held.hooked == hooked:
            return held
        if held:
            held.close()
            self._context = None
        self._scored = _NOTHING
        while self._context is None:
            try:
                self._context = LlamaContext(
                    self._model,
                    length=length,
                    sequences=sequences,
                    threads=self.threads,
                    kv_type=self.options.kv_type,
                    flash_attention=self.options.flash_attention,
                    hooked=hooked,
                )
            except OutOfMemory:
                if sequences == 1:
                    raise
                sequences //= 2
        return self._context


def _has_layer_0(offsets: Offsets | None) -> bool:
    """Layer 0 can only be steered by rows: llama.cpp's control vectors begin at layer 1."""
    return offsets is not None and 0 in offsets.by_layer


def _up_to(offsets: Offsets | None, layer: int) -> Offsets | None:
    """What of the offsets is added at or before `layer`."""
    kept = {at: offset for at, offset in offsets.by_layer.items() if at <= layer} if offsets else {}
    return Offsets(kept, offsets.phase) if offsets and kept else None


def _failed(why: str) -> Completion:
    return Completion("", (), "error", error=why)
