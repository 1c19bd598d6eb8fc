"""What every way of running a model offers: requests in, completions and logits out.

`engine.Engine` (llama.cpp) and `reference.Reference` (PyTorch) are the two backends; evaluation and parity are
handed either and know no other. Token ids are the same in both: prompts are tokenised once, by the caller.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, Protocol, TypedDict

import numpy as np
import numpy.typing as npt

from edge_steer.errors import RequestError
from edge_steer.vector import ModelIdentity, Steering

Tokens = tuple[int, ...]


class Message(TypedDict):
    role: str
    content: str
    name: NotRequired[str]


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. Temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1 and 0 <= self.min_p <= 1):
            raise RequestError(f"{self}: need temperature >= 0, top_k >= 0, 0 < top_p <= 1, 0 <= min_p <= 1")
        if not 0 <= self.seed < 2**32:
            raise RequestError(f"seed is {self.seed}; it must lie in 0..{2**32 - 1}")


GREEDY = Sampling()


@dataclass(frozen=True)
class Request:
    """One prompt to continue. `stop` strings end the text and are not part of it; an end token ends it too."""

    prompt: Tokens
    max_tokens: int = 512
    steering: tuple[Steering, ...] = ()
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompt:
            raise RequestError("the prompt is empty; it needs at least one token")
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens is {self.max_tokens}; it must be at least 1")
        if "" in self.stop:
            raise RequestError("a stop string is empty; leave it out")


@dataclass(frozen=True)
class Completion:
    """What a request became. `tokens` leaves out the end token; finish is "length" if max_tokens ended it."""

    text: str
    tokens: Tokens
    finish: Literal["stop", "length"]


OnText = Callable[[int, str], None]  # request index, new text
OnDone = Callable[[int, Completion], None]


class Backend(Protocol):
    """One loaded model. Not thread-safe: one thread owns it."""

    @property
    def model(self) -> ModelIdentity: ...

    def encode(self, text: str, *, start: bool = True) -> Tokens:
        """Token ids of `text`, special tokens parsed; at a `start` a BOS comes first exactly if the model wants one."""

    def chat(self, messages: Sequence[Message]) -> Tokens:
        """Token ids of a conversation in the model's own chat template, ready for the assistant's turn."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens; special tokens give no text."""

    def generate(
        self, requests: Sequence[Request], on_text: OnText | None = None, on_done: OnDone | None = None
    ) -> list[Completion]:
        """Continue every request, batched; completions come in the order of the requests.

        Errors: RequestError before anything runs if a prompt does not fit, VectorError if a steering does not.
        """

    def logits(self, tokens: Sequence[int], prompt: int, steering: Sequence[Steering] = ()) -> npt.NDArray[np.float32]:
        """Teacher-forced logits, float32 (len(tokens) - prompt + 1, vocabulary).

        Row i belongs to position prompt - 1 + i; the first row chooses the first token after the prompt.
        `prompt` is the number of prompt tokens (at least 1), which phase "generated" needs to know.
        """

    def nll(self, tokens: Sequence[int], prompt: int, steering: Sequence[Steering] = ()) -> npt.NDArray[np.float64]:
        """Negative log-likelihood in nats of each token after the prompt: float64 (len(tokens) - prompt,)."""
