"""What a conversation needs of an engine: requests that can be cancelled while it steps."""

from collections.abc import Callable, Sequence
from typing import Protocol

from edge_steer.core.backend import Completion, Message, Piece, Request, Tokens
from edge_steer.core.steering import Steering
from edge_steer.core.vector import ModelIdentity


class ChatEngine(Protocol):
    """An engine in this thread; one that keeps its cache computes only what is new in each turn."""

    context: int

    @property
    def model(self) -> ModelIdentity: ...

    def check_steering(self, steering: Sequence[Steering]) -> None: ...

    def chat(self, messages: Sequence[Message]) -> Tokens: ...

    def submit(
        self,
        request: Request,
        *,
        on_piece: Callable[[Piece], object] | None = None,
        on_done: Callable[[Completion], object] | None = None,
    ) -> int: ...

    def cancel(self, ticket: int) -> None: ...

    def step(self) -> bool: ...
