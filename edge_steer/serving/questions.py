"""From checked bodies to what the engine answers: prompts as tokens, sampling, steering.

`Service` is what every endpoint shares. It knows the engine and the vectors, and no shape of an answer.
"""

import asyncio
import json
import math
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
from starlette.requests import Request as HttpRequest

from edge_steer.adapters.choice import NumberedLoras, listed
from edge_steer.core.backend import Completion, Lora, Message, Request, TokenLogprobs, Tokens
from edge_steer.core.errors import RequestError
from edge_steer.core.sampling import BREAKERS, LINKS, MOST_SEED, Dry, Link, Mirostat, Sampling, Xtc
from edge_steer.core.stats import logsumexp
from edge_steer.core.vector import Array
from edge_steer.models.file import ModelFile
from edge_steer.serving.bodies import (
    B,
    Bias,
    Conversation,
    EasySteering,
    Generating,
    PromptString,
    ResponseFormat,
    Steered,
    check,
    check_fields,
)
from edge_steer.serving.metrics import Metrics
from edge_steer.serving.replies import ApiError, Json, too_long
from edge_steer.serving.security import Access, read_body
from edge_steer.serving.worker import Answers, Event, ServedEngine, Wishes, Worker
from edge_steer.vectors.named import Applied, NamedVectors, Term, parse_words, read_layers

T = TypeVar("T")
MOST_PROMPTS = 1000
LONG = 10_000  # characters; a thread takes longer to ask than a shorter text to tokenise
TINY = 1e-9  # a share that leaves one token, where a client says 0
LINK_NAMES: dict[str, Link] = {"typ_p": "typical_p", **{link: link for link in LINKS}}
Prompt = str | PromptString | Sequence[int | str]


@dataclass(frozen=True)
class Question:
    """What one body asks: each prompt `n` times, in that order, and the steering it gets.

    progress: that of the prompts is part of a stream. reuse: what is cached of the prompts is taken over.
    """

    requests: tuple[Request, ...]
    n: int
    applied: tuple[Applied, ...]
    model: str
    generates: bool = True
    progress: bool = False
    reuse: bool = True

    @property
    def loras(self) -> tuple[Lora, ...] | None:
        """The adapters of all requests."""
        return self.requests[0].loras

    @property
    def in_force(self) -> Json:
        """As every answer tells it."""
        return in_force(self.applied, self.loras)

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts, each counted once."""
        return sum(len(request.prompt) for request in self.requests[:: self.n])


class Service:
    """A running engine with its vectors and names. names: the model's own first; others mean the same model."""

    def __init__(
        self,
        engine: ServedEngine,
        vectors: NamedVectors,
        names: Sequence[str],
        access: Access,
        *,
        queue: int,
        defaults: Mapping[str, float],
        loras: Sequence[Lora] = (),
    ) -> None:
        """queue: how many requests may wait besides those that run. defaults: fields of requests that say nothing.
        loras: the adapters that the engine was loaded with, for requests to choose from.

        Errors: ApiError for a default that no request could have.
        """
        self._defaults = check_fields(Generating, defaults).model_dump(exclude_unset=True)
        self.engine, self.vectors, self.names, self.access = engine, vectors, tuple(names), access
        self.file = ModelFile(engine.vocabulary.path)
        self.loras = NumberedLoras(loras)
        self.metrics = Metrics()
        self.worker = Worker(engine, queue, self.metrics.count)

    async def read(self, request: HttpRequest, body: type[B]) -> B:
        """The checked body of a request. Errors: ApiError."""
        return self.with_defaults(check(body, await read_body(request, self.access)))

    def with_defaults(self, body: B) -> B:
        """The body, with the server's own defaults for the sampling fields that it does not say."""
        if not isinstance(body, Generating):
            return body
        unsaid = {name: value for name, value in self._defaults.items() if name not in body.model_fields_set}
        return body.model_copy(update=unsaid)

    @property
    def models(self) -> dict[str, str | None]:
        """The models that clients see, each with its preset; None is the model as it is."""
        presets = {f"{self.names[0]}+{preset}": preset for preset in self.vectors.presets}
        return {**dict.fromkeys(self.names), **presets}

    def preset(self, model: str) -> str | None:
        """The preset that a model's name means. Errors: ApiError 404 for a name that is not there."""
        model = model or self.names[0]
        if model not in self.models:
            raise ApiError(404, f"no model '{model[:80]}' here; there are: {', '.join(self.models)}")
        return self.models[model]

    def steering(self, body: Steered) -> tuple[Applied, ...]:
        """What the body asks for; else its preset's; else the server's default. Errors: VectorError."""
        preset = self.preset(body.model)
        if body.control_vectors is not None:
            return self.vectors.apply(
                Term(one.name, one.scale, read_layers(one.layers), one.phase) for one in body.control_vectors
            )
        if isinstance(body.steering, EasySteering):
            return self.vectors.apply(
                Term(one.name, one.scale, read_layers(one.layers), "all") for one in body.steering.vectors
            )
        if body.steering is not None:
            return self.vectors.apply(parse_words(body.steering))
        return self.vectors.default if preset is None else self.vectors.presets[preset]

    def chosen_loras(self, body: Steered) -> tuple[Lora, ...] | None:
        """The adapters that the body asks for; else the server's default, which None leaves to the engine.

        Errors: ModelError for a number that is not there.
        """
        if body.lora is None:
            return self.loras.default if self.loras else None
        return self.loras.scaled((one.id, one.scale) for one in body.lora)

    async def question(
        self, body: Generating, prompts: Sequence[Tokens], *, logprobs: int | None, schema: dict[str, Any] | None
    ) -> Question:
        """The body's requests for these prompts. Errors: ApiError, or an EdgeSteerError for what does not fit."""
        applied, loras = self.steering(body), self.chosen_loras(body)
        if len(prompts) * body.n > MOST_PROMPTS:
            raise ApiError(400, f"{len(prompts) * body.n} answers asked; one request takes at most {MOST_PROMPTS}")
        if body.max_tokens == 0 and (body.grammar or schema is not None):
            raise ApiError(400, "an answer without tokens obeys no grammar; ask for some tokens or for no grammar")
        sampling = self._sampling(body, schema)
        steering = tuple(one.steering for one in applied)
        requests = []
        for prompt in prompts:
            self.check_prompt(prompt)
            room = self.engine.context - len(prompt)
            length = room if body.max_tokens < 0 else max(1, min(body.max_tokens, room))
            request = Request(prompt, length, steering, sampling, tuple(body.stop), logprobs, loras)
            requests += [_reseeded(request, i) for i in range(body.n)]
        name = body.model or self.names[0]
        return Question(
            tuple(requests),
            body.n,
            applied,
            name,
            generates=body.max_tokens != 0,
            progress=body.return_progress,
            reuse=body.cache_prompt,
        )

    def check_prompt(self, prompt: Tokens) -> None:
        """Errors: ApiError for an empty prompt, one that leaves no room, or a token that is not there."""
        if not prompt:
            raise ApiError(400, "the prompt is empty; it needs at least one token")
        if len(prompt) >= self.engine.context:
            raise too_long(len(prompt), self.engine.context)
        self.check_tokens(prompt)

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Errors: ApiError for a token that is not there."""
        if strange := [token for token in tokens if not 0 <= token < self.engine.vocab_size]:
            raise ApiError(400, f"token {strange[0]} is not in the vocabulary of {self.engine.vocab_size}")

    async def events(self, question: Question, *, streams: bool) -> AsyncIterator[Event]:
        """What each request brings, as it comes; whoever stops reading ends them. Errors: ApiError."""
        if not question.generates:
            for index in range(len(question.requests)):
                yield index, Completion("", (), "length")
            return
        wishes = Wishes(streams, question.progress and streams, question.reuse)
        answers = Answers(self.worker, question.requests, wishes)
        try:
            async for event in answers.events():
                yield event
        finally:
            answers.close()

    async def completions(self, question: Question) -> list[Completion]:
        """All completions, in the order of the question's requests. Errors: ApiError."""
        ended = {index: event async for index, event in self.events(question, streams=False)}
        return [completion for _, completion in sorted(ended.items()) if isinstance(completion, Completion)]

    async def scored(
        self, tokens: Tokens, applied: Sequence[Applied], loras: Sequence[Lora] | None, top: int, *, prompt: int = 1
    ) -> list[TokenLogprobs]:
        """The logprobs of each token after the first `prompt`, and of the likeliest token after the last.

        Steering of phase "generated" is in force from there on: all that is scored counts as generated.
        """
        steering = [one.steering for one in applied]

        def score() -> list[TokenLogprobs]:
            chosen = iter((*tokens[prompt:], None))
            rows = (row for rows in self.engine.logit_rows(tokens, prompt, steering, loras=loras) for row in rows)
            return [_logprobs(row, token, top) for row, token in zip(rows, chosen, strict=True)]

        return cast("list[TokenLogprobs]", await self.worker.alone(score))

    async def prompts(self, prompt: Prompt | Sequence[Prompt]) -> list[Tokens]:
        """A prompt or several: a text, token ids, both mixed, or a list of those. Errors: ApiError."""
        if isinstance(prompt, str | PromptString) or any(isinstance(part, int) for part in prompt):
            several: list[Prompt] = [cast("Prompt", prompt)]
        else:
            several = list(cast("Sequence[Prompt]", prompt))
        if not several:
            raise ApiError(400, "the prompt is empty; it needs at least one token")
        if len(several) > MOST_PROMPTS:
            raise ApiError(400, f"{len(several)} prompts; one request takes at most {MOST_PROMPTS}")
        plain = [one.prompt_string if isinstance(one, PromptString) else one for one in several]
        return await in_thread(lambda: [self._tokens(one) for one in plain], sum(map(len, plain)))

    async def chat_prompt(self, conversation: Conversation) -> str:
        """The conversation in the model's chat template. Errors: ModelError if the template refuses it."""
        messages = cast("list[Message]", [message.plain() for message in conversation.messages])
        return await in_thread(
            lambda: self.engine.vocabulary.conversation(
                messages, answer=not conversation.continues, variables=conversation.variables
            ),
            sum(len(message["content"]) for message in messages),
        )

    async def chat_tokens(self, conversation: Conversation) -> Tokens:
        text = await self.chat_prompt(conversation)
        return await in_thread(lambda: self.engine.encode(text, start=False), len(text))

    def _tokens(self, prompt: str | Sequence[int | str]) -> Tokens:
        if isinstance(prompt, str):
            return self.engine.encode(prompt)
        tokens: list[int] = []
        for part in prompt:
            tokens += self.engine.encode(part, start=not tokens) if isinstance(part, str) else (part,)
        return tuple(tokens)

    def _sampling(self, body: Generating, schema: dict[str, Any] | None) -> Sampling:
        if body.grammar and schema is not None:
            raise RequestError("a grammar and a JSON schema are both given; give one of them")
        last_n = self.engine.context if body.repeat_last_n < 0 else body.repeat_last_n
        return Sampling(
            temperature=body.temperature,
            top_k=max(0, body.top_k),
            top_p=min(1.0, max(TINY, body.top_p)),
            min_p=body.min_p,
            seed=random.randint(0, MOST_SEED - 1) if body.seed in (-1, MOST_SEED) else body.seed,
            repeat_penalty=body.repeat_penalty,
            frequency_penalty=body.frequency_penalty,
            presence_penalty=body.presence_penalty,
            repeat_last_n=last_n,
            typical_p=min(1.0, max(TINY, body.typical_p)),
            top_n_sigma=max(0.0, body.top_n_sigma),
            dynamic_range=body.dynatemp_range,
            dynamic_exponent=body.dynatemp_exponent,
            min_keep=body.min_keep,
            dry=self._dry(body),
            xtc=Xtc(body.xtc_probability, body.xtc_threshold) if body.xtc_probability else None,
            mirostat=Mirostat(body.mirostat, body.mirostat_tau, body.mirostat_eta) if body.mirostat else None,
            logit_bias=self._logit_bias(body),
            grammar=body.grammar,
            json_schema="" if schema is None else json.dumps(schema),
            order=LINKS if body.samplers is None else tuple(map(_link, body.samplers)),
        )

    def _dry(self, body: Generating) -> Dry | None:
        if not body.dry_multiplier:
            return None
        last_n = self.engine.context if body.dry_penalty_last_n < 0 else body.dry_penalty_last_n
        breakers = BREAKERS if body.dry_sequence_breakers is None else tuple(body.dry_sequence_breakers)
        return Dry(body.dry_multiplier, body.dry_base, body.dry_allowed_length, last_n, breakers)

    def _logit_bias(self, body: Generating) -> tuple[tuple[int, float], ...]:
        """Biases by token id or by text, of which each token gets it; false forbids a token."""
        given: Sequence[Bias] = (
            [[key, bias] for key, bias in body.logit_bias.items()]
            if isinstance(body.logit_bias, dict)
            else body.logit_bias
        )
        biases: list[tuple[int, float]] = []
        for key, bias in given:
            if isinstance(bias, str) or bias is True or isinstance(key, float | bool):
                raise RequestError("a logit_bias is [token id or text, number or false]")
            number = -math.inf if bias is False else float(bias)
            by_id = isinstance(key, int) or (isinstance(body.logit_bias, dict) and key.lstrip("-").isdigit())
            tokens = (int(key),) if by_id else self.engine.encode(str(key), start=False)
            biases += [(token, number) for token in tokens]
        if body.ignore_eos:
            biases += [(token, -math.inf) for token in self.engine.vocabulary.end_tokens]
        return tuple(biases)


def in_force(applied: Sequence[Applied], loras: Sequence[Lora] | None) -> Json:
    """The steering, and the adapters where there are any, as answers tell them."""
    steering: Json = {"steering": [one.json() for one in applied]}
    return {**steering, "lora": listed(loras)} if loras else steering


def schema_of(body: Generating, format_: ResponseFormat | None = None) -> dict[str, Any] | None:
    """The schema that an answer has to obey. Errors: ApiError for two."""
    demanded = format_.demanded if format_ else None
    if demanded is not None and body.json_schema is not None:
        raise ApiError(400, "'json_schema' and 'response_format' are both given; give one of them")
    return body.json_schema if demanded is None else demanded


def _logprobs(logits: Array, token: int | None, top: int) -> TokenLogprobs:
    """token: None is the likeliest one."""
    total = float(logsumexp(logits))
    best = np.argpartition(logits, -top)[-top:] if top else np.empty(0, dtype=np.int64)
    likeliest = sorted(best.tolist(), key=lambda other: (-logits[other], other))
    chosen = int(logits.argmax()) if token is None else token
    return TokenLogprobs(
        chosen, float(logits[chosen]) - total, tuple((other, float(logits[other]) - total) for other in likeliest)
    )


async def in_thread(function: Callable[[], T], size: int = LONG) -> T:
    """What takes longer for a longer text: not on the event loop, unless its size in characters is small."""
    return await asyncio.to_thread(function) if size >= LONG else function()


def _reseeded(request: Request, i: int) -> Request:
    """The i-th answer to one prompt draws for itself."""
    sampling = request.sampling
    return replace(request, sampling=replace(sampling, seed=(sampling.seed + i) % (MOST_SEED + 1))) if i else request


def _link(name: str) -> Link:
    if name not in LINK_NAMES:
        raise RequestError(f"no sampler {name[:40]!r}; there are {', '.join(LINK_NAMES)}")
    return LINK_NAMES[name]
