"""OpenAI's endpoints: chat, text completions, models. Each answer and each last chunk says what steered it."""

import importlib.metadata
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from edge_steer.core.backend import Completion, Piece, TokenLogprobs, Tokens
from edge_steer.serving.bodies import ChatBody, CompletionBody, Generating, ScoredChatBody
from edge_steer.serving.llama_api import NativeReply
from edge_steer.serving.questions import Question, Service, in_force, schema_of
from edge_steer.serving.replies import (
    BEGUN,
    NOTHING,
    ApiError,
    Json,
    StreamClock,
    Throughput,
    chat_logprobs,
    event_stream,
    legacy_logprobs,
    readable,
    usage,
    while_connected,
)
from edge_steer.serving.worker import Prefilled

FINGERPRINT = "b" + importlib.metadata.version("edge-steer")  # as llama-server: "b" and the build


def router(service: Service) -> APIRouter:
    api = APIRouter()

    @api.post("/v1/chat/completions")
    @api.post("/chat/completions")
    async def chat(request: Request) -> Response:
        body = await service.read(request, ChatBody)
        _check_n(body.n, service)
        logprobs = (20 if body.top_logprobs is None else body.top_logprobs) if body.logprobs else None
        prompt = await service.chat_tokens(body)
        question = await service.question(
            body, [prompt], logprobs=logprobs, schema=schema_of(body, body.response_format)
        )
        reply = _Chat(service, question, body)
        if body.stream:
            return event_stream(request, reply.stream(), done=True)
        return JSONResponse(reply.whole(await while_connected(request, service.completions(question))))

    @api.post("/v1/chat/logprobs")
    async def scored_chat(request: Request) -> Json:
        body = await service.read(request, ScoredChatBody)
        prompt, applied = await service.chat_tokens(body), service.steering(body)
        tokens = (*prompt, *body.answer)
        service.check_prompt(tokens)
        loras = service.chosen_loras(body)
        scored = await service.scored(tokens, applied, loras, body.top_logprobs, prompt=len(prompt))
        content = chat_logprobs(scored[:-1], service.engine.vocabulary.piece)
        return {"object": "chat.logprobs", "content": content, **in_force(applied, loras)}

    @api.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await service.read(request, CompletionBody)
        _check_n(body.n, service)
        prompts = await service.prompts(body.prompt)
        question = await service.question(
            body, prompts, logprobs=body.logprobs, schema=schema_of(body, body.response_format)
        )
        reply = _Text(service, question, body, prompts)
        if body.stream:
            if body.echo:
                raise ApiError(400, "'echo' is not streamed; leave out one of 'echo' and 'stream'")
            return event_stream(request, reply.stream(), done=True)
        return JSONResponse(await while_connected(request, reply.whole_with_echo()))

    @api.post("/v1/chat/completions/input_tokens")
    @api.post("/chat/completions/input_tokens")
    async def input_tokens(request: Request) -> Json:
        return {"input_tokens": len(await service.chat_tokens(await service.read(request, ChatBody)))}

    @api.get("/v1/models")
    @api.get("/models")
    async def models() -> Json:
        return {"object": "list", "data": [_model(service, name) for name in service.models]}

    @api.get("/v1/models/{name:path}")
    async def model(name: str) -> Json:
        service.preset(name)
        return _model(service, name)

    return api


def _check_n(n: int, service: Service) -> None:
    if n > service.engine.parallel:
        raise ApiError(400, f"'n' is {n}; this server runs at most {service.engine.parallel} answers at once")


def _model(service: Service, name: str) -> Json:
    """A model as clients list it; a preset is a virtual one whose parent is the model itself."""
    preset = service.preset(name)
    entry: Json = {
        "id": name,
        "object": "model",
        "created": int(service.metrics.started),
        "owned_by": "edge-steer",
        "root": service.names[0],
        "parent": service.names[0] if preset else None,
        "meta": {
            "n_vocab": service.engine.vocab_size,
            "n_ctx": service.engine.context,
            "n_embd": service.engine.model.hidden_size,
            "n_layer": service.engine.model.block_count,
            "architecture": service.engine.model.architecture,
            "ftype": service.file.quant,
        },
    }
    applied = service.vectors.default if preset is None else service.vectors.presets[preset]
    return {**entry, "steering": [one.json() for one in applied]}


@dataclass
class _Reply:
    """What chat and text completions have in common: the head of every object, the figures of the last."""

    service: Service
    question: Question
    body: Generating
    created: int = field(default_factory=lambda: int(time.time()))
    serial: str = field(default_factory=lambda: uuid.uuid4().hex)

    kind = ""  # of the whole answer
    chunk_kind = ""
    prefix = ""

    def head(self, kind: str) -> Json:
        return {
            "id": self.prefix + self.serial,
            "object": kind,
            "created": self.created,
            "model": self.question.model,
            "system_fingerprint": FINGERPRINT,
        }

    def choice(self, index: int, completion: Completion) -> Json:
        raise NotImplementedError

    def piece(self, index: int, piece: Piece) -> Json:
        raise NotImplementedError

    def last(self, index: int, completion: Completion) -> Json:
        raise NotImplementedError

    def opening(self) -> Sequence[Json]:
        """The choices of chunks that come before any text."""
        return ()

    def whole(self, completions: Sequence[Completion]) -> Json:
        choices = [self.choice(index, completion) for index, completion in enumerate(completions)]
        verbose = self._verbose(0, completions[0], completions[0].text)
        return {**self.head(self.kind), "choices": choices, **self.figures(completions), **verbose}

    async def stream(self) -> AsyncIterator[Json]:
        """Chunks; the last one of each choice has timings and steering, and so has the one of usage, if asked."""
        head = self.head(self.chunk_kind)
        ended: dict[int, Completion] = {}
        opened = False
        clocks = [StreamClock(len(request.prompt)) for request in self.question.requests]
        async for index, event in self.service.events(self.question, streams=True):
            for choice in () if opened else self.opening():
                yield {**head, "choices": [choice]}
            opened = True
            if isinstance(event, Completion):
                ended[index] = event
                figures = {"timings": self._timings([event]), **self.question.in_force}
                yield {**head, "choices": [self.last(index, event)], **figures, **self._verbose(index, event, "")}
            elif isinstance(event, Prefilled) and not self.question.progress:
                yield BEGUN
            elif isinstance(event, Prefilled):
                choice, progress = self.piece(index, NOTHING), clocks[index].prefilled(event.tokens)
                timings = self._timings_so_far(clocks[index])
                yield {**head, "choices": [choice], "prompt_progress": progress, **timings}
            elif event.text or event.logprobs:
                clocks[index].take()
                yield {**head, "choices": [self.piece(index, event)], **self._timings_so_far(clocks[index])}
        if self.body.stream_options.include_usage:
            yield {**head, "choices": [], **self.figures([ended[index] for index in sorted(ended)])}

    def figures(self, completions: Sequence[Completion]) -> Json:
        generated = sum(len(completion.tokens) for completion in completions)
        cached = sum(completion.timings.reused for completion in completions[:: self.question.n])
        return {
            "usage": usage(self.question.prompt_tokens, generated, cached),
            "timings": self._timings(completions),
            **self.question.in_force,
        }

    def _timings_so_far(self, clock: StreamClock) -> Json:
        return {"timings": clock.timings()} if self.body.timings_per_token else {}

    def _verbose(self, index: int, completion: Completion, content: str) -> Json:
        """What llama-server's own endpoint would have answered, with the prompt as text, for who asks for it."""
        if not self.body.verbose:
            return {}
        return {"__verbose": NativeReply(self.service, self.question, self.body).last(index, completion, content)}

    def _timings(self, completions: Sequence[Completion]) -> Json:
        prompts = [len(request.prompt) for request in self.question.requests]
        return Throughput.total(
            [Throughput.of(prompt, completion) for prompt, completion in zip(prompts, completions, strict=False)]
        ).json()


class _Chat(_Reply):
    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def choice(self, index: int, completion: Completion) -> Json:
        message = {"role": "assistant", "content": completion.text}
        logprobs = self._logprobs(completion.logprobs)
        return {"index": index, "message": message, "finish_reason": completion.finish, **logprobs}

    def opening(self) -> Sequence[Json]:
        delta = {"role": "assistant", "content": None}
        return [{"index": index, "delta": delta, "finish_reason": None} for index in range(len(self.question.requests))]

    def piece(self, index: int, piece: Piece) -> Json:
        logprobs = self._logprobs([piece.logprobs] if piece.logprobs else [])
        return {"index": index, "delta": {"content": piece.text}, "finish_reason": None, **logprobs}

    def last(self, index: int, completion: Completion) -> Json:
        return {"index": index, "delta": {}, "finish_reason": completion.finish}

    def _logprobs(self, logprobs: Sequence[TokenLogprobs]) -> Json:
        if self.question.requests[0].logprobs is None:
            return {}
        return {"logprobs": {"content": chat_logprobs(logprobs, self.service.engine.vocabulary.piece)}}


class _Text(_Reply):
    kind = chunk_kind = "text_completion"
    prefix = "cmpl-"

    body: CompletionBody

    def __init__(self, service: Service, question: Question, body: CompletionBody, prompts: Sequence[Tokens]) -> None:
        super().__init__(service, question, body)
        self._prompts = prompts
        self._offsets = [0] * len(question.requests)

    async def whole_with_echo(self) -> Json:
        """The answer, each choice behind its prompt if the body asks for an echo, with the prompt's logprobs."""
        answer = self.whole(await self.service.completions(self.question))
        if self.body.echo:
            choices = answer["choices"]
            assert isinstance(choices, list)
            for position, prompt in enumerate(self._prompts):
                await self._echo(prompt, choices[position * self.question.n :][: self.question.n])
        return answer

    def choice(self, index: int, completion: Completion) -> Json:
        logprobs = self._logprobs(completion.logprobs, 0)
        return {"index": index, "text": completion.text, "logprobs": logprobs, "finish_reason": completion.finish}

    def piece(self, index: int, piece: Piece) -> Json:
        logprobs = self._logprobs([piece.logprobs] if piece.logprobs else [], self._offsets[index])
        self._offsets[index] += len(piece.text)
        return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": None}

    def last(self, index: int, completion: Completion) -> Json:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": completion.finish}

    async def _echo(self, prompt: Tokens, choices: Sequence[Json]) -> None:
        pieces = self.service.engine.vocabulary.piece
        text = readable(b"".join(map(pieces, prompt)))
        before: Json = {}
        if self.body.logprobs is not None:
            question = self.question
            scored = await self.service.scored(prompt, question.applied, question.loras, self.body.logprobs)
            before = legacy_logprobs([prompt[0], *scored[:-1]], pieces)
        for choice in choices:
            choice["text"] = text + str(choice["text"])
            if before:
                choice["logprobs"] = _joined(before, choice["logprobs"], len(text))

    def _logprobs(self, logprobs: Sequence[TokenLogprobs], offset: int) -> Json | None:
        if self.body.logprobs is None:
            return None
        return legacy_logprobs(logprobs, self.service.engine.vocabulary.piece, offset)


def _joined(before: Json, after: object, offset: int) -> Json:
    """Logprobs of a prompt and of what follows it at character `offset`."""
    assert isinstance(after, dict)
    moved = {**after, "text_offset": [offset + at for at in after["text_offset"]]}
    return {key: [*_items(before[key]), *_items(moved[key])] for key in before}


def _items(value: object) -> list[object]:
    assert isinstance(value, list)
    return value
