"""What llama.cpp and PyTorch do alike with a loaded model: a question asked, a text scored, tokens checked.

A runtime gives tokens, completions and rows of logits in its own way; the rest follows from them here. It knows
neither runtime.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Self

import numpy as np
import numpy.typing as npt

from edge_steer.core.backend import (
    Completion,
    Message,
    OnDone,
    OnText,
    Recording,
    Request,
    Tokens,
)
from edge_steer.core.errors import RequestError, VectorError
from edge_steer.core.sampling import GREEDY, Sampling
from edge_steer.core.stats import logsumexp
from edge_steer.core.steering import Offsets, Steer, Steering, steerings
from edge_steer.core.vector import Array, ModelIdentity


class Runtime(ABC):
    """One loaded model. `context` is the most positions of a sequence."""

    context: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Free the model."""

    @property
    @abstractmethod
    def model(self) -> ModelIdentity: ...

    @property
    @abstractmethod
    def vocab_size(self) -> int: ...

    @property
    @abstractmethod
    def delimiters(self) -> Tokens:
        """Every token whose text holds a blank line."""

    @abstractmethod
    def chat(self, messages: Sequence[Message]) -> Tokens: ...

    @abstractmethod
    def generate(
        self, requests: Sequence[Request], on_text: OnText | None = None, on_done: OnDone | None = None
    ) -> list[Completion]: ...

    @abstractmethod
    def logit_rows(
        self, tokens: Sequence[int], prompt: int, steering: Sequence[Steering] = (), recording: Recording | None = None
    ) -> Iterator[Array]: ...

    def ask(
        self,
        question: str,
        steer: Steer = None,
        *,
        system: str | None = None,
        max_tokens: int = 512,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        """Answer one question in the model's chat template; `str(completion)` is the text.

        steer: a vector, a Steering, a list of them, or None. on_text is called with each new piece of text.
        Errors: RequestError if the question cannot be served, VectorError for a steering that does not fit.
        """
        messages: list[Message] = [{"role": "user", "content": question}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        request = Request(self.chat(messages), max_tokens, steerings(steer), sampling, tuple(stop))
        show = None if on_text is None else lambda _index, text: on_text(text)
        [completion] = self.generate([request], on_text=show)
        if completion.finish == "error":
            raise RequestError(completion.error)
        return completion

    def logits(self, tokens: Sequence[int], prompt: int, steering: Sequence[Steering] = ()) -> npt.NDArray[np.float32]:
        """See Backend.logits."""
        result = np.empty((max(0, len(tokens) - prompt + 1), self.vocab_size), dtype=np.float32)
        first = 0
        for rows in self.logit_rows(tokens, prompt, steering):
            result[first : first + len(rows)] = rows
            first += len(rows)
        return result

    def nll(self, tokens: Sequence[int], prompt: int, steering: Sequence[Steering] = ()) -> npt.NDArray[np.float64]:
        """See Backend.nll."""
        return self.score(tokens, prompt, steering)[0]

    def score(
        self, tokens: Sequence[int], prompt: int, steering: Sequence[Steering] = ()
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """`nll`, and for each token after the prompt whether it is the likeliest one."""
        nll, greedy = [np.empty(0)], [np.empty(0, dtype=np.bool_)]
        first = prompt
        for rows in self.logit_rows(tokens, prompt, steering):
            chosen = np.asarray(tokens[first : first + len(rows)], dtype=np.int64)
            first += len(rows)
            rows = rows[: len(chosen)]
            nll.append(self.log_sum(rows) - rows[np.arange(len(chosen)), chosen])
            greedy.append(rows.argmax(axis=1) == chosen)
        return np.concatenate(nll), np.concatenate(greedy)

    def log_sum(self, logits: Array) -> npt.NDArray[np.float64]:
        """log(sum(exp(logits))) of each row, as exact as this runtime's logits deserve."""
        return logsumexp(logits)

    def offsets(self, steering: Sequence[Steering]) -> Offsets | None:
        """What such a request adds to the residual stream; None for nothing.

        Errors: VectorError for a steering that does not fit, or phase "delimiter" of a model without delimiters.
        """
        offsets = Offsets.of(steering, self.model)
        if offsets is None or offsets.phase != "delimiter":
            return offsets
        if not self.delimiters:
            raise VectorError(
                f"no token of {self.model.name} holds a blank line; phase 'delimiter' would steer nothing"
            )
        return replace(offsets, delimiters=self.delimiters)

    def check_text(self, tokens: Sequence[int], prompt: int) -> None:
        """Errors: RequestError unless 1 <= prompt <= tokens <= context and each token is in the vocabulary."""
        if not 1 <= prompt <= len(tokens) <= self.context:
            raise RequestError(
                f"{len(tokens)} tokens with a prompt of {prompt}; need 1 <= prompt <= tokens <= {self.context}"
            )
        if unknown := self._unknown_token(tokens):
            raise RequestError(unknown)

    def check_positions(self, positions: Sequence[int], tokens: Sequence[int]) -> None:
        """Errors: RequestError for a position that the tokens do not have."""
        if beyond := [position for position in positions if not 0 <= position < len(tokens)]:
            raise RequestError(f"position {beyond[0]} asked; the tokens have positions 0-{len(tokens) - 1}")

    def check_recording(self, recording: Recording, tokens: Sequence[int]) -> None:
        """Errors: VectorError for a layer that is not there, RequestError for a position past the tokens."""
        self.model.check_layers(recording.layers)
        self.check_positions(recording.positions, tokens)

    def refusal(self, request: Request) -> str:
        """Why the request cannot be served; "" if it can."""
        if len(request.prompt) >= self.context:
            return (
                f"the prompt has {len(request.prompt)} tokens; the context holds {self.context} and needs room for an "
                "answer; shorten it or ask for a larger context"
            )
        return self._unknown_token(request.prompt)

    def room(self, request: Request) -> int:
        """How many tokens the request may become: max_tokens, or what the context leaves."""
        return min(request.max_tokens, self.context - len(request.prompt))

    def _unknown_token(self, tokens: Sequence[int]) -> str:
        unknown = [token for token in tokens if not 0 <= token < self.vocab_size]
        return f"token {unknown[0]} is not in the vocabulary of {self.vocab_size}" if unknown else ""
