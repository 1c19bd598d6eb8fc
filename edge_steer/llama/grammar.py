"""Grammars that an answer obeys, given in GBNF or as a JSON schema, held by llama.cpp's own grammar sampler.

llama.cpp ends the process where a grammar nests too deeply for its stack or a token is accepted that the grammar
forbids. So a grammar is held against bounds before the C call, and only what it allows is accepted. A schema becomes
a grammar by the converter of llama-cpp-python, which leaves out what it does not know and makes text as long as a
schema asks for. So a schema is first held against what it does know: an answer obeys all of it or is refused.
"""

import ctypes
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np
from llama_cpp.llama_grammar import json_schema_to_gbnf

from edge_steer.core.errors import RequestError, first_line

if TYPE_CHECKING:
    from edge_steer.llama.model import LlamaModel

MOST_CHARACTERS = 2**17
MOST_RULES = 2000  # rules and brackets; llama.cpp's parser calls itself for each, and its stack ends beyond 10,000
MOST_SCHEMA_CHARACTERS = 2**16
MOST_PARTS = 1000
MOST_REPEATED = 2000  # llama-grammar.cpp, MAX_REPETITION_THRESHOLD
_ONE = ("additionalProperties", "items")  # keywords that hold a schema, or in `items` several
_SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "$defs", "definitions")
_PLAIN = ("type", "const", "enum", "required", "pattern", "format", "$ref")
_LENGTHS = ("minItems", "maxItems", "minLength", "maxLength")
_SAY_NOTHING = ("title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated", "readOnly",
                "writeOnly", "strict", "discriminator")  # fmt: skip
KNOWN = frozenset((*_ONE, *_SEVERAL, *_NAMED, *_PLAIN, *_LENGTHS, *_SAY_NOTHING))
_NEEDS = {"minItems": ("items",), "maxItems": ("items",), "minLength": ("type",), "maxLength": ("type",)}
_QUANTIFIER = re.compile(r"\{(\d*),?(\d*)\}")
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


def grammar_of(schema: str) -> str:
    """GBNF of a JSON schema, given as text. Errors: RequestError for one that cannot be held, which says why."""
    try:
        parts = list(_schema_parts(json.loads(schema)))
        for part in parts:
            _check_part(part)
        if len(parts) > MOST_PARTS or len(schema) > MOST_SCHEMA_CHARACTERS:
            raise RequestError(
                f"the JSON schema has more than {MOST_PARTS} parts or {MOST_SCHEMA_CHARACTERS} characters"
            )
        return str(json_schema_to_gbnf(schema))
    except RequestError:
        raise
    except RecursionError:
        raise RequestError("the JSON schema nests too deeply") from None
    except Exception as error:  # the converter asserts, indexes and raises what it likes
        raise RequestError(f"the JSON schema cannot be made a grammar: {first_line(error)[:200]}") from None


def _schema_parts(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and all schemas within it."""
    if not isinstance(schema, dict):
        return
    yield schema
    for keyword, value in schema.items():
        if keyword in _NAMED and isinstance(value, dict):
            inner = list(value.values())
        elif keyword in _SEVERAL and isinstance(value, list):
            inner = value
        else:
            inner = [value] if keyword in _ONE else []
        for one in inner:
            yield from _schema_parts(one)


def _check_part(schema: dict[str, Any]) -> None:
    for keyword, value in schema.items():
        if keyword not in KNOWN:
            raise RequestError(f"the JSON schema's {keyword[:40]!r} cannot be held by a grammar here; leave it out")
        if any(need not in schema for need in _NEEDS.get(keyword, ())):
            raise RequestError(f"the JSON schema's {keyword!r} needs {' and '.join(_NEEDS[keyword])} beside it")
        if isinstance(value, int) and value > MOST_REPEATED:
            raise RequestError(f"the JSON schema's {keyword!r} is {value}; at most {MOST_REPEATED} can be held")
    if "pattern" in schema and schema.keys() & {"minLength", "maxLength", "format"}:
        raise RequestError("the JSON schema has a pattern and a length or format; a grammar here holds one of them")
    for counts in _QUANTIFIER.findall(str(schema.get("pattern", ""))):
        if any(int(count or 0) > MOST_REPEATED for count in counts):
            raise RequestError(f"the JSON schema's pattern repeats more than {MOST_REPEATED} times")


def _check_size(grammar: str) -> None:
    if len(grammar) > MOST_CHARACTERS or "\0" in grammar:
        raise RequestError(f"the grammar has a NUL or more than {MOST_CHARACTERS} characters")
    if grammar.count("(") + grammar.count("::=") > MOST_RULES:
        raise RequestError(f"the grammar has more than {MOST_RULES} rules and brackets")
