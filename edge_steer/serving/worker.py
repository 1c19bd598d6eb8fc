"""The one thread that owns the model, and the answers it has on the way.

Handlers, on the event loop, submit requests and read what comes; the thread steps the engine and hands over what each
step brought. Scoring, which needs the engine alone, waits until the running answers end, and new ones wait for it.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edge_steer.core.backend import Completion, Lora, Message, Piece, Request, SteppingEngine, Tokens
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.steering import Steering
from edge_steer.core.vector import Array
from edge_steer.serving.replies import ApiError

QUIET_SECONDS = 1.0  # without requests, until the engine rests
BUSY_SECONDS = 1  # what Retry-After says when the queue is full


@dataclass(frozen=True)
class Prefilled:
    """How much of a prompt is there: `tokens` computed or cached, at first the cached ones alone.

    That first one says that the answer has begun. It comes while the prompt is being computed.
    """

    tokens: int


Event = tuple[int, Piece | Completion | Prefilled]
_LOG = logging.getLogger(__name__)


class Vocabulary(Protocol):
    """A model's file, its tokens and its chat template."""

    @property
    def path(self) -> Path: ...

    @property
    def end_tokens(self) -> Tokens: ...

    @property
    def template(self) -> str: ...

    def piece(self, token: int) -> bytes: ...

    def conversation(
        self, messages: Sequence[Message], *, answer: bool = True, variables: Mapping[str, Any] | None = None
    ) -> str: ...


class ServedEngine(SteppingEngine, Protocol):
    """What serving needs of an engine. Tokens, texts and templates may be asked for in any thread."""

    @property
    def parallel(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    def reserve(self) -> None: ...

    def rest(self) -> None: ...

    def logit_rows(
        self,
        tokens: Sequence[int],
        prompt: int,
        steering: Sequence[Steering] = (),
        *,
        loras: Sequence[Lora] | None = None,
    ) -> Iterator[Array]: ...


@dataclass(eq=False)
class Running:
    """One request on its way; `index` is its place among those of its client's call."""

    index: int
    request: Request
    answers: "Answers"
    wishes: "Wishes"
    ticket: int | None = None
    cancelled: bool = False
    begun: bool = False
    generated: int = 0
    submitted: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Wishes:
    """How a client wants its answers. streams: piece by piece. progress: with that of the prompt. reuse: from what is
    cached of the prompt."""

    streams: bool = False
    progress: bool = False
    reuse: bool = True


class Answers:
    """The answers to one client's call, as they come. Close it, at whatever end, so that nothing runs on for nobody."""

    def __init__(self, worker: "Worker", requests: Sequence[Request], wishes: Wishes) -> None:
        """Errors: ApiError 503 if the queue is full."""
        self._worker = worker
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._running = [Running(i, request, self, wishes) for i, request in enumerate(requests)]
        self._open = len(self._running)
        worker.submit(self._running)

    async def events(self) -> AsyncIterator[Event]:
        """What each request brings, its completion last, with its index. Errors: ApiError."""
        while self._open:
            index, event = await self._events.get()
            if isinstance(event, Completion):
                self._open -= 1
                if event.finish == "error":
                    raise ApiError(400, event.error)
                if event.finish == "cancelled":
                    raise ApiError(503, "the server is stopping; ask again later")
            yield index, event

    async def completions(self) -> list[Completion]:
        """All completions, in the order of the requests. Errors: ApiError."""
        ended: dict[int, Completion] = {}
        async for index, event in self.events():
            if isinstance(event, Completion):
                ended[index] = event
        return [ended[index] for index in sorted(ended)]

    def put(self, event: Event) -> None:
        self._events.put_nowait(event)

    def close(self) -> None:
        """End what still runs before its next token."""
        self._worker.cancel(self._running)


@dataclass
class _Call:
    """Something to do with the engine alone, and whom to tell."""

    function: Callable[[], Any]
    outcome: "asyncio.Future[Any]"


class Worker:
    """Start it on a running event loop; stop it before the engine is closed."""

    def __init__(self, engine: ServedEngine, queue: int, on_done: Callable[[Running, Completion], None]) -> None:
        """queue: how many requests may wait besides those that run. on_done: called for each that ends."""
        self._engine, self._on_done = engine, on_done
        self._most = engine.parallel + queue
        self._lock = threading.Lock()
        self._awake = threading.Event()
        self._inbox: deque[Running] = deque()
        self._cancelling: deque[Running] = deque()
        self._calls: deque[_Call] = deque()
        self._happened: list[tuple[Running, Piece | Completion | Prefilled]] = []
        self._live: dict[Running, None] = {}
        self._stopping = False
        self.broken = ""
        self.steps = self.busy = 0  # steps of the engine, and the requests that ran in them, added up
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what still runs is cancelled."""
        self._stopping = True
        self._awake.set()
        self._thread.join()

    @property
    def live(self) -> list[Running]:
        """What runs or waits, oldest first. Of the event loop."""
        return list(self._live)

    def submit(self, running: Sequence[Running]) -> None:
        """Errors: ApiError 503 if they do not fit the queue or the engine has stopped working."""
        if self.broken:
            raise ApiError(503, f"the engine has stopped working: {self.broken}")
        if len(self._live) + len(running) > self._most:
            raise ApiError(503, f"{len(self._live)} requests run or wait already; try again", retry_after=BUSY_SECONDS)
        self._live.update(dict.fromkeys(running))
        self._inbox.extend(running)
        self._awake.set()

    def cancel(self, running: Sequence[Running]) -> None:
        self._cancelling.extend(one for one in running if one in self._live)
        self._awake.set()

    async def alone(self, function: Callable[[], Any]) -> Any:
        """What `function` gives, called in the engine's thread while no answer runs. Errors: what it raises."""
        if self.broken:
            raise ApiError(503, f"the engine has stopped working: {self.broken}")
        if len(self._calls) >= self._most:
            raise ApiError(503, f"{len(self._calls)} texts wait to be scored; try again", retry_after=BUSY_SECONDS)
        outcome: asyncio.Future[Any] = self._loop.create_future()
        self._calls.append(_Call(function, outcome))
        self._awake.set()
        return await outcome

    def _run(self) -> None:
        woken = False
        while not self._stopping:
            woken = self._awake.wait(QUIET_SECONDS if woken else None)
            try:
                if woken:
                    self._awake.clear()
                    while not self._stopping and self._work():
                        pass
                elif not self.broken:
                    with suppress(EdgeSteerError):  # there is no memory for another context; this one does
                        self._engine.rest()
            except Exception as error:
                _LOG.exception("the engine has stopped working")
                self.broken = next(iter(str(error).splitlines()), "") or type(error).__name__
                self._post(self._fail, f"the engine has stopped working: {self.broken}")
        for one in self._live:
            if one.ticket is not None:
                self._engine.cancel(one.ticket)
        with suppress(EdgeSteerError):
            while self._engine.step():
                pass

    def _work(self) -> bool:
        """Take what came in and step once; whether there is more to do."""
        if self.broken:
            return False
        while self._cancelling:
            one = self._cancelling.popleft()
            one.cancelled = True
            if one.ticket is not None:
                self._engine.cancel(one.ticket)
        while self._inbox and not self._calls:
            self._begin(self._inbox.popleft())
        if self._live:
            self.steps += 1
            self.busy += min(len(self._live), self._engine.parallel)
        more = self._engine.step()
        self._hand_over()
        if not more and self._calls:
            self._do(self._calls.popleft())
        return more or bool(self._inbox or self._calls)

    def _begin(self, one: Running) -> None:
        if one.cancelled:
            self._happened.append((one, Completion("", (), "cancelled")))
            return

        def happened(event: Piece | Completion) -> None:
            self._happened.append((one, event))

        def prefilled(tokens: int) -> None:
            if wishes.progress or not one.begun:
                self._happened.append((one, Prefilled(tokens)))
            if not one.begun:
                one.begun = True
                self._hand_over()

        wishes = one.wishes
        try:
            one.ticket = self._engine.submit(
                one.request,
                on_piece=happened if wishes.streams else None,
                on_done=happened,
                on_prefill=prefilled if wishes.streams else None,
                reuse=wishes.reuse,
            )
        except EdgeSteerError as error:
            self._happened.append((one, Completion("", (), "error", error=str(error))))

    def _do(self, call: _Call) -> None:
        if call.outcome.cancelled():
            return
        try:
            result = call.function()
        except Exception as error:
            self._post(_tell, call.outcome, None, error)
        else:
            self._post(_tell, call.outcome, result, None)

    def _hand_over(self) -> None:
        if self._happened:
            happened, self._happened = self._happened, []
            self._post(self._deliver, happened)

    def _post(self, function: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is there to tell
            self._loop.call_soon_threadsafe(function, *arguments)

    def _deliver(self, happened: Sequence[tuple[Running, Piece | Completion | Prefilled]]) -> None:
        for one, event in happened:
            if isinstance(event, Completion):
                self._live.pop(one, None)
                self._on_done(one, event)
            elif isinstance(event, Piece) and event.token is not None:
                one.generated += 1
            one.answers.put((one.index, event))

    def _fail(self, why: str) -> None:
        self._deliver([(one, Completion("", (), "error", error=why)) for one in self._live])
        while self._calls:
            _tell(self._calls.popleft().outcome, None, ApiError(503, why))


def _tell(outcome: "asyncio.Future[Any]", result: object, error: Exception | None) -> None:
    if outcome.done():
        return
    if error:
        outcome.set_exception(error)
    else:
        outcome.set_result(result)
