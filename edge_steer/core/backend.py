"""What every way of running a model offers: requests in, completions and logits out; and the states of answers.

`engine.Engine` (llama.cpp) and `reference.Reference` (PyTorch) are the two backends and the two recorders;
evaluation, parity and extraction are handed either and know no other. Token ids are the same in both: prompts are
tokenised once, by the caller.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NotRequired, Protocol, TypedDict

import numpy as np
import numpy.typing as npt

from edge_steer.core.errors import ModelError, RequestError
from edge_steer.core.sampling import GREEDY, Sampling
from edge_steer.core.steering import Offsets, Steering, steerings
from edge_steer.core.vector import Array, ModelIdentity

Tokens = tuple[int, ...]
Finish = Literal["stop", "length", "cancelled", "error"]
MAX_LOGPROBS = 100
NOW = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
MOST_SCALE = 1000  # of an adapter: NaN that overflow leaves in a KV cache would spoil later answers
PLAIN = "none"  # in place of a chat template: messages as plain text


KvType = Literal["f32", "f16", "q8_0"]
FlashAttention = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter that a model runs with: `scale` times what its file, or its folder of PEFT, says.

    digest: a SHA-256 of its weights. Errors: ModelError for a scale beyond MOST_SCALE, either way.
    """

    path: Path
    digest: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not abs(self.scale) <= MOST_SCALE:
            raise ModelError(f"an adapter's scale is {self.scale}; it must lie in -{MOST_SCALE}..{MOST_SCALE}")


@dataclass(frozen=True)
class EngineOptions:
    """How a model runs in llama.cpp.

    context: most positions of one sequence, None is what the model was trained for. parallel: sequences at once.
    threads: None is the cores this process may use. kv_type: of the KV cache. gpu_layers: to offload, -1 is all.
    keep_cache: go on with what earlier requests have cached, for speed; else answers depend on their own call alone.
    template: a Jinja chat template in place of the model's own, or PLAIN for the messages' plain text. date: as
    2024-07-26, for templates that write the date; None is today. lora: the adapter of requests that name none.
    loras: adapters that requests may name besides. Errors: RequestError for another date.
    """

    context: int | None = None
    parallel: int = 16
    threads: int | None = None
    kv_type: KvType = "f16"
    flash_attention: FlashAttention = "auto"
    gpu_layers: int = -1
    keep_cache: bool = False
    template: str | None = None
    date: str | None = None
    lora: Lora | None = None
    loras: tuple[Lora, ...] = ()

    def __post_init__(self) -> None:
        dated("", self.date)

    def described(self) -> dict[str, Any]:
        """The settings that change numbers, for headers; template, date and lora only where they were set."""
        unset = (name for name in ("template", "date", "lora") if getattr(self, name) is None)
        left_out = {"keep_cache", "loras", *unset}
        settings = {name: value for name, value in asdict(self).items() if name not in left_out}
        return settings | ({"lora": {"digest": self.lora.digest, "scale": self.lora.scale}} if self.lora else {})


def available_cores() -> int:
    """The number of cores this process may use; ggml slows tenfold when it has more threads than cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Message(TypedDict):
    role: str
    content: str
    name: NotRequired[str]


def plain_text(messages: Sequence[Message]) -> str:
    """The contents of the messages, a blank line between them."""
    return "\n\n".join(message["content"] for message in messages)


def dated(template: str, date: str | None) -> str:
    """A chat template that writes `date`, as 2024-07-26, where it wrote today's; itself for None.

    Its calls of strftime_now are replaced by their text, and date_string is set unless the caller sets it.
    Errors: RequestError for anything but a day.
    """
    if date is None:
        return template
    try:
        day = datetime.strptime(date, "%Y-%m-%d")
    except ValueError:
        raise RequestError(f"the date {date!r} is no day such as 2024-07-26") from None
    known = f"{{%- if date_string is not defined %}}{{%- set date_string = '{day:%d %b %Y}' %}}{{%- endif %}}"
    return known + NOW.sub(lambda call: repr(day.strftime(call[2])), template)


@dataclass(frozen=True)
class Request:
    """One prompt to continue. `stop` strings end the text and are not part of it; an end token ends it too.

    logprobs: None gives none, 0 those of the chosen tokens, k > 0 also those of the k likeliest tokens. loras: the
    adapters the model runs with, all of them those it was loaded with; () is none, None those of its options.
    """

    prompt: Tokens
    max_tokens: int = 512
    steering: tuple[Steering, ...] = ()
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    loras: tuple[Lora, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steering", steerings(self.steering))
        if not self.prompt:
            raise RequestError("the prompt is empty; it needs at least one token")
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens is {self.max_tokens}; it must be at least 1")
        if "" in self.stop:
            raise RequestError("a stop string is empty; leave it out")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise RequestError(f"logprobs is {self.logprobs}; it must lie in 0..{MAX_LOGPROBS}")


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities in nats at one position, from the (steered) model's own logits before any sampling.

    top: the likeliest tokens with theirs, best first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What one more token adds to a completion.

    text: what can be shown by now; "" while half a character or the beginning of a stop string is held back.
    token: None for the text that was held back and is shown at the end. logprobs: if the request asks for them.
    """

    text: str
    token: int | None
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class Timings:
    """What a completion took. prompt: seconds from the start of its prefill to its first token; generation: from there
    to its end. reused: prompt tokens that were taken from a cache."""

    prompt: float = 0.0
    generation: float = 0.0
    reused: int = 0


@dataclass(frozen=True)
class Completion:
    """What a request became. `tokens` leaves out the end token.

    finish: "stop" at an end token or stop string, "length" at max_tokens or the end of the context, "cancelled", or
    "error" if this request could not be served, which `error` says in one line. logprobs: one entry a token, if asked.
    ending: the end token with its log-probability, if those were asked and one ended the text.
    Two completions are equal whatever time they took.
    """

    text: str
    tokens: Tokens
    finish: Finish
    logprobs: tuple[TokenLogprobs, ...] = ()
    error: str = ""
    timings: Timings = field(default=Timings(), compare=False)
    ending: TokenLogprobs | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def seconds(self) -> float:
        """From the start of its prefill to its end."""
        return self.timings.prompt + self.timings.generation


OnText = Callable[[int, str], None]  # request index, new text
OnDone = Callable[[int, Completion], None]


@dataclass
class Recording:
    """The residual stream to record where logits are computed, after `layers` at `positions`, both rising.

    The backend fills in states: layer -> float32 (positions, hidden), whole once the last logits are asked for.
    """

    layers: Sequence[int]
    positions: Sequence[int]
    states: dict[int, Array] = field(default_factory=dict)


class Backend(Protocol):
    """One loaded model. Not thread-safe: one thread owns it."""

    @property
    def model(self) -> ModelIdentity: ...

    def check_steering(self, steering: Sequence[Steering]) -> None:
        """Errors: VectorError for a steering that does not fit, ModelError for a model that cannot be steered here."""

    def offsets(self, steering: Sequence[Steering]) -> Offsets | None:
        """What a request steered so adds to the residual stream; None for nothing. Errors: see `check_steering`."""

    def check_comparable(self, longest: int) -> None:
        """Errors: ModelError where llama.cpp computes otherwise than this model on texts of up to `longest` tokens."""

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

        A request that cannot be served, as a prompt longer than the context, ends with finish "error"; the others go
        on. Errors: VectorError before anything runs if a steering does not fit the model.
        """

    def logits(self, tokens: Sequence[int], prompt: int, steering: Sequence[Steering] = ()) -> npt.NDArray[np.float32]:
        """Teacher-forced logits, float32 (len(tokens) - prompt + 1, vocabulary).

        Row i belongs to position prompt - 1 + i; the first row chooses the first token after the prompt.
        `prompt` is the number of prompt tokens (at least 1), which phase "generated" needs to know.
        """

    def logit_rows(
        self, tokens: Sequence[int], prompt: int, steering: Sequence[Steering] = (), recording: Recording | None = None
    ) -> Iterator[Array]:
        """`logits` in pieces of consecutive rows, so that memory does not grow with the text.

        A piece is valid until the next is asked for; nothing else may be asked of the backend before the last.
        recording: the residual stream of the same pass, steering included. Errors: as of `record`.
        """

    def nll(self, tokens: Sequence[int], prompt: int, steering: Sequence[Steering] = ()) -> npt.NDArray[np.float64]:
        """Negative log-likelihood in nats of each token after the prompt: float64 (len(tokens) - prompt,)."""

    def record(
        self,
        tokens: Sequence[int],
        layers: Sequence[int],
        positions: Sequence[int] | None = None,
        *,
        prompt: int | None = None,
        steering: Sequence[Steering] = (),
    ) -> dict[int, Array]:
        """The residual stream after `layers`, steering included: layer -> float32 (positions, hidden).

        positions: None is all. prompt: number of prompt tokens, None is all of them. No later block is run.
        Errors: RequestError for tokens that do not fit or a position past them, VectorError for a missing layer.
        """


class SteppingEngine(Protocol):
    """A loaded model driven step by step: requests come and go while others are answered.

    One thread owns it and calls `step`, from which the callbacks come; any thread may submit, cancel and encode.
    """

    @property
    def model(self) -> ModelIdentity: ...

    @property
    def context(self) -> int:
        """The most positions of a sequence."""

    def check_steering(self, steering: Sequence[Steering]) -> None:
        """See Backend.check_steering."""

    def encode(self, text: str, *, start: bool = True) -> Tokens:
        """See Backend.encode."""

    def chat(self, messages: Sequence[Message]) -> Tokens:
        """See Backend.chat."""

    def decode(self, tokens: Sequence[int]) -> str:
        """See Backend.decode."""

    def submit(
        self,
        request: Request,
        *,
        on_piece: Callable[[Piece], object] | None = None,
        on_done: Callable[[Completion], object] | None = None,
        on_prefill: Callable[[int], object] | None = None,
        reuse: bool = True,
    ) -> int:
        """Queue a request; its ticket, by which it can be cancelled.

        on_piece takes the Piece of each token, on_done the Completion, on_prefill how many tokens of the prompt are
        there: first those that were cached, then after each batch. reuse: take over what is cached of the prompt.
        Errors: VectorError, ModelError as of `check_steering`.
        """

    def cancel(self, ticket: int) -> None:
        """End a request before its next token; it finishes as "cancelled"."""

    def step(self) -> bool:
        """Decode one token of every running request, then admit some that wait; whether there is more to do."""


@dataclass(frozen=True)
class SharedPrompt:
    """A prompt, which may be empty, and answers to it. averaged: how many of each answer's last tokens are averaged."""

    prompt: Tokens
    answers: tuple[Tokens, ...]
    averaged: tuple[int, ...]

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest answer."""
        return len(self.prompt) + max(map(len, self.answers))

    @property
    def total(self) -> int:
        """Tokens of the prompt and all answers."""
        return len(self.prompt) + sum(map(len, self.answers))


OnStates = Callable[[int, Array], None]  # index of a prompt, its states: float32 (layers, answers, hidden)


class Recorder(Protocol):
    """One loaded model whose residual stream is read, unsteered. Not thread-safe: one thread owns it."""

    @property
    def model(self) -> ModelIdentity: ...

    @property
    def context(self) -> int:
        """The most positions of a sequence."""

    def encode(self, text: str, *, start: bool = True) -> Tokens:
        """See Backend.encode."""

    def chat(self, messages: Sequence[Message]) -> Tokens:
        """See Backend.chat."""

    def answer_states(
        self, prompts: Sequence[SharedPrompt], layers: Sequence[int], take: OnStates, *, batch_tokens: int = 1024
    ) -> None:
        """The mean residual stream of each answer's last tokens, behind its prompt, at `layers` (rising).

        `take` is called for each prompt, in any order. batch_tokens: tokens run at once, about.
        Errors: VectorError for a layer the model has not.
        """
