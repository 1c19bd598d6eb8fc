"""The only door to llama.cpp: a model file, a context that decodes batches, samplers, the quantiser.

Takes paths, token ids and numpy arrays; gives numpy arrays and text. Every argument that llama.cpp would answer
with an abort is checked here before the C call. It knows nothing of requests or of how they are batched.
"""

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from edge_steer.backend import Message, Sampling, Tokens
from edge_steer.errors import EdgeSteerError, ModelError, VectorError
from edge_steer.files import cache_folder, digest, readable, replacing
from edge_steer.gguf_header import read_header
from edge_steer.vector import Array, ModelIdentity

KvType = Literal["f32", "f16", "q8_0"]
FlashAttention = Literal["auto", "on", "off"]
Ids = Sequence[int] | npt.NDArray[np.integer]

KV_TYPES: dict[KvType, int] = {"f32": 0, "f16": 1, "q8_0": 8}
FLASH_ATTENTION: dict[FlashAttention, int] = {"auto": -1, "on": 1, "off": 0}
QUANTS: dict[str, int] = {
    "F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q5_0": 8, "Q5_1": 9,
    "Q4_K_M": 15, "Q4_K_S": 14, "Q4_0": 2, "Q4_1": 3, "Q3_K_L": 13, "Q3_K_M": 12, "Q3_K_S": 11, "Q2_K": 10,
    "IQ4_NL": 25, "IQ4_XS": 30,
}  # fmt: skip
MAX_THREADS = 512  # GGML_MAX_N_THREADS
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
NO_RESULT_SPACE = 1  # what llama_decode returns when the KV cache has no room

_complaints: list[str] = []


# typedef void (*ggml_log_callback)(enum ggml_log_level level, const char * text, void * user_data);
@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_complaints(level: int, text: bytes, _user_data: object) -> None:
    if level == 3:
        _complaints.append(text.decode(errors="replace").strip())


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
        self._template: Jinja2ChatFormatter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.handle:
            llama_cpp.llama_model_free(self.handle)
            self.handle = None

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

    def chat(self, messages: Sequence[Message]) -> Tokens:
        """Token ids of a conversation by the file's own chat template. Errors: ModelError if it has none or refuses."""
        if self._template is None:
            source = self.metadata.get("tokenizer.chat_template")
            if not source:
                raise ModelError(f"{self.path} has no chat template; give a raw prompt instead (--raw)")
            bos, eos = (self._special(f(self.vocab)) for f in (llama_cpp.llama_vocab_bos, llama_cpp.llama_vocab_eos))
            self._template = Jinja2ChatFormatter(template=source, bos_token=bos, eos_token=eos)
        try:
            text = self._template(messages=list(messages)).prompt
        except Exception as error:
            raise ModelError(f"the chat template of {self.path} refuses these messages: {error}") from error
        return self.tokenize(text, add_special=False)

    def _special(self, token: int) -> str:
        return (llama_cpp.llama_vocab_get_text(self.vocab, token) or b"").decode() if token >= 0 else ""

    def _starts_with_bos(self, text: str) -> bool:
        bos = self._special(llama_cpp.llama_vocab_bos(self.vocab))
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
    """A KV cache of `sequences` sequences with `length` positions each, and the control vector in force."""

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
    ) -> None:
        """Errors: ModelError for settings llama.cpp cannot serve, or too little memory."""
        threads = default_threads() if threads is None else threads
        if not 1 <= threads <= MAX_THREADS:
            raise ModelError(f"{threads} threads asked; llama.cpp takes 1 to {MAX_THREADS}")
        if not 1 <= sequences <= MAX_SEQUENCES:
            raise ModelError(f"{sequences} sequences asked; llama.cpp takes 1 to {MAX_SEQUENCES}")
        if kv_type == "q8_0" and flash_attention == "off":
            raise ModelError("a q8_0 KV cache needs flash attention; use --flash-attention on, or --kv-type f16")
        self.model, self.length, self.sequences, self.batch = model, length, sequences, max(batch, sequences)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = length * sequences
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = self.batch
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = KV_TYPES[kv_type]
        params.flash_attn_type = FLASH_ATTENTION[flash_attention]
        params.no_perf = True
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
        if self.handle:
            llama_cpp.llama_free(self.handle)
            self.handle = None

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
        with _complaining("llama.cpp could not decode"):
            status = llama_cpp.llama_decode(self.handle, self._batch)
            if status == NO_RESULT_SPACE:
                raise ModelError("the KV cache is full")
            if status:
                raise ModelError(f"llama_decode returned {status}")

    def prefill(self, tokens: Ids, positions: Ids, sequences: Ids) -> None:
        """Cache any number of tokens, batch by batch, and keep no logits."""
        for start in range(0, len(tokens), self.batch):
            part = slice(start, start + self.batch)
            self.decode(tokens[part], positions[part], sequences[part], 0)

    def logits(self) -> Array:
        """Logits of the last batch's wanted tokens, float32 (wanted, vocabulary); valid until the next decode."""
        pointer = llama_cpp.llama_get_logits(self.handle)
        return np.ctypeslib.as_array(pointer, shape=(self._outputs, self.model.vocab_size))

    def sample(self, sampler: "LlamaSampler", index: int) -> int:
        """A token by the sampler from the logits of batch token `index`, which must have been wanted."""
        return int(llama_cpp.llama_sampler_sample(sampler.handle, self.handle, index))

    def steer(self, offsets: Mapping[int, Array] | None) -> None:
        """Put these offsets (layer -> float32 (hidden_size,)) in force for all that is decoded next; None clears.

        Errors: VectorError for layer 0, which llama.cpp's control vectors do not have, or a layer out of range.
        """
        # llama_set_adapter_cvec(ctx, const float * data, size_t len, n_embd, il_start, il_end)
        width, blocks = self.model.hidden_size, self.model.block_count
        if not offsets:
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

    def move(self, source: int, target: int) -> None:
        """Make all that is cached for `source` the cache of `target`, whose own is dropped."""
        self.forget(target)
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self.forget(source)

    def forget(self, sequence: int) -> None:
        """Drop everything cached for the sequence."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)

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


class LlamaSampler:
    """llama.cpp's sampler chain of one request: top-k, top-p, min-p, temperature, then a seeded draw."""

    def __init__(self, sampling: Sampling) -> None:
        self.handle = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        links = [
            llama_cpp.llama_sampler_init_top_k(sampling.top_k),
            llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
            llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1),
            llama_cpp.llama_sampler_init_temp(sampling.temperature),
            llama_cpp.llama_sampler_init_dist(sampling.seed),
        ]
        for link in links:
            llama_cpp.llama_sampler_chain_add(self.handle, link)

    def close(self) -> None:
        if self.handle:
            llama_cpp.llama_sampler_free(self.handle)
            self.handle = None


def check_steerable(layers: Mapping[int, object], model: ModelIdentity) -> None:
    """Errors: VectorError if llama.cpp's native control vector cannot carry one of the layers."""
    if 0 in layers:
        raise VectorError(
            "llama.cpp's control vectors have no layer 0; steer layers "
            f"1-{model.block_count - 1} with --layers, or run layer 0 in the PyTorch reference"
        )
    if beyond := [layer for layer in layers if not 0 < layer < model.block_count]:
        raise VectorError(f"layer {beyond[0]} asked; {model} can be steered at layers 1-{model.block_count - 1}")


def quantize_file(source: Path, target: Path, quant: str, threads: int | None = None) -> None:
    """Write `source` (an F32, F16 or BF16 GGUF) as `target` in the type `quant`, by llama.cpp's quantiser.

    Errors: ModelError for an unknown quant or a file llama.cpp cannot quantise. Nothing half written is left.
    """
    if quant not in QUANTS:
        raise ModelError(f"no quant {quant!r}; allowed are {', '.join(QUANTS)}")
    readable(source, "a GGUF model")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = QUANTS[quant]
    params.nthread = default_threads() if threads is None else threads
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


@contextlib.contextmanager
def _complaining(what: str) -> Iterator[None]:
    """Turn an error raised inside into one line that ends with llama.cpp's own last words."""
    _complaints.clear()
    try:
        yield
    except EdgeSteerError as error:
        words = str(error) or next(iter(_complaints), "it gave no reason")
        raise type(error)(f"{what}: {words}") from None
