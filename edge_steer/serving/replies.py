"""What goes back to a client: errors in llama-server's envelope, event streams, timings, logprobs.

Takes completions and errors, gives what JSON holds. It knows no endpoint and no engine.
"""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from edge_steer.core.backend import Completion, Piece, TokenLogprobs

Json = dict[str, object]
T = TypeVar("T")
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
Text = Callable[[int], bytes]  # a token's bytes
NOTHING = Piece("", None)
BEGUN: Json = {}  # a chunk that is not sent: the answer has begun, and the head of the reply goes out


class ApiError(Exception):
    """A request that cannot be answered: HTTP status, one line, and what else the error object holds."""

    def __init__(self, status: int, message: str, type_: str = "", *, retry_after: int = 0, **more: object) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after
        self.type = type_ or TYPES.get(status, "server_error")
        self.more = more

    def envelope(self) -> Json:
        """As llama-server and OpenAI say it."""
        return {"error": {"code": self.status, "message": self.message, "type": self.type, "param": None, **self.more}}

    def response(self, *, ollama: bool = False) -> JSONResponse:
        """ollama: as Ollama says it, {"error": message}."""
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        content: Json = {"error": self.message} if ollama else self.envelope()
        return JSONResponse(content, self.status, headers)


def too_long(prompt: int, context: int) -> ApiError:
    return ApiError(
        400,
        f"the prompt exceeds the available context size: {prompt} tokens, where an answer needs some of {context}",
        "exceed_context_size_error",
        n_prompt_tokens=prompt,
        n_ctx=context,
    )


def dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class Stream(Response):
    """A body that comes piece by piece, ended when the client goes away. What is wrong before the first piece, which
    may be empty, is an ordinary HTTP error."""

    def __init__(self, request: Request, pieces: AsyncIterator[str], media_type: str) -> None:
        self._request, self._pieces, self.media_type = request, pieces, media_type
        self.status_code, self.background = 200, None
        self.init_headers(STREAM_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnect):
            await while_connected(self._request, self._send(send))

    async def _send(self, send: Send) -> None:
        piece: str | None = await anext(self._pieces)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while piece is not None:
            if piece:
                await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})
            piece = await anext(self._pieces, None)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def event_stream(request: Request, chunks: AsyncIterator[Json], *, done: bool) -> Stream:
    """Server-sent events; done: end with [DONE], as OpenAI does."""
    lines = _lines(
        chunks, lambda chunk: f"data: {dumps(chunk)}\n\n", ApiError.envelope, "data: [DONE]\n\n" if done else ""
    )
    return Stream(request, lines, "text/event-stream")


def line_stream(request: Request, chunks: AsyncIterator[Json]) -> Stream:
    """One JSON object a line, as Ollama streams."""
    lines = _lines(chunks, lambda chunk: dumps(chunk) + "\n", lambda error: {"error": error.message}, "")
    return Stream(request, lines, "application/x-ndjson")


async def _lines(
    chunks: AsyncIterator[Json], line: Callable[[Json], str], of_error: Callable[[ApiError], Json], end: str
) -> AsyncIterator[str]:
    """Each chunk as a line, BEGUN as an empty one. An error after the first chunk is a chunk."""
    chunk: Json | None = await anext(chunks)
    try:
        while chunk is not None:
            yield line(chunk) if chunk else ""
            chunk = await anext(chunks, None)
    except ApiError as error:
        yield line(of_error(error))
    yield end


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives, ended when the client goes away. Errors: ClientDisconnect."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True)
class Throughput:
    """How long a completion took, as llama-server counts it; every figure is finite."""

    cached: int
    prompt: int
    prompt_ms: float
    predicted: int
    predicted_ms: float

    @classmethod
    def of(cls, prompt: int, completion: Completion) -> "Throughput":
        """prompt: how many tokens the prompt has."""
        return cls(
            completion.timings.reused,
            prompt - completion.timings.reused,
            1000 * completion.timings.prompt,
            len(completion.tokens),
            1000 * completion.timings.generation,
        )

    @classmethod
    def total(cls, answers: Sequence["Throughput"]) -> "Throughput":
        """Of several answers to one request: tokens added up, times of the longest."""
        return cls(
            sum(one.cached for one in answers),
            sum(one.prompt for one in answers),
            max(one.prompt_ms for one in answers),
            sum(one.predicted for one in answers),
            max(one.predicted_ms for one in answers),
        )

    def json(self) -> Json:
        """The rate of predicted tokens leaves out the first, which comes with the prompt."""
        after_first = max(self.predicted - 1, 0)
        return {
            "cache_n": self.cached,
            "prompt_n": self.prompt,
            "prompt_ms": self.prompt_ms,
            "prompt_per_token_ms": _ratio(self.prompt_ms, self.prompt),
            "prompt_per_second": _ratio(1000 * self.prompt, self.prompt_ms),
            "predicted_n": self.predicted,
            "predicted_ms": self.predicted_ms,
            "predicted_per_token_ms": _ratio(self.predicted_ms, after_first),
            "predicted_per_second": _ratio(1000 * after_first, self.predicted_ms),
        }


class StreamClock:
    """What a streamed answer took so far, as llama-server tells it: of its prompt, then of its tokens."""

    def __init__(self, prompt: int) -> None:
        """prompt: how many tokens the prompt has."""
        self._prompt, self._cached, self._computed, self._tokens = prompt, 0, 0, 0
        self._began = self._first = self._last = time.perf_counter()
        self._reports = 0

    def prefilled(self, tokens: int) -> Json:
        """The prompt's progress, of which `tokens` are there; what the first call has was cached."""
        self._last = time.perf_counter()
        if not self._reports:
            self._cached, self._began = tokens, self._last
        self._reports += 1
        self._computed = tokens - self._cached
        spent = 1000 * (self._last - self._began)
        return {"total": self._prompt, "cache": self._cached, "processed": tokens, "time_ms": round(spent)}

    def take(self) -> None:
        """One more token."""
        self._last = time.perf_counter()
        if not self._tokens:
            self._first, self._computed = self._last, self._prompt - self._cached
        self._tokens += 1

    def timings(self) -> Json:
        prompt_end = self._first if self._tokens else self._last
        prompt_ms, predicted_ms = 1000 * (prompt_end - self._began), 1000 * (self._last - prompt_end)
        return Throughput(self._cached, self._computed, prompt_ms, self._tokens, predicted_ms).json()


def usage(prompt: int, completion: int, cached: int) -> Json:
    return {
        "completion_tokens": completion,
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def chat_logprobs(logprobs: Sequence[TokenLogprobs], text: Text) -> list[Json]:
    """As OpenAI's chat endpoint has them, with llama-server's token ids."""

    def one(token: int, logprob: float) -> Json:
        raw = text(token)
        return {"id": token, "token": readable(raw), "bytes": list(raw), "logprob": finite(logprob)}

    return [
        {**one(entry.token, entry.logprob), "top_logprobs": [one(*other) for other in entry.top]} for entry in logprobs
    ]


def legacy_logprobs(logprobs: Sequence[TokenLogprobs | int], text: Text, offset: int = 0) -> Json:
    """As OpenAI's /v1/completions has them. A bare token id is a first token, whose logprob nobody knows.

    offset: where the first token begins in the text.
    """
    tokens: list[str] = []
    chosen: list[float | None] = []
    top: list[Mapping[str, float] | None] = []
    offsets: list[int] = []
    for entry in logprobs:
        token = entry if isinstance(entry, int) else entry.token
        tokens.append(readable(text(token)))
        offsets.append(offset)
        offset += len(tokens[-1])
        if isinstance(entry, int):
            chosen.append(None)
            top.append(None)
            continue
        chosen.append(finite(entry.logprob))
        best: dict[str, float] = {}
        for other, logprob in (*entry.top, (entry.token, entry.logprob)):
            best.setdefault(readable(text(other)), finite(logprob))
        top.append(best)
    return {"tokens": tokens, "token_logprobs": chosen, "top_logprobs": top, "text_offset": offsets}


def readable(raw: bytes) -> str:
    return raw.decode(errors="replace")


def finite(logprob: float) -> float:
    """JSON has no -Infinity, which a logprob can be where logits lie far apart."""
    return logprob if math.isfinite(logprob) else -1e9


def _ratio(amount: float, by: float) -> float:
    return amount / by if by > 0 else 0.0
