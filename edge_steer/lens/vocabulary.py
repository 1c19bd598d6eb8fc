"""The text of each token, from a GGUF or from tokenizer.json.

Takes what the files say, gives texts as a person reads them: bytes of a byte-level vocabulary decoded, the mark of a
word's beginning as a space. It tokenises nothing.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edge_steer.core.errors import ModelError
from edge_steer.storage.files import readable
from edge_steer.storage.gguf_header import Header

TOKENS, TYPES, KIND = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.model"
WHOLE = (TOKENS, TYPES)  # keys whose arrays `read_header` must read whole
UNUSED = "<unused>"
_TEXTLESS = (2, 3, 5)  # enum llama_token_type: unknown, control, unused
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Vocabulary:
    """texts: of each token. special: tokens that are no text, control tokens and unused rows."""

    texts: tuple[str, ...]
    special: frozenset[int]

    def __len__(self) -> int:
        return len(self.texts)

    def padded(self, rows: int) -> "Vocabulary":
        """The vocabulary of so many rows: those past its last token are unused, and rows it lacks are left out."""
        unused = range(len(self), rows)
        texts = (*self.texts[:rows], *(UNUSED for _ in unused))
        return Vocabulary(texts, frozenset(self.special | set(unused)))


def of_gguf(path: Path, header: Header) -> Vocabulary:
    """The vocabulary of a GGUF file whose header was read with WHOLE. Errors: ModelError for a file without one."""
    tokens, types = header.metadata.get(TOKENS), header.metadata.get(TYPES, ())
    if not isinstance(tokens, tuple) or not isinstance(types, tuple):
        raise ModelError(f"{path} holds no vocabulary")
    byte_level = header.metadata.get(KIND) == "gpt2"
    special = {token for token, kind in enumerate(types) if kind in _TEXTLESS}
    texts = (_text(str(text), byte_level and token not in special) for token, text in enumerate(tokens))
    return Vocabulary(tuple(texts), frozenset(special))


def of_tokenizer_json(folder: Path) -> Vocabulary:
    """The vocabulary of a Hugging Face folder. Errors: ModelError for a tokenizer.json that is damaged or missing."""
    path = readable(folder / "tokenizer.json", "a tokenizer.json")
    try:
        content = json.loads(path.read_text("utf-8"))
        listed = content["model"]["vocab"]
        by_id = (
            {int(token): text for text, token in listed.items()}
            if isinstance(listed, dict)
            else {token: text for token, (text, _) in enumerate(listed)}
        )
        added = {int(token["id"]): token for token in content.get("added_tokens") or ()}
        special = {token for token, entry in added.items() if entry["special"]}
        as_they_are = {token: str(entry["content"]) for token, entry in added.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is no tokenizer.json that can be read: {error!r}") from None
    byte_level = '"ByteLevel"' in json.dumps([content.get("decoder"), content.get("pre_tokenizer")])
    count = max([*by_id, *as_they_are], default=-1) + 1
    special |= set(range(count)) - by_id.keys() - as_they_are.keys()
    texts = [as_they_are.get(token, _text(by_id.get(token, UNUSED), byte_level)) for token in range(count)]
    return Vocabulary(tuple(texts), frozenset(special))


def quoted(text: str) -> str:
    """A token's text as a JSON string in one line, what cannot be seen escaped: a space stays, a line break is \\n."""
    return "".join(
        character if character.isprintable() else json.dumps(character)[1:-1]
        for character in json.dumps(text, ensure_ascii=False)
    )


def _text(written: str, byte_level: bool) -> str:
    """What a token of a file adds to a text; half a character is shown as U+FFFD."""
    if byte_level:
        known = _bytes_of_characters()
        if all(character in known for character in written):
            return bytes(known[character] for character in written).decode(errors="replace")
        return written
    if match := _BYTE.fullmatch(written):
        return bytes([int(match[1], 16)]).decode(errors="replace")
    return written.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")


@cache
def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's printable stand-in of each byte -> the byte."""
    printable: Sequence[int] = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
