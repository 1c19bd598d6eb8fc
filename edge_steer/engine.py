"""llama.cpp as a Backend: continuous batching with native control vectors on one GGUF file.

Takes requests, gives completions, logits and likelihoods. Requests of one steering share every decode step; a
sequence that ends makes room for the next prompt at once. It never touches llama_cpp but through llama.py.
"""

import codecs
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from edge_steer.backend import Completion, Message, OnDone, OnText, Request, Tokens
from edge_steer.errors import ModelError, RequestError
from edge_steer.llama import (
    FlashAttention,
    KvType,
    LlamaContext,
    LlamaModel,
    LlamaSampler,
    check_steerable,
    default_threads,
)
from edge_steer.stats import log_softmax
from edge_steer.vector import Array, ModelIdentity, Offsets, Steering

LENGTH_STEP = 256  # contexts grow in steps, so that requests of like length share one
LOGITS_BYTES = 64 * 2**20  # how much of a teacher-forced text's logits is held at a time


class Engine:
    """One GGUF model that answers requests. Close it when done; its context is freed before its model."""

    def __init__(
        self,
        model: LlamaModel,
        *,
        context: int | None = None,
        parallel: int = 8,
        threads: int | None = None,
        kv_type: KvType = "f16",
        flash_attention: FlashAttention = "auto",
    ) -> None:
        """context: most positions of one sequence (default: what the model was trained for)."""
        if context is not None and context < 1:
            raise ModelError(f"a context of {context} positions asked; it must be at least 1")
        self.context_limit = context or model.trained_context
        self.parallel = parallel
        self.threads = default_threads() if threads is None else threads
        self._kv_type: KvType = kv_type
        self._flash_attention: FlashAttention = flash_attention
        self._model = model
        self._context: LlamaContext | None = None
        self._probed = False

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        context: int | None = None,
        parallel: int = 8,
        threads: int | None = None,
        kv_type: KvType = "f16",
        flash_attention: FlashAttention = "auto",
        gpu_layers: int = -1,
    ) -> Self:
        """Load a GGUF file. Errors: ModelError."""
        model = LlamaModel(Path(path), gpu_layers)
        return cls(
            model,
            context=context,
            parallel=parallel,
            threads=threads,
            kv_type=kv_type,
            flash_attention=flash_attention,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._context:
            self._context.close()
            self._context = None
        self._model.close()

    @property
    def model(self) -> ModelIdentity:
        return self._model.identity

    def encode(self, text: str, *, start: bool = True) -> Tokens:
        return self._model.tokenize(text, add_special=start)

    def chat(self, messages: Sequence[Message]) -> Tokens:
        return self._model.chat(messages)

    def decode(self, tokens: Sequence[int]) -> str:
        return b"".join(map(self._model.piece, tokens)).decode(errors="replace")

    def generate(
        self, requests: Sequence[Request], on_text: OnText | None = None, on_done: OnDone | None = None
    ) -> list[Completion]:
        """Continue every request; see Backend.generate. Requests with equal steering run in one batch."""
        groups: dict[str, tuple[Offsets | None, list[int]]] = {}
        for index, request in enumerate(requests):
            if len(request.prompt) >= self.context_limit:
                raise RequestError(
                    f"prompt {index + 1} has {len(request.prompt)} tokens; the context holds {self.context_limit} "
                    "and needs room for an answer; shorten it or raise --context"
                )
            offsets = self._offsets(request.steering)
            groups.setdefault(offsets.key if offsets else "", (offsets, []))[1].append(index)

        done: dict[int, Completion] = {}
        for offsets, indices in groups.values():
            run = _Run(self._model, [(i, requests[i]) for i in indices], on_text)
            longest = max(len(requests[i].prompt) + requests[i].max_tokens for i in indices)
            context = self._context_for(longest, len(indices))
            for index, completion in run.complete(context, offsets, self.context_limit):
                done[index] = completion
                if on_done:
                    on_done(index, completion)
        return [done[index] for index in range(len(requests))]

    def logits(self, tokens: Sequence[int], prompt: int, steering: Sequence[Steering] = ()) -> npt.NDArray[np.float32]:
        return np.concatenate([rows.copy() for rows in self._logit_rows(tokens, prompt, steering)])

    def nll(self, tokens: Sequence[int], prompt: int, steering: Sequence[Steering] = ()) -> npt.NDArray[np.float64]:
        parts = []
        first = prompt
        for rows in self._logit_rows(tokens, prompt, steering):
            chosen = np.asarray(tokens[first : first + len(rows)], dtype=np.int64)
            parts.append(-log_softmax(rows[: len(chosen)])[np.arange(len(chosen)), chosen])
            first += len(chosen)
        return np.concatenate(parts)

    def _logit_rows(self, tokens: Sequence[int], prompt: int, steering: Sequence[Steering]) -> Iterator[Array]:
        """Logits from position prompt - 1 on, chunk by chunk; each chunk is valid until the next is asked for."""
        if not 1 <= prompt <= len(tokens) <= self.context_limit:
            raise RequestError(
                f"{len(tokens)} tokens with a prompt of {prompt}; need 1 <= prompt <= tokens <= {self.context_limit}"
            )
        offsets = self._offsets(steering)
        context = self._context_for(len(tokens), 1)
        chunk = max(1, min(context.batch, LOGITS_BYTES // (4 * self._model.vocab_size)))
        context.forget(0)
        steered_from = prompt - 1 if offsets and offsets.phase == "generated" else 0
        context.steer(offsets.by_layer if offsets and not steered_from else None)
        ids = np.asarray(tokens, dtype=np.int32)
        context.prefill(ids[: prompt - 1], np.arange(prompt - 1), np.zeros(prompt - 1, dtype=np.int32))
        if offsets and steered_from:
            context.steer(offsets.by_layer)
        for start in range(prompt - 1, len(ids), chunk):
            part = ids[start : start + chunk]
            context.decode(part, np.arange(start, start + len(part)), 0, 1)
            yield context.logits()

    def _offsets(self, steering: Sequence[Steering]) -> Offsets | None:
        offsets = Offsets.of(steering, self.model)
        if offsets:
            check_steerable(offsets.by_layer, self.model)
            self._probe()
        return offsets

    def _probe(self) -> None:
        """Refuse an architecture in which llama.cpp takes a control vector and does not apply it."""
        if self._probed:
            return
        context = self._context_for(1, 1)
        seen = []
        for offsets in (None, {self._model.block_count - 1: np.ones(self._model.hidden_size, dtype=np.float32)}):
            context.forget(0)
            context.steer(offsets)
            context.decode([0], [0], 0, 1)
            seen.append(context.logits().copy())
        if np.array_equal(seen[0], seen[1]):
            raise ModelError(f"llama.cpp ignores control vectors in the architecture {self.model.architecture}")
        self._probed = True

    def _context_for(self, length: int, sequences: int) -> LlamaContext:
        """The context if it is large enough, else a larger one: memory is taken for what is asked, not the most."""
        length = min(-(-length // LENGTH_STEP) * LENGTH_STEP, self.context_limit)
        sequences = min(sequences, self.parallel)
        held = self._context
        if held and held.length >= length and held.sequences >= sequences:
            return held
        if held:
            length, sequences = max(length, held.length), max(sequences, held.sequences)
            held.close()
            self._context = None
        self._context = LlamaContext(
            self._model,
            length=length,
            sequences=sequences,
            threads=self.threads,
            kv_type=self._kv_type,
            flash_attention=self._flash_attention,
        )
        return self._context


@dataclass
class _Sequence:
    """A request being answered in one sequence of the context."""

    index: int
    request: Request
    room: int
    sampler: LlamaSampler | None
    next_token: int
    position: int
    tokens: list[int] = field(default_factory=list)
    text: "_Text | None" = None


class _Text:
    """The growing text of one completion: bytes to characters, stop strings found, never shown half."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop
        self._hold = max((len(s) for s in stop), default=1) - 1
        self.text = ""
        self.shown = 0
        self.stopped = False

    def add(self, piece: bytes, final: bool = False) -> str:
        """Take a token's bytes; give the characters that can no longer become part of a stop string."""
        searched = max(0, len(self.text) - self._hold)
        self.text += self._decoder.decode(piece, final)
        found = [at for stop in self._stop if (at := self.text.find(stop, searched)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
        upto = len(self.text) if final or self.stopped else max(self.shown, len(self.text) - self._hold)
        new, self.shown = self.text[self.shown : upto], upto
        return new


class _Run:
    """Requests of one steering, driven through a context until all are answered.

    The active sequences are always 0..k-1: llama.cpp runs a batch as one graph only if its sequence ids have no holes.
    """

    def __init__(self, model: LlamaModel, requests: list[tuple[int, Request]], on_text: OnText | None) -> None:
        self._model = model
        self._waiting = requests[::-1]
        self._on_text = on_text
        self._active: list[_Sequence] = []

    def complete(self, context: LlamaContext, offsets: Offsets | None, limit: int) -> Iterator[tuple[int, Completion]]:
        by_layer = offsets.by_layer if offsets else None
        whole = not offsets or offsets.phase == "all"
        context.steer(by_layer)
        try:
            while self._waiting or self._active:
                if self._waiting and len(self._active) < context.sequences:
                    self._admit(context, by_layer, whole, limit)
                yield from self._step(context)
        finally:
            while self._active:
                self._leave(context, len(self._active) - 1)

    def _admit(self, context: LlamaContext, by_layer: Mapping[int, Array] | None, whole: bool, limit: int) -> None:
        """Fill free sequences: all prompt tokens but the last, which the next step decodes with the others."""
        if not whole:
            context.steer(None)
        while self._waiting and len(self._active) < context.sequences:
            index, request = self._waiting.pop()
            *head, last = request.prompt
            slot = len(self._active)
            context.forget(slot)
            context.prefill(head, range(len(head)), [slot] * len(head))
            sampler = LlamaSampler(request.sampling) if request.sampling.temperature else None
            room = min(request.max_tokens, limit - len(request.prompt))
            sequence = _Sequence(index, request, room, sampler, last, len(head))
            if request.stop or self._on_text:
                sequence.text = _Text(request.stop)
            self._active.append(sequence)
        if not whole:
            context.steer(by_layer)

    def _step(self, context: LlamaContext) -> Iterator[tuple[int, Completion]]:
        """One token for every active sequence; those that end give their completion and leave."""
        running = self._active
        slots = range(len(running))
        context.decode([s.next_token for s in running], [s.position for s in running], slots, 1)
        best = context.logits().argmax(axis=1).tolist()
        ended: list[tuple[int, int, Completion]] = []
        for slot, sequence in enumerate(running):
            token = best[slot] if sequence.sampler is None else context.sample(sequence.sampler, slot)
            sequence.position += 1
            sequence.next_token = token
            if completion := self._accept(sequence, token):
                ended.append((slot, sequence.index, completion))
        for slot, _, _ in reversed(ended):
            self._leave(context, slot)
        yield from ((index, completion) for _, index, completion in ended)

    def _accept(self, sequence: _Sequence, token: int) -> Completion | None:
        ended = self._model.ends(token)
        if not ended:
            sequence.tokens.append(token)
        text = sequence.text
        if text:
            new = text.add(b"" if ended else self._model.piece(token))
            full = len(sequence.tokens) >= sequence.room
            if ended or full or text.stopped:
                new += "" if text.stopped else text.add(b"", final=True)
            if new and self._on_text:
                self._on_text(sequence.index, new)
            ended = ended or text.stopped
        if not ended and len(sequence.tokens) < sequence.room:
            return None
        said = text.text if text else b"".join(map(self._model.piece, sequence.tokens)).decode(errors="replace")
        return Completion(said, tuple(sequence.tokens), "stop" if ended else "length")

    def _leave(self, context: LlamaContext, slot: int) -> None:
        """Take a sequence out; the last one moves into its place."""
        sequence, last = self._active[slot], self._active.pop()
        if last is not sequence:
            context.move(len(self._active), slot)
            self._active[slot] = last
        if sequence.sampler:
            sequence.sampler.close()
