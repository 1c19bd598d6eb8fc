"""A model file in llama.cpp, a context that decodes batches, the quantiser: with llama_* the only doors to llama.cpp.

Takes paths, token ids and numpy arrays; gives numpy arrays and text. Every argument that llama.cpp would answer
with an abort is checked here before the C call. It knows nothing of requests or of how they are batched.
"""

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Self

import llama_cpp
import numpy as np
import numpy.typing as npt
import psutil

from edge_steer.architectures import UNSTEERABLE
from edge_steer.backend import Message, Tokens
from edge_steer.chat_template import render
from edge_steer.errors import EdgeSteerError, ModelError, OutOfMemory, VectorError
from edge_steer.files import cache_folder, digest, readable, replacing
from edge_steer.gguf_header import read_header
from edge_steer.llama_hook import ResidualHook
from edge_steer.vector import Array, ModelIdentity

KvType = Literal["f32", "f16", "q8_0"]
FlashAttention = Literal["auto", "on", "off"]
Ids = Sequence[int] | npt.NDArray[np.integer]

KV_TYPES: dict[KvType, int] = {"f32": 0, "f16": 1, "q8_0": 8}
KV_BYTES: dict[KvType, float] = {"f32": 4, "f16": 2, "q8_0": 34 / 32}
FLASH_ATTENTION: dict[FlashAttention, int] = {"auto": -1, "on": 1, "off": 0}
QUANTS: dict[str, int] = {
    "F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q5_0": 8, "Q5_1": 9,
    "Q4_K_M": 15, "Q4_K_S": 14, "Q4_0": 2, "Q4_1": 3, "Q3_K_L": 13, "Q3_K_M": 12, "Q3_K_S": 11, "Q2_K": 10,
    "IQ4_NL": 25, "IQ4_XS": 30, "IQ3_M": 27, "IQ3_S": 26, "IQ3_XS": 22,
    "IQ3_XXS": 23, "IQ2_M": 29, "IQ2_S": 28, "IQ2_XS": 20, "IQ2_XXS": 19, "IQ1_M": 31, "IQ1_S": 24, "Q2_K_S": 21,
}  # fmt: skip
NEED_IMPORTANCE = frozenset(("IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "Q2_K_S"))
MAX_THREADS = 512  # GGML_MAX_N_THREADS
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
NO_RESULT_SPACE = 1  # what llama_decode returns when the KV cache has no room

GGML_LOG_LEVEL_ERROR = 4  # enum ggml_log_level, ggml.h

_complaints: list[str] = []


# typedef void (*ggml_log_callback)(enum ggml_log_level level, const char * text, void * user_data);
@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_complaints(level: int, text: bytes, _user_data: object) -> None:
    words = text.decode(errors="replace").strip("= \n")
    if level == GGML_LOG_LEVEL_ERROR and words:
        _complaints.append(words)


llama_cpp.llama_log_set(_keep_complaints, ctypes.c_void_p(0))


def default_threads() -> int:
    """The number of cores this process may use; ggml slows tenfold when it has more threads than cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def system_info() -> dict[str, str]:
    """What llama.cpp was built with, and whether it can offload to a GPU."""
    return {
        "llama-cpp-python": llama_cpp.__version__,
        "cpu features": _cpu_features(),
        "gpu offload": "yes" if llama_cpp.llama_supports_gpu_offload() else "no",
    }


def _cpu_features() -> str:
    return str(llama_cpp.llama_print_system_info().decode().strip(" |\n"))


class LlamaModel:
    """A GGUF model in memory. Close it (or use it as a context manager) after every context made from it."""

    def __init__(self, path: Path, gpu_layers: int = -1, repack: bool | None = None) -> None:
        """gpu_layers: how many layers to offload where llama.cpp can; -1 is all.

        repack: lay quantised weights out for this CPU; None is wherever that is safe. Errors: ModelError.
        """
        readable(path, "a GGUF model")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{path} is not a GGUF file; make one with: edge-steer convert FOLDER")
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.use_extra_bufts = repacking_is_safe(path) if repack is None else repack
        with _complaining(f"llama.cpp cannot load {path}"):
            self.handle = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
            if not self.handle:
                raise ModelError
        self.path = path
        self.vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.hidden_size: int = llama_cpp.llama_model_n_embd(self.handle)
        self.block_count: int = llama_cpp.llama_model_n_layer(self.handle)
        self.trained_context: int = llama_cpp.llama_model_n_ctx_train(self.handle)
        self.metadata = self._read_metadata()
        self._pieces: dict[int, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        handle, self.handle = self.handle, None
        if handle:
            with _interrupts_wait():
                llama_cpp.llama_model_free(handle)

    @property
    def identity(self) -> ModelIdentity:
        return ModelIdentity(
            name=self.metadata.get("general.name") or self.path.stem,
            architecture=self.metadata.get("general.architecture"),
            hidden_size=self.hidden_size,
            block_count=self.block_count,
        )

    @property
    def description(self) -> str:
        """llama.cpp's own line for the model: architecture, size and quant."""
        buffer = ctypes.create_string_buffer(256)
        llama_cpp.llama_model_desc(self.handle, buffer, len(buffer))
        return buffer.value.decode(errors="replace")

    def tokenize(self, text: str, *, add_special: bool) -> Tokens:
        """Token ids with special tokens parsed; `add_special` adds a BOS where the model wants one, never a second."""
        raw = text.encode()
        if add_special and self._starts_with_bos(text):
            add_special = False
        capacity = len(raw) + 8
        ids = (llama_cpp.llama_token * capacity)()
        count = llama_cpp.llama_tokenize(self.vocab, raw, len(raw), ids, capacity, add_special, True)
        if count < 0:
            raise ModelError(f"llama.cpp could not tokenise a text of {len(raw)} bytes")
        return tuple(ids[:count])

    def piece(self, token: int) -> bytes:
        """The bytes a generated token adds to the text; special tokens add none."""
        if token not in self._pieces:
            buffer = ctypes.create_string_buffer(64)
            size = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
            if size < 0:
                buffer = ctypes.create_string_buffer(-size)
                size = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
            self._pieces[token] = buffer.raw[:size]
        return self._pieces[token]

    def ends(self, token: int) -> bool:
        """Whether the token ends a generation."""
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    @property
    def template(self) -> str:
        """The source of the file's own chat template. Errors: ModelError if it has none."""
        if source := self.metadata.get("tokenizer.chat_template"):
            return source
        raise ModelError(f"{self.path} has no chat template; give raw prompts instead")

    @property
    def marks(self) -> tuple[str, str]:
        """The texts of the begin and of the end token; "" for one that the file does not name."""
        ids = (int(self.metadata.get(f"tokenizer.ggml.{name}_token_id", -1)) for name in ("bos", "eos"))
        bos, eos = map(self._special, ids)
        return bos, eos

    def chat(self, messages: Sequence[Message]) -> Tokens:
        """Token ids of a conversation by the file's own chat template. Errors: ModelError if it has none or refuses."""
        bos, eos = self.marks
        return self.tokenize(render(self.template, messages, bos=bos, eos=eos), add_special=False)

    def kv_bytes(self, kv_type: KvType) -> float:
        """Bytes of KV cache that one position of one sequence takes."""
        metadata = read_header(self.path).metadata

        def per_block(key: str, default: float) -> list[float]:
            found = metadata.get(f"{self.identity.architecture}.attention.{key}", default)
            return [float(n) for n in found] if isinstance(found, tuple) else [float(found)] * self.block_count

        heads = per_block("head_count_kv", llama_cpp.llama_model_n_head_kv(self.handle))
        width = self.hidden_size / max(1, llama_cpp.llama_model_n_head(self.handle))
        numbers = zip(heads, per_block("key_length", width), per_block("value_length", width), strict=True)
        return sum(count * (key + value) for count, key, value in numbers) * KV_BYTES[kv_type]

    def _special(self, token: int) -> str:
        return (llama_cpp.llama_vocab_get_text(self.vocab, token) or b"").decode() if token >= 0 else ""

    def _starts_with_bos(self, text: str) -> bool:
        bos, _ = self.marks
        return bool(bos) and text.startswith(bos)

    def _read_metadata(self) -> dict[str, str]:
        def read(function: object, index: int) -> str:
            buffer = ctypes.create_string_buffer(512)
            size = function(self.handle, index, buffer, len(buffer))  # type: ignore[operator]
            if size >= len(buffer):
                buffer = ctypes.create_string_buffer(size + 1)
                function(self.handle, index, buffer, len(buffer))  # type: ignore[operator]
            return buffer.value.decode(errors="replace")

        return {
            read(llama_cpp.llama_model_meta_key_by_index, i): read(llama_cpp.llama_model_meta_val_str_by_index, i)
            for i in range(llama_cpp.llama_model_meta_count(self.handle))
        }


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
        threads = default_threads() if threads is None else threads
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
        with _complaining(f"llama.cpp cannot make a context of {sequences} x {length} positions for {model.path}"):
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
            with _interrupts_wait():
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
        with _complaining("llama.cpp could not decode"):
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
            with _interrupts_wait():
                llama_cpp.llama_set_adapter_cvec(self.handle, None, 0, width, 0, 0)
            return
        check_steerable(offsets, self.model.identity)
        # The buffer starts at layer 1 and is always whole: a shorter one would leave old values behind it.
        buffer = np.zeros((blocks - 1, width), dtype=np.float32)
        for layer, offset in offsets.items():
            buffer[layer - 1] = offset
        pointer = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        with _complaining("llama.cpp refused the control vector"):
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


def check_architecture(name: str | None) -> None:
    """Errors: ModelError for an architecture whose residual stream llama.cpp does not offer as the layer law has it."""
    if reason := UNSTEERABLE.get(name or ""):
        raise ModelError(f"llama.cpp can neither steer nor read the layers of {name}: {reason}; use another model")


def check_steerable(layers: Mapping[int, object], model: ModelIdentity) -> None:
    """Errors: ModelError for an architecture that llama.cpp cannot steer, VectorError for a layer that its native
    control vector cannot carry."""
    check_architecture(model.architecture)
    if 0 in layers:
        raise VectorError(
            f"llama.cpp's control vectors have no layer 0, only layers 1-{model.block_count - 1}; "
            "Engine steers layer 0 by rows"
        )
    if beyond := [layer for layer in layers if not 0 < layer < model.block_count]:
        raise VectorError(f"layer {beyond[0]} asked; {model} can be steered at layers 1-{model.block_count - 1}")


def quantize_file(
    source: Path,
    target: Path,
    quant: str,
    threads: int | None = None,
    importance: Mapping[str, Array] | None = None,
) -> None:
    """Write `source` (an F32, F16 or BF16 GGUF) as `target` in the type `quant`, by llama.cpp's quantiser.

    importance: what counts in each tensor, as importance.read gives it. Errors: ModelError for an unknown quant, one
    that needs an importance it is not given, one of another model, or a file llama.cpp cannot quantise. Nothing half
    written is left.
    """
    if quant not in QUANTS:
        raise ModelError(f"no quant {quant!r}; allowed are {', '.join(QUANTS)}")
    if quant in NEED_IMPORTANCE and not importance:
        raise ModelError(f"{quant} needs an importance matrix; give a file of llama-imatrix with --imatrix")
    readable(source, "a GGUF model")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = QUANTS[quant]
    params.nthread = default_threads() if threads is None else threads
    if importance:
        params.imatrix = _importance_of(source, importance)
    with replacing(target) as temporary, _complaining(f"llama.cpp cannot quantise {source} to {quant}"):
        if llama_cpp.llama_model_quantize(str(source).encode(), str(temporary).encode(), ctypes.byref(params)):
            raise ModelError


def repacking_is_safe(path: Path) -> bool:
    """False where llama.cpp's AMX kernels kill the process, tried once for each build in a child process."""
    if "AMX_INT8 = 1" not in _cpu_features():
        return True
    if read_header(path).metadata.get("general.file_type") in {QUANTS[name] for name in ("F32", "F16", "BF16")}:
        return True
    kernels = Path(llama_cpp.__file__).parent / "lib" / "libggml-cpu.so"
    verdict = cache_folder() / f"amx-{digest(kernels)[:16]}"
    if not verdict.exists():
        probe = [sys.executable, "-m", "edge_steer.amx_probe", str(path)]
        status = subprocess.run(probe, capture_output=True, check=False).returncode
        if status > 0:
            return False
        with replacing(verdict) as temporary:
            temporary.write_text("faults" if status else "works")
    return verdict.read_text() == "works"


def _importance_of(source: Path, importance: Mapping[str, Array]) -> "ctypes.Array[llama_cpp.llama_model_imatrix_data]":
    """The importance as llama.cpp takes it. Errors: ModelError if it is not of this model."""
    shapes = {tensor.name: tensor.shape for tensor in read_header(source).tensors}
    for name, values in importance.items():
        columns = math.prod(shapes[name][i] for i in (0, 2) if i < len(shapes[name])) if name in shapes else 0
        if len(values) != columns:
            what = f"{len(values)} values for {name}, which has {columns} there" if columns else f"an unknown {name}"
            raise ModelError(f"the importance matrix is not of {source}: it has {what}")
    # struct llama_model_imatrix_data { const char * name; const float * data; size_t size; }, ended by a null name
    entries: ctypes.Array[Any] = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name, entry.size = name.encode(), len(values)
        entry.data = np.ascontiguousarray(values).ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries


@contextlib.contextmanager
def _complaining(what: str) -> Iterator[None]:
    """Turn an error raised inside into one line that ends with llama.cpp's own last words; interrupts wait."""
    _complaints.clear()
    try:
        with _interrupts_wait():
            yield
    except EdgeSteerError as error:
        words = str(error) or next(iter(_complaints), "it gave no reason")
        raise type(error)(f"{what}: {words}") from None


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C in a C call that calls back into Python, as llama.cpp's log does, would be lost; it takes effect after."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    seen: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda _number, frame: seen.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if seen:
            handler(signal.SIGINT, seen[0])
