"""A JSON schema as a grammar, by the converter of llama-cpp-python.

The converter leaves out what it does not know, and makes text as long as a schema asks for. So a schema is first held
against what it does know, and against bounds: an answer obeys all of its schema or is refused.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from llama_cpp.llama_grammar import json_schema_to_gbnf

from edge_steer.core.errors import RequestError, first_line

MOST_CHARACTERS = 2**16
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


def grammar_of(schema: str) -> str:
    """GBNF of a JSON schema, given as text. Errors: RequestError for one that cannot be held, which says why."""
    try:
        parts = list(_parts(json.loads(schema)))
        for part in parts:
            _check(part)
        if len(parts) > MOST_PARTS or len(schema) > MOST_CHARACTERS:
            raise RequestError(f"the JSON schema has more than {MOST_PARTS} parts or {MOST_CHARACTERS} characters")
        return str(json_schema_to_gbnf(schema))
    except RequestError:
        raise
    except RecursionError:
        raise RequestError("the JSON schema nests too deeply") from None
    except Exception as error:  # the converter asserts, indexes and raises what it likes
        raise RequestError(f"the JSON schema cannot be made a grammar: {first_line(error)[:200]}") from None


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
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
            yield from _parts(one)


def _check(schema: dict[str, Any]) -> None:
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
