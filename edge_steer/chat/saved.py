"""The file of a conversation: messages, what steers them, and how tokens are chosen.

Takes a path, gives checked values. It loads no vector.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from edge_steer.chat.history import Exchange
from edge_steer.core.errors import EdgeSteerError, RequestError
from edge_steer.core.sampling import Sampling
from edge_steer.core.vector import Phase
from edge_steer.storage.files import readable
from edge_steer.vectors.named import Applied

Role = Literal["system", "user", "assistant"]
FORMAT: Literal["edge-steer conversation 1"] = "edge-steer conversation 1"


@dataclass(frozen=True)
class SavedMessage:
    role: Role
    content: str


@dataclass(frozen=True)
class SavedSteering:
    name: str
    digest: str
    strength: float
    layers: tuple[int, ...]
    phase: Phase

    @classmethod
    def of(cls, applied: Applied) -> "SavedSteering":
        one = applied.steering
        return cls(applied.name, one.vector.digest, one.strength, one.layers or (), one.phase)


@dataclass(frozen=True)
class SavedConversation:
    """The file of a conversation. model: whose it was, which another one may go on with."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    format: Literal["edge-steer conversation 1"]
    model: str
    messages: tuple[SavedMessage, ...]
    steering: tuple[SavedSteering, ...]
    sampling: Sampling
    max_tokens: Annotated[int, Field(ge=1)]

    def history(self, path: str | Path) -> tuple[str, list[Exchange]]:
        """The system message and the exchanges. Errors: EdgeSteerError unless user and assistant take turns."""
        messages = list(self.messages)
        system = messages.pop(0).content if messages and messages[0].role == "system" else ""
        if [message.role for message in messages] != ["user", "assistant"] * (len(messages) // 2):
            raise EdgeSteerError(f"{path} is no saved conversation: user and assistant do not take turns")
        pairs = zip(messages[::2], messages[1::2], strict=True)
        return system, [Exchange(question.content, answer.content) for question, answer in pairs]


def read_saved(path: str | Path) -> SavedConversation:
    """The file of a conversation. Errors: EdgeSteerError, one line."""
    text = readable(path, "a saved conversation").read_bytes()
    try:
        return TypeAdapter(SavedConversation).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        where = f"{place}: " if place else ""
        raise EdgeSteerError(f"{path} is no saved conversation: {where}{first['msg']}") from None
    except RequestError as error:
        raise EdgeSteerError(f"{path} is no saved conversation: {error}") from None
