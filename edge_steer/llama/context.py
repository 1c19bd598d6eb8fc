"""A model file in llama.cpp, a context that decodes batches, the quantiser: with llama_* the only doors to llama.cpp.

Takes paths, token ids and numpy arrays; gives numpy arrays and text. Every argument that llama.cpp would answer
with an abort is checked here before the C call. It knows nothing of requests or of how they are batched.
"""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Self

import llama_cpp
import numpy as np
import numpy.typing as npt
import psutil

from edge_steer.core.architectures import check_architecture, check_steerable
from edge_steer.core.backend import FlashAttention, KvType, available_cores
from edge_steer.core.errors import ModelError, OutOfMemory, VectorError
from edge_steer.core.vector import Array
from edge_steer.llama.hook import ResidualHook
from edge_steer.llama.library import complaining, interrupts_wait
from edge_steer.llama.model import LlamaModel

Ids = Sequence[int] | npt.NDArray[np.integer]
KV_TYPES: dict[KvType, int] = {"f32": 0, "f16": 1, "q8_0": 8}
FLASH_ATTENTION: dict[FlashAttention, int] = {"auto": -1, "on": 1, "off": 0}
MAX_THREADS = 512  # GGML_MAX_N_THREADS
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
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
            raise ModelError("a q8_0 KV cache needs flash attention; use --flash-attention on, or --kv-type f16")
        needed, free = model.kv_bytes(kv_type) * length * sequences, psutil.virtual_memory().available
        if needed > free:
            raise OutOfMemory(
                f"{sequences} x {length} positions of {model.path.name} need {needed / 1e9:.1f} GB for their KV cache; "
                f"{free / 1e9:.1f} GB are free; ask for fewer tokens, or a smaller --parallel or --context"
            )
        self.model, self.length, self.sequences, self.batch = model, length, sequences, max(batch, sequences)
        self.hooked = hooked
        self._hook = ResidualHook(model.hidden_size) if hooked else None
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
            self.handle = llama_cpp.llama_init_from_model(model.handle, params)
            if not self.handle:
                raise ModelError
        self._memory = llama_cpp.llama_get_memory(self.handle)
        self._outputs = 0
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
        self._batch.n_tokens = count
        self._outputs = int(self._wanted[:count].sum())
        if self._hook:
            self._hook.mark(self._wanted[:count].astype(np.bool_))
        with complaining("llama.cpp could not decode"):
            status = llama_cpp.llama_decode(self.handle, self._batch)
            if status == NO_RESULT_SPACE:
                raise ModelError("the KV cache is full")
            if status:
                raise ModelError(f"llama_decode returned {status}")
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
        return np.ctypeslib.as_array(pointer, shape=(self._outputs, self.model.vocab_size))

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

    def read(self, layers: Sequence[int]) -> None:
        """Read the residual stream after `layers` of all that is decoded next; only a hooked context can. () ends it.

        Nothing beyond the last of them is computed: there are no logits, and what is cached meanwhile is of no use
        after it ends. A batch must be of one sequence.
        """
        assert self._hook
        self._hook.read(layers)

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
