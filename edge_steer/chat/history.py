"""What was said in a conversation: messages of the user with the answers to them."""

from collections.abc import Sequence
from dataclasses import dataclass

from edge_steer.core.backend import Message


@dataclass(frozen=True)
class Exchange:
    """A message of the user and the answer to it."""

    question: str
    answer: str


def as_messages(system: str, exchanges: Sequence[Exchange]) -> list[Message]:
    """The messages of exchanges, oldest first, behind a system message; "" is none."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for exchange in exchanges:
        messages.append({"role": "user", "content": exchange.question})
        messages.append({"role": "assistant", "content": exchange.answer})
    return messages
