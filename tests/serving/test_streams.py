"""When the head of a streamed answer goes out: as soon as nothing can be refused any more."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from serving_server import QUESTION
from starlette.requests import Request as HttpRequest
from starlette.types import Message

from edge_steer.core.backend import Completion, Piece, Request
from edge_steer.llama.engine import Engine
from edge_steer.serving.replies import BEGUN, ApiError, Json, event_stream
from edge_steer.serving.worker import Answers, Event, Prefilled, Wishes, Worker

PATIENCE = 60  # seconds, until a head that never comes fails the test


async def sent(chunks: AsyncIterator[Json], gate: asyncio.Event) -> list[Message]:
    """What a stream of these chunks sends; the gate opens when its head is sent."""
    messages: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        return {}

    async def send(message: Message) -> None:
        messages.append(message)
        gate.set()

    scope = {"type": "http"}
    stream = event_stream(HttpRequest(scope, receive), chunks, done=False)
    await asyncio.wait_for(stream(scope, receive, send), PATIENCE)
    return messages


def test_the_head_does_not_wait_for_the_first_token() -> None:
    async def main() -> list[Message]:
        gate = asyncio.Event()

        async def chunks() -> AsyncIterator[Json]:
            yield BEGUN
            await gate.wait()
            yield {"content": "a"}
            yield BEGUN
            raise ApiError(503, "the server is stopping")

        return await sent(chunks(), gate)

    head, *bodies = asyncio.run(main())
    assert (head["type"], head["status"]) == ("http.response.start", 200)
    assert [body["body"][:16] for body in bodies] == [b'data: {"content"', b'data: {"error":{', b""]


def test_what_is_refused_before_that_has_no_head() -> None:
    async def chunks() -> AsyncIterator[Json]:
        for refusal in [ApiError(400, "no")]:
            raise refusal
        yield BEGUN

    async def main() -> None:
        await sent(chunks(), asyncio.Event())

    with pytest.raises(ApiError, match="no"):
        asyncio.run(main())


def test_a_stream_first_says_that_its_answer_has_begun(engine: Engine) -> None:
    request = Request(engine.encode(QUESTION), 5)

    async def main(wishes: Wishes) -> list[Event]:
        worker = Worker(engine, 4, lambda *_: None)
        worker.start()
        events = [event async for event in Answers(worker, [request, request], wishes).events()]
        await asyncio.to_thread(worker.stop)
        return events

    for index in range(2):
        streamed = [event for of, event in asyncio.run(main(Wishes(streams=True))) if of == index]
        assert [type(event) for event in streamed] == [Prefilled, *[Piece] * 5, Completion]
    assert [type(event) for _, event in asyncio.run(main(Wishes()))] == [Completion] * 2
