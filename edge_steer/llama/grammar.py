"""A grammar in GBNF that an answer obeys, held by llama.cpp's own grammar sampler.

llama.cpp ends the process where a grammar nests too deeply for its stack or a token is accepted that the grammar
forbids. So a grammar is held against bounds before the C call, and only what it allows is accepted.
"""

import ctypes
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np

from edge_steer.core.errors import RequestError

if TYPE_CHECKING:
    from edge_steer.llama.model import LlamaModel

MOST_CHARACTERS = 2**17
MOST_RULES = 2000  # rules and brackets; llama.cpp's parser calls itself for each, and its stack ends beyond 10,000
_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # struct llama_token_data


class Candidates:
    """All tokens with their logits, as llama.cpp's samplers take them."""

    def __init__(self, logits: Any, vocab_size: int) -> None:
        """logits: a pointer to float32 (vocab_size,), which are copied."""
        self._data = np.zeros(vocab_size, dtype=_DATA)
        self._data["id"] = np.arange(vocab_size)
        self._data["logit"] = np.ctypeslib.as_array(logits, shape=(vocab_size,))
        pointer = ctypes.cast(self._data.ctypes.data, llama_cpp.llama_token_data_p)
        self.array = llama_cpp.llama_token_data_array(pointer, vocab_size, -1, False)

    @property
    def selected(self) -> int:
        """The token that the last link of a chain chose."""
        return int(self._data["id"][self.array.selected])


class Grammar:
    """Where an answer is in its grammar. Close it when the answer ends."""

    def __init__(self, grammar: str, model: "LlamaModel") -> None:
        """Errors: RequestError for a grammar that is not GBNF, has no rule `root`, or is too large or too deep."""
        _check_size(grammar)
        # llama_sampler_init_grammar(vocab, const char * grammar_str, const char * grammar_root)
        self._handle = llama_cpp.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
        if not self._handle:
            raise RequestError(
                "the grammar cannot be read: it is no GBNF, has no rule 'root', names a rule that is not there, "
                "repeats too often or begins a rule with itself"
            )

    def allows(self, token: int) -> bool:
        """Whether the answer may go on with this token."""
        one = llama_cpp.llama_token_data(token, 1.0, 0.0)
        array = llama_cpp.llama_token_data_array(ctypes.pointer(one), 1, -1, False)
        llama_cpp.llama_sampler_apply(self._handle, ctypes.byref(array))
        return bool(one.logit > -np.inf)

    def apply(self, candidates: Candidates) -> None:
        """Forbid all tokens that may not follow."""
        llama_cpp.llama_sampler_apply(self._handle, ctypes.byref(candidates.array))

    def accept(self, token: int) -> None:
        """Go on past a token, which must be allowed."""
        llama_cpp.llama_sampler_accept(self._handle, token)

    def close(self) -> None:
        if self._handle:
            llama_cpp.llama_sampler_free(self._handle)
            self._handle = None


def _check_size(grammar: str) -> None:
    if len(grammar) > MOST_CHARACTERS or "\0" in grammar:
        raise RequestError(f"the grammar has a NUL or more than {MOST_CHARACTERS} characters")
    if grammar.count("(") + grammar.count("::=") > MOST_RULES:
        raise RequestError(f"the grammar has more than {MOST_RULES} rules and brackets")
