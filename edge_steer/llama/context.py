"""A context of llama.cpp: it decodes batches, steered, and keeps a KV cache of each sequence.

Takes token ids and numpy arrays, gives numpy arrays. Every argument that llama.cpp would answer with an abort is
checked before the C call. It knows nothing of requests or of how they are batched.

    python -m edge_steer.llama.context FILE     exit status 0 if this build can run FILE with its weights repacked
"""

import ctypes
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import llama_cpp
import numpy as np
import numpy.typing as npt
import psutil

from edge_steer.core.architectures import check_architecture, check_steerable
from edge_steer.core.backend import EngineOptions, FlashAttention, KvType, available_cores
from edge_steer.core.errors import ModelError, OutOfMemory, VectorError
from edge_steer.core.steering import Offsets
from edge_steer.core.vector import Array
from edge_steer.llama.hook import ResidualHook, batch_rows
from edge_steer.llama.library import complaining, complaint, forget_complaints, interrupts_wait
from edge_steer.llama.model import LlamaModel

Ids = Sequence[int] | npt.NDArray[np.integer]
KV_TYPES: dict[KvType, int] = {"f32": 0, "f16": 1, "q8_0": 8}
FLASH_ATTENTION: dict[FlashAttention, int] = {"auto": -1, "on": 1, "off": 0}
MAX_THREADS = 512  # GGML_MAX_N_THREADS
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
LENGTH_STEP = 256  # contexts grow in steps, so that requests of like length share one
NO_RESULT_SPACE = 1  # what llama_decode returns when the KV cache has no room


class LlamaContext:
    """A KV cache of `sequences` sequences with `length` positions each, and the steering in force.

    A hooked context takes rows (`add`) instead of one control vector for all (`steer`), and can be read (`read`).
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        length: int,
        sequences: int = 1,
        threads: int | None = None,
        kv_type: KvType = "f16",
        flash_attention: FlashAttention = "auto",
        batch: int = 512,
        hooked: bool = False,
    ) -> None:
        """Errors: ModelError for settings llama.cpp cannot serve, OutOfMemory before it would run out."""
        if hooked:
            check_architecture(model.identity.architecture)
        threads = available_cores() if threads is None else threads
        if not 1 <= threads <= MAX_THREADS:
            raise ModelError(f"{threads} threads asked; llama.cpp takes 1 to {MAX_THREADS}")
        if not 1 <= sequences <= MAX_SEQUENCES:
            raise ModelError(f"{sequences} sequences asked; llama.cpp takes 1 to {MAX_SEQUENCES}")
        if kv_type == "q8_0" and flash_attention == "off":
            raise ModelError("a q8_0 KV cache needs flash attention; set flash_attention to on, or kv_type to f16")
        needed, free = model.kv_bytes(kv_type) * length * sequences, psutil.virtual_memory().available
        if needed > free:
            raise OutOfMemory(
                f"{sequences} x {length} positions of {model.path.name} need {needed / 1e9:.1f} GB for their KV cache; "
                f"{free / 1e9:.1f} GB are free; ask for fewer tokens, fewer sequences at once or a shorter context"
            )
        self.model, self.length, self.sequences, self.batch = model, length, sequences, max(batch, sequences)
        self.hooked = hooked
        self._hook = ResidualHook(model.hidden_size, self.batch) if hooked else None
        self._in_force: Mapping[int, Array] | None = None
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = length * sequences
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = self.batch
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = KV_TYPES[kv_type]
        params.flash_attn_type = FLASH_ATTENTION[flash_attention]
        params.no_perf = True
        if self._hook:
            params.cb_eval = self._hook.callback
        with complaining(f"llama.cpp cannot make a context of {sequences} x {length} positions for {model.path}"):
            self.handle = model.open_context(params)
            if not self.handle:
                raise ModelError
        self._memory = llama_cpp.llama_get_memory(self.handle)
        self._outputs, self._one_each = 0, (0, 0)
        self._logits_key = 0, 0
        self._logits = np.empty((0, model.vocab_size), dtype=np.float32)
        self._allocate_batch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        handle, self.handle = self.handle, None
        if handle:
            with interrupts_wait():
                llama_cpp.llama_free(handle)

    def decode(
        self,
        tokens: npt.ArrayLike,
        positions: npt.ArrayLike,
        sequences: npt.ArrayLike,
        wanted: npt.ArrayLike,
    ) -> None:
        """Run one batch: token i at position i of sequence i; `wanted` marks those whose logits are kept.

        Errors: ModelError for a token, position or sequence out of range, or a full cache.
        """
        count = len(ids := np.asarray(tokens, dtype=np.int32))
        if not 1 <= count <= self.batch:
            raise ModelError(f"a batch of {count} tokens; this context takes 1 to {self.batch}")
        if ids.min() < 0 or ids.max() >= self.model.vocab_size:
            raise ModelError(f"token ids must lie in 0..{self.model.vocab_size - 1}")
        self._token[:count], self._position[:count] = ids, positions
        self._sequence[:count], self._wanted[:count] = sequences, wanted
        if self._position[:count].max() >= self.length or self._sequence[:count].max() >= self.sequences:
            raise ModelError(f"this context has {self.sequences} sequences of {self.length} positions")
        self._one_each = 0, 0
        with interrupts_wait():
            self._run(count, int(self._wanted[:count].sum()))

    def decode_next(self, tokens: Sequence[int], positions: Sequence[int], first: int = 0) -> Array:
        """Run the next token of each of the sequences first, first + 1, ...; logits, valid until the next decode.

        For every step of a generation, so it checks nothing that `decode` and the caller have checked already, and
        the caller sees to it that interrupts wait. Errors: ModelError for a full cache.
        """
        count = len(tokens)
        self._token[:count], self._position[:count] = tokens, positions
        if (first, count) != self._one_each:
            self._sequence[:count], self._wanted[:count] = range(first, first + count), 1
            self._one_each = first, count
        self._run(count, count)
        return self.logits()

    def _run(self, count: int, outputs: int) -> None:
        self._batch.n_tokens, self._outputs = count, outputs
        if self._hook:
            self._hook.mark(self._wanted[:count].astype(np.bool_), self._sequence[:count])
        forget_complaints()
        if status := llama_cpp.llama_decode(self.handle, self._batch):
            reason = "the KV cache is full" if status == NO_RESULT_SPACE else complaint() or f"it returned {status}"
            raise ModelError(f"llama.cpp could not decode: {reason}")
        if self._hook:
            self._hook.check()

    def prefill(self, tokens: Ids, start: int, sequence: int) -> None:
        """Cache any number of tokens of one sequence from position `start` on, batch by batch; keep no logits."""
        for first in range(0, len(tokens), self.batch):
            part = tokens[first : first + self.batch]
            self.decode(part, np.arange(start + first, start + first + len(part)), sequence, 0)

    def logits(self) -> Array:
        """Logits of the last batch's wanted tokens, float32 (wanted, vocabulary); valid until the next decode."""
        pointer = llama_cpp.llama_get_logits(self.handle)
        key = ctypes.addressof(pointer.contents), self._outputs
        if key != self._logits_key:  # numpy takes longer to wrap a pointer than a small model to choose a token
            self._logits_key = key
            self._logits = np.ctypeslib.as_array(pointer, shape=(self._outputs, self.model.vocab_size))
        return self._logits

    def steer(self, offsets: Mapping[int, Array] | None) -> None:
        """Put these offsets (layer -> float32 (hidden_size,)) in force for all that is decoded next; None clears.

        Errors: VectorError for layer 0, which llama.cpp's control vectors do not have, or a layer out of range.
        """
        if offsets is self._in_force:
            return
        self._in_force = offsets
        # llama_set_adapter_cvec(ctx, const float * data, size_t len, n_embd, il_start, il_end)
        width, blocks = self.model.hidden_size, self.model.block_count
        if not offsets:
            with interrupts_wait():
                llama_cpp.llama_set_adapter_cvec(self.handle, None, 0, width, 0, 0)
            return
        check_steerable(offsets, self.model.identity)
        # The buffer starts at layer 1 and is always whole: a shorter one would leave old values behind it.
        buffer = np.zeros((blocks - 1, width), dtype=np.float32)
        for layer, offset in offsets.items():
            buffer[layer - 1] = offset
        pointer = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        with complaining("llama.cpp refused the control vector"):
            if llama_cpp.llama_set_adapter_cvec(self.handle, pointer, buffer.size, width, min(offsets), max(offsets)):
                raise VectorError

    def add(self, rows: Mapping[int, Array]) -> None:
        """Add rows to the residual stream of all that is decoded next; only a hooked context can.

        rows: layer -> float32 (tokens of the batch, hidden_size), or (1, hidden_size) for every token alike.
        """
        assert self._hook
        self._hook.add(rows)

    def read(self, layers: Sequence[int], *, logits: bool = False) -> None:
        """Read the residual stream after `layers` of all that is decoded next; only a hooked context can. () ends it.

        Without logits nothing beyond the last is computed, and no cache of use later. A batch must be of one sequence.
        """
        assert self._hook
        self._hook.read(layers, logits=logits)

    def states(self) -> Array:
        """What was read of the last batch's wanted tokens: float32 (layers, wanted, hidden_size)."""
        assert self._hook
        return self._hook.states()

    def copy(self, source: int, target: int) -> None:
        """Make all that is cached for `source` the cache of `target`, whose own is dropped."""
        self.forget(target)
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def forget(self, sequence: int, start: int = 0) -> bool:
        """Drop what is cached for the sequence from position `start` on; False where the model can only drop all."""
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def finish_copies(self) -> None:
        """Have llama.cpp do the copies that it puts off until it decodes: decode a token and forget it. Ends `add`."""
        if self._hook:
            self._hook.add({})
        ends = [llama_cpp.llama_memory_seq_pos_max(self._memory, one) + 1 for one in range(self.sequences)]
        self.decode([0], [min(ends)], ends.index(min(ends)), 0)
        self.forget(ends.index(min(ends)), min(ends))

    def save(self, sequence: int) -> "ctypes.Array[ctypes.c_uint8]":
        """All that is cached for the sequence, for `restore` of another context; after `finish_copies`."""
        size = llama_cpp.llama_state_seq_get_size(self.handle, sequence)
        state: ctypes.Array[ctypes.c_uint8] = (ctypes.c_uint8 * size)()
        # size_t llama_state_seq_get_data(ctx, uint8_t * dst, size_t size, llama_seq_id seq_id)
        llama_cpp.llama_state_seq_get_data(self.handle, state, size, sequence)
        return state

    def restore(self, sequence: int, state: "ctypes.Array[ctypes.c_uint8]") -> None:
        """Make a saved cache that of the sequence. Errors: ModelError if it does not fit."""
        with complaining("llama.cpp cannot take over what was cached"):
            if not llama_cpp.llama_state_seq_set_data(self.handle, state, len(state), sequence):
                raise ModelError

    def _allocate_batch(self) -> None:
        self._token = np.zeros(self.batch, dtype=np.int32)
        self._position = np.zeros(self.batch, dtype=np.int32)
        self._sequence = np.zeros(self.batch, dtype=np.int32)
        self._sequence_count = np.ones(self.batch, dtype=np.int32)
        self._sequence_pointers = self._sequence.ctypes.data + 4 * np.arange(self.batch, dtype=np.uintp)
        self._wanted = np.zeros(self.batch, dtype=np.int8)
        int32 = ctypes.POINTER(ctypes.c_int32)
        self._batch = llama_cpp.llama_batch(
            n_tokens=0,
            token=self._token.ctypes.data_as(int32),
            embd=None,
            pos=self._position.ctypes.data_as(int32),
            n_seq_id=self._sequence_count.ctypes.data_as(int32),
            seq_id=self._sequence_pointers.ctypes.data_as(ctypes.POINTER(int32)),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )


class GrowingContext:
    """The one context of a model: as large as was needed so far, and made again when more is needed."""

    def __init__(self, model: LlamaModel, options: EngineOptions) -> None:
        """options: with `context` and `threads` settled."""
        self._model, self._options = model, options
        self._least_length = self._least_sequences = self._fewest = 1
        self._probed = False
        self.current: LlamaContext | None = None

    def close(self) -> None:
        if self.current:
            self.current.close()
            self.current = None

    def reserve(self) -> None:
        """Make the context at its full size, and never a smaller one. Errors: OutOfMemory if there is no room."""
        assert self._options.context
        self._least_length = self._options.context
        self._least_sequences = self._fewest = self._options.parallel
        self.fit(self._least_length, self._fewest, hooked=False)

    def expect_more(self) -> None:
        """Requests may come at any time: make room for `parallel` sequences from now on, if there is memory."""
        self._least_sequences = self._options.parallel

    def fit(self, length: int, sequences: int, *, hooked: bool, keep: Sequence[int] = ()) -> LlamaContext:
        """The context if it is large enough, else a larger one: memory is taken for what is asked, not the most.

        Where memory is short it gets fewer sequences. keep: sequences that move to a new one with their cache; it has
        as many then, for llama.cpp moves a cache only so. Errors: OutOfMemory if there is none even for one.
        """
        before = self.current
        assert self._options.context
        length = min(-(-length // LENGTH_STEP) * LENGTH_STEP, self._options.context)
        length = max(length, self._least_length)
        sequences = min(max(sequences, self._least_sequences), self._options.parallel)
        if before and keep:
            length, sequences = max(length, before.length), before.sequences
        if before and before.length >= length and before.sequences >= sequences and before.hooked == hooked:
            return before
        if not (before and keep):
            self.close()
            self.current = self._make(length, sequences, hooked, fewest=self._fewest)
            return self.current
        before.finish_copies()
        states = {sequence: before.save(sequence) for sequence in keep}
        self.close()
        try:
            self.current = self._make(length, sequences, hooked, fewest=sequences)
        except ModelError:
            self.current = self._make(before.length, before.sequences, before.hooked, fewest=before.sequences)
            raise
        finally:
            if self.current:
                for sequence, state in states.items():
                    self.current.restore(sequence, state)
        return self.current

    def check_steerable(self) -> None:
        """Errors: ModelError for an architecture in which llama.cpp takes a control vector and does not apply it."""
        if self._probed:
            return
        logits = []
        slope = np.linspace(-1, 1, self._model.hidden_size, dtype=np.float32)  # LayerNorm would take out a constant
        with self._make(1, 1, hooked=False, fewest=1) as context:
            for offsets in (None, {self._model.block_count - 1: slope}):
                context.forget(0)
                context.steer(offsets)
                context.decode([0], [0], 0, 1)
                logits.append(context.logits().copy())
        if np.array_equal(logits[0], logits[1]):
            raise ModelError(f"llama.cpp ignores control vectors in architecture {self._model.identity.architecture}")
        self._probed = True

    def _make(self, length: int, sequences: int, hooked: bool, *, fewest: int) -> LlamaContext:
        while True:
            try:
                return LlamaContext(
                    self._model,
                    length=length,
                    sequences=sequences,
                    threads=self._options.threads,
                    kv_type=self._options.kv_type,
                    flash_attention=self._options.flash_attention,
                    hooked=hooked,
                )
            except OutOfMemory:
                if sequences <= fewest:
                    raise
                sequences = max(sequences // 2, fewest)


class ControlVectorSteering:
    """One steering for all sequences, as llama.cpp's own control vector."""

    def __init__(self, context: LlamaContext) -> None:
        self._context = context

    def before_prompts(self, prompts: Sequence[tuple[Offsets | None, int]]) -> None:
        """Put in force what steers so many tokens of each of these prompts, all alike, but for their last ones."""
        first = prompts[0][0]
        self._context.steer(first.of_prompt if first else None)

    def before_step(self, offsets: Sequence[Offsets | None]) -> None:
        """Put in force what steers a batch of one position of each of the sequences 0, 1, ..., all alike."""
        self._context.steer(offsets[0].by_layer if offsets[0] else None)


class RowSteering:
    """A steering of its own for each sequence, as rows added to the residual stream; the context must be hooked."""

    def __init__(self, context: LlamaContext) -> None:
        self._context = context

    def before_prompts(self, prompts: Sequence[tuple[Offsets | None, int]]) -> None:
        first = prompts[0][0]
        if all(offsets is first for offsets, _ in prompts):
            prompts = [(first, 1)]
        self._context.add(batch_rows([(offsets.of_prompt if offsets else {}, count) for offsets, count in prompts]))

    def before_step(self, offsets: Sequence[Offsets | None]) -> None:
        self._context.add(batch_rows([(added.by_layer if added else {}, 1) for added in offsets]))


def steering_of(context: LlamaContext) -> ControlVectorSteering | RowSteering:
    """How the context is steered: by rows if it is hooked."""
    return RowSteering(context) if context.hooked else ControlVectorSteering(context)


if __name__ == "__main__":
    with LlamaModel(Path(sys.argv[1]), repack=True) as model, LlamaContext(model, length=64) as context:
        context.prefill([0] * 32, 0, 0)
