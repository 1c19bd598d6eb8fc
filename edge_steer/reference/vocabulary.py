"""A vocabulary of a PyTorch model: text to tokens and back, conversations by a chat template, where texts end.

Takes text and messages, gives token ids. `HubVocabulary` is that of a Hugging Face folder; another can be handed to a
Reference in its place. It runs no model.
"""

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, Protocol

from edge_steer.core.backend import PLAIN, Message, Tokens, dated, plain_text
from edge_steer.core.errors import ModelError, first_line


class Vocabulary(Protocol):
    """What a Reference asks of a vocabulary."""

    @property
    def end_tokens(self) -> Collection[int]:
        """Every token that ends a generation."""

    @property
    def delimiters(self) -> Tokens:
        """Every token whose text holds a blank line."""

    @property
    def other_template(self) -> str | None:
        """The chat template in place of the model's own, if there is one; see EngineOptions."""

    @property
    def date(self) -> str | None:
        """What the chat template takes for today, if it was set; see EngineOptions."""

    def tokenize(self, text: str, *, add_special: bool) -> Tokens:
        """Token ids, special tokens parsed; `add_special` adds a BOS where the model wants one, never a second."""

    def chat(self, messages: Sequence[Message]) -> Tokens:
        """See Backend.chat. Errors: ModelError if there is no chat template or it refuses the messages."""

    def text(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens; special tokens give no text."""

    def close(self) -> None:
        """Free what it holds."""


class HubVocabulary:
    """The vocabulary of a Hugging Face tokenizer."""

    def __init__(
        self,
        tokenizer: Any,
        end_tokens: Collection[int],
        name: str,
        template: str | None = None,
        date: str | None = None,
    ) -> None:
        """name: of the model, for errors. template, date: as EngineOptions has them."""
        self.end_tokens = end_tokens
        self.other_template, self.date = template, date
        self._tokenizer, self._name = tokenizer, name
        bos: int | None = tokenizer.bos_token_id
        self._bos = bos if bos is not None and tokenizer("").input_ids[:1] == [bos] else None

    def tokenize(self, text: str, *, add_special: bool) -> Tokens:
        tokens = tuple(self._tokenizer(text, add_special_tokens=False).input_ids)
        if not add_special or self._bos is None or tokens[:1] == (self._bos,):
            return tokens
        return (self._bos, *tokens)

    @cached_property
    def delimiters(self) -> Tokens:
        tokens = [[token] for token in range(len(self._tokenizer))]
        texts = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return tuple(token for token, text in enumerate(texts) if "\n\n" in text)

    def chat(self, messages: Sequence[Message]) -> Tokens:
        if self.other_template == PLAIN:
            return self.tokenize(plain_text(messages), add_special=True)
        template = self.other_template or self._tokenizer.chat_template
        if not template:
            raise ModelError(f"{self._name} has no chat template; give one, or ask in plain text")
        try:
            ids = self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=dated(self._tokenizer.get_chat_template(self.other_template), self.date),
                add_generation_prompt=True,
                return_dict=False,
            )
        except Exception as error:  # a template is a program of its own and raises what it likes
            raise ModelError(
                f"the chat template of {self._name} refuses these messages: {first_line(error)}"
            ) from error
        return tuple(ids)

    def text(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def close(self) -> None:
        pass


def named_end_tokens(*holders: object) -> frozenset[int]:
    """Every token that any of a model's files calls an end token, as llama.cpp's converter takes them."""
    ends: set[int] = set()
    for holder in holders:
        named = getattr(holder, "eos_token_id", None)
        ends.update(named if isinstance(named, list) else [] if named is None else [named])
    return frozenset(ends)
