"""A GGUF model in memory: its tokens, its template, its shape."""

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import llama_cpp

from edge_steer.adapters.gguf_lora import check_fits
from edge_steer.core.backend import PLAIN, KvType, Lora, Message, Tokens, dated, plain_text
from edge_steer.core.errors import ModelError
from edge_steer.core.vector import ModelIdentity
from edge_steer.llama.chat_template import render
from edge_steer.llama.library import complaining, interrupts_wait, repacking_is_safe
from edge_steer.storage.files import readable
from edge_steer.storage.gguf_header import read_header

Adapters = tuple[tuple[str, float], ...]  # digest and scale of each that acts, in one order
KV_BYTES: dict[KvType, float] = {"f32": 4, "f16": 2, "q8_0": 34 / 32}


class LlamaModel:
    """A GGUF model in memory. Close it (or use it as a context manager) after every context made from it."""

    def __init__(
        self,
        path: Path,
        gpu_layers: int = -1,
        repack: bool | None = None,
        template: str | None = None,
        date: str | None = None,
        lora: Lora | None = None,
        loras: Sequence[Lora] = (),
    ) -> None:
        """gpu_layers: how many layers to offload where llama.cpp can; -1 is all.

        repack: lay quantised weights out for this CPU; None is wherever that is safe. template: a chat template in
        place of the file's own, or PLAIN. date: what the template takes for today. lora: a GGUF LoRA that contexts of
        this model run with until they are told otherwise. loras: others that they can run with. Errors: ModelError.
        """
        readable(path, "a GGUF model")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{path} is not a GGUF file; make one with: edge-steer convert FOLDER")
        own = (lora,) if lora else ()
        for one in (*own, *loras):
            check_fits(one.path, path)
        self.path = path
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.use_extra_bufts = repacking_is_safe(path) if repack is None else repack
        with complaining(f"llama.cpp cannot load {path}"):
            self._handle = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
            if not self._handle:
                raise ModelError
        self.lora = lora
        self._own = self._in_force = _acting(own)
        self._handles = self._load_adapters((*own, *loras))
        self.other_template, self.date = template, date
        self._vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.hidden_size: int = llama_cpp.llama_model_n_embd(self.handle)
        self.block_count: int = llama_cpp.llama_model_n_layer(self.handle)
        self.trained_context: int = llama_cpp.llama_model_n_ctx_train(self.handle)
        self.metadata = self._read_metadata()
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        handle, self._handle, self._vocab = self._handle, None, None
        if handle:
            with interrupts_wait():
                llama_cpp.llama_model_free(handle)

    @property
    def handle(self) -> Any:
        """The model in llama.cpp, which takes no null pointer. Errors: ModelError once it is closed."""
        return self._still_open(self._handle)

    @property
    def vocab(self) -> Any:
        """Its vocabulary. Errors: ModelError once the model is closed."""
        return self._still_open(self._vocab)

    def _still_open(self, pointer: Any) -> Any:
        if not pointer:
            raise ModelError(f"{self.path.name} was closed; load it again to go on")
        return pointer

    def open_context(self, params: Any) -> Any:
        """The handle of a new context, with the adapter in force; None if llama.cpp makes none. Errors: ModelError."""
        context = llama_cpp.llama_init_from_model(self.handle, params)
        if context and self._in_force:
            self._put_in_force(context)
        return context

    def adapters(self, loras: Sequence[Lora] | None) -> Adapters:
        """What contexts run with for these adapters; None is for what the model was loaded to run with.

        Errors: ModelError for one it was not loaded with.
        """
        if loras is None:
            return self._own
        if strange := [lora for lora in loras if lora.digest not in self._handles]:
            raise ModelError(f"{strange[0].path} is none of the adapters that this model was loaded with")
        return _acting(loras)

    def runs_with(self, adapters: Adapters) -> bool:
        return self._in_force == adapters

    def adapt(self, context: Any, adapters: Adapters) -> None:
        """Have a context, and those made later, run with these adapters; what it has cached stays."""
        if not self.runs_with(adapters):
            self._in_force = adapters
            self._put_in_force(context)

    def _put_in_force(self, context: Any) -> None:
        count = len(self._in_force)
        handles = (llama_cpp.llama_adapter_lora_p_ctypes * count)(
            *(self._handles[digest] for digest, _ in self._in_force)
        )
        scales = (ctypes.c_float * count)(*(scale for _, scale in self._in_force))
        # int32_t llama_set_adapters_lora(ctx, struct llama_adapter_lora ** adapters, size_t n, float * scales)
        if llama_cpp.llama_set_adapters_lora(context, handles, count, scales):
            raise ModelError("llama.cpp refused the adapters")

    @property
    def identity(self) -> ModelIdentity:
        return ModelIdentity(
            name=self.metadata.get("general.name") or self.path.stem,
            architecture=self.metadata.get("general.architecture"),
            hidden_size=self.hidden_size,
            block_count=self.block_count,
        )

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

    def text(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens."""
        return b"".join(map(self.piece, tokens)).decode(errors="replace")

    def ends(self, token: int) -> bool:
        """Whether the token ends a generation."""
        if token not in self._ends:
            self._ends[token] = bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))
        return self._ends[token]

    @property
    def template(self) -> str:
        """The source of the chat template, or PLAIN. Errors: ModelError if the file has none and none was given."""
        if source := self.other_template or self.metadata.get("tokenizer.chat_template"):
            return source
        raise ModelError(f"{self.path} has no chat template; give one, or ask in plain text")

    @property
    def bos_eos_text(self) -> tuple[str, str]:
        """The texts of the begin and of the end token; "" for one that the file does not name."""
        ids = (int(self.metadata.get(f"tokenizer.ggml.{name}_token_id", -1)) for name in ("bos", "eos"))
        bos, eos = map(self._special, ids)
        return bos, eos

    @cached_property
    def end_tokens(self) -> Tokens:
        """Every token that ends a generation."""
        return tuple(filter(self.ends, range(self.vocab_size)))

    @cached_property
    def delimiters(self) -> Tokens:
        """Every token whose text holds a blank line."""
        return tuple(token for token in range(self.vocab_size) if b"\n\n" in self.piece(token))

    def conversation(
        self, messages: Sequence[Message], *, answer: bool = True, variables: Mapping[str, Any] | None = None
    ) -> str:
        """A conversation by the chat template, as `render` has it. Errors: ModelError if it refuses."""
        bos, eos = self.bos_eos_text
        if self.template == PLAIN:
            return (bos if llama_cpp.llama_vocab_get_add_bos(self.vocab) else "") + plain_text(messages)
        template = dated(self.template, self.date)
        return render(template, messages, bos=bos, eos=eos, answer=answer, variables=variables)

    def chat(self, messages: Sequence[Message]) -> Tokens:
        """Token ids of a conversation by the chat template. Errors: ModelError if it has none or refuses."""
        return self.tokenize(self.conversation(messages), add_special=False)

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

    def _load_adapters(self, loras: Iterable[Lora]) -> dict[str, Any]:
        """By digest; the model frees them. They must be there before any context, whose graph has room for them."""
        handles: dict[str, Any] = {}
        for lora in {lora.digest: lora for lora in loras}.values():
            # struct llama_adapter_lora * llama_adapter_lora_init(struct llama_model * model, const char * path_lora)
            with complaining(f"llama.cpp cannot load the adapter {lora.path}"):
                if not (handle := llama_cpp.llama_adapter_lora_init(self.handle, str(lora.path).encode())):
                    self.close()
                    raise ModelError
            handles[lora.digest] = handle
        return handles

    def _special(self, token: int) -> str:
        return (llama_cpp.llama_vocab_get_text(self.vocab, token) or b"").decode() if token >= 0 else ""

    def _starts_with_bos(self, text: str) -> bool:
        bos, _ = self.bos_eos_text
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


def _acting(loras: Iterable[Lora]) -> Adapters:
    """Those that change anything; one that is there twice has both scales."""
    scales: dict[str, float] = {}
    for lora in loras:
        scales[lora.digest] = scales.get(lora.digest, 0) + lora.scale
    return tuple(sorted((digest, scale) for digest, scale in scales.items() if scale))
