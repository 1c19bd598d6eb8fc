"""One OpenAI-compatible endpoint: prompts in, replies with their token counts out, several at a time.

Takes the key and the address from the environment variables of the openai package, of which this is the only door;
that package sends, waits and tries again. No error raised here, and no reply, holds the key.
"""

import asyncio
import functools
import operator
import os
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from edge_steer.core.errors import EdgeSteerError, need

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletion


KEY, ADDRESS = "OPENAI_API_KEY", "OPENAI_BASE_URL"
PUBLIC = "https://api.openai.com/v1"
CANDIDATE_TEMPERATURE = 1.0  # of every rewrite of a solution but the first, where none above 0 is set
NO_KEY = "no-key-needed"
LOCAL = ("localhost", "127.0.0.1", "::1")  # servers that need no key
MESSAGE_LENGTH = 200  # characters of a server's message that are kept
ABOUT_US, RETRY_COUNT = "x-stainless-", "x-stainless-retry-count"  # headers in which openai describes this machine
RAW_RESPONSE = "x-stainless-raw-response"  # without it openai gives no count of attempts
TOO_MANY, BAD_GATEWAY = 429, 502  # statuses that openai tries again
NO_QUOTA = "insufficient_quota"
NO_COMPLETION = "the answer is no chat completion"


@dataclass(frozen=True)
class Reply:
    """What became of a prompt: its text, or the problem that there is none, in one line.

    model: as the endpoint names it. Token counts are None where the endpoint gives none; they count what was billed,
    a problem's too.
    """

    text: str
    problem: str = ""
    model: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    attempts: int = 1


OnReply = Callable[[int, Reply], None]  # index of a prompt, its reply


@dataclass(frozen=True)
class Endpoint:
    """Which model to ask, where and how. base_url None: $OPENAI_BASE_URL, else OpenAI's own.

    temperature and reasoning_effort are sent only if given: not every model takes them. timeout: seconds for one
    attempt; attempts: how often a prompt is tried; concurrency: prompts under way at once.
    Errors: EdgeSteerError for numbers out of range, an address that is none, or a missing key; a server on this
    machine needs no key.
    """

    model: str
    base_url: str | None = None
    max_tokens: int = 8192
    temperature: float | None = None
    reasoning_effort: str | None = None
    timeout: float = 300.0
    attempts: int = 8
    concurrency: int = 8

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.attempts < 1 or self.concurrency < 1 or not self.timeout > 0:
            raise EdgeSteerError("max_tokens, attempts and concurrency must be at least 1, the timeout above 0")
        if urlsplit(self.address).scheme not in ("http", "https") or not urlsplit(self.address).hostname:
            raise EdgeSteerError(f"{self.public_address!r} is no address; give one such as http://localhost:8080/v1")
        self._key()

    @property
    def address(self) -> str:
        return self.base_url or os.environ.get(ADDRESS) or PUBLIC

    @property
    def public_address(self) -> str:
        """The address without a name or password in it."""
        parts = urlsplit(self.address)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()

    @property
    def identity(self) -> Mapping[str, object]:
        """What its replies depend on."""
        return {
            "name": self.model,
            "endpoint": self.public_address,
            "temperature": self.temperature,
            "reasoning_effort": self.reasoning_effort,
        }

    def ask(self, prompts: Sequence[str], on_reply: OnReply) -> None:
        """Send each prompt as the user's only turn; on_reply gets its reply as soon as it is there, in any order.

        A prompt that still fails after the last attempt ends as a Reply with a problem; the others go on.
        Errors: EdgeSteerError, ending all, where no other prompt could fare better: a refused key, a model or address
        that is not there, an exhausted account, an endpoint that never answered; or if openai is not installed.
        """
        need("pairs")
        if prompts:
            _complete(_Session(self, self._key(), on_reply).run(prompts))

    def drawing(self, candidate: int) -> Self:
        """The same endpoint at CANDIDATE_TEMPERATURE, or at its own temperature above 0.

        Models that take no other temperature than their own take this one.
        """
        return replace(self, temperature=self.temperature or CANDIDATE_TEMPERATURE)

    def _key(self) -> str:
        if key := os.environ.get(KEY, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise EdgeSteerError(f"the key in {KEY} holds characters that no key has; set it again")
            return key
        if urlsplit(self.address).hostname in LOCAL:
            return NO_KEY
        raise EdgeSteerError(
            f"no API key for {self.public_address}: set {KEY}, or take a server or a model file on this machine"
        )


def _complete(work: Coroutine[Any, Any, None]) -> None:
    """Run it to its end; where an event loop runs already, as in a notebook, in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    loop = asyncio.new_event_loop()
    with closing(loop), ThreadPoolExecutor(1) as thread:
        task = loop.create_task(work)
        ending = thread.submit(loop.run_until_complete, task)
        try:
            ending.result()
        except KeyboardInterrupt:
            loop.call_soon_threadsafe(task.cancel)
            raise


@dataclass
class _Session:
    """One call of Endpoint.ask. answered: whether the endpoint has answered any prompt, if only by refusing it."""

    endpoint: Endpoint
    key: str = field(repr=False)
    on_reply: OnReply
    answered: bool = False

    async def run(self, prompts: Sequence[str]) -> None:
        import openai

        hooks: dict[str, list[Any]] = {"request": [_hide_this_machine], "response": [_judge]}
        async with openai.AsyncOpenAI(
            api_key=self.key,
            base_url=self.endpoint.address,
            timeout=self.endpoint.timeout,
            max_retries=self.endpoint.attempts - 1,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks=hooks),
        ) as client:
            waiting = iter(enumerate(prompts))
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.endpoint.concurrency, len(prompts))):
                        group.create_task(self.work(client, waiting))
            except* EdgeSteerError as failures:
                raise failures.exceptions[0] from None

    async def work(self, client: "openai.AsyncOpenAI", waiting: Iterator[tuple[int, str]]) -> None:
        import openai

        for index, prompt in waiting:
            try:
                reply = await self.send(client, prompt)
            except openai.APIError as failure:
                reply = self.problem_reply(failure)
            else:
                self.answered = True
            self.on_reply(index, reply)

    async def send(self, client: "openai.AsyncOpenAI", prompt: str) -> Reply:
        import openai

        settings = self.endpoint
        response = await client.chat.completions.with_raw_response.create(
            model=settings.model,
            messages=[{"role": "user", "content": prompt}],
            max_completion_tokens=settings.max_tokens,
            temperature=openai.omit if settings.temperature is None else settings.temperature,
            reasoning_effort=settings.reasoning_effort or openai.omit,  # type: ignore[arg-type]
        )
        return replace(_reply(response.parse()), attempts=response.retries_taken + 1)

    def problem_reply(self, failure: "openai.APIError") -> Reply:
        """The problem of a prompt. Errors: EdgeSteerError for one that every other prompt would meet too."""
        attempts, problem = failure.request.extensions.get("attempt", 1), self.problem(failure)
        times = f", {attempts} times" if attempts > 1 else ""
        if attempts == self.endpoint.attempts:
            if not self.answered:
                raise EdgeSteerError(f"{self.endpoint.public_address} does not answer: {problem}{times}")
        elif wait := _wait_asked(failure):
            problem += f"; it asks to wait {wait} s: run again then"
        return Reply("", problem + times, attempts=attempts)

    def problem(self, failure: "openai.APIError") -> str:
        import openai

        if isinstance(failure, openai.APITimeoutError):
            return f"no answer within {self.endpoint.timeout:g} s"
        if not isinstance(failure, openai.APIStatusError):
            return "the connection failed"
        where, status, message = self.endpoint.public_address, failure.status_code, self.message(failure)
        if status in (401, 403):
            raise EdgeSteerError(f"{where} refuses the key with status {status}; check {KEY}")
        if status == 404:
            raise EdgeSteerError(f"{where} has no model {self.endpoint.model!r}, or is no such API (404){message}")
        if status == TOO_MANY and failure.code == NO_QUOTA:
            raise EdgeSteerError(f"{where}: the account has no quota left{message}")
        if NO_COMPLETION in failure.response.extensions:
            return NO_COMPLETION
        self.answered = self.answered or (status < 500 and status != TOO_MANY)
        return f"status {status}{message}"

    def message(self, failure: "openai.APIStatusError") -> str:
        """The server's own words, in one line and without the key."""
        message = failure.body.get("message") if isinstance(failure.body, dict) else None
        if not isinstance(message, str):
            return ""
        return f": {' '.join(message.replace(self.key, '***').split())[:MESSAGE_LENGTH]}"


def _wait_asked(failure: "openai.APIError") -> str:
    response = getattr(failure, "response", None)
    return "" if response is None else str(response.headers.get("retry-after", ""))


async def _hide_this_machine(request: Any) -> None:
    """Leave out the headers that describe this machine, and keep the number of the attempt."""
    request.extensions["attempt"] = int(request.headers.get(RETRY_COUNT, 0)) + 1
    for name in [name for name in request.headers if name.startswith(ABOUT_US) and name != RAW_RESPONSE]:
        del request.headers[name]


async def _judge(response: Any) -> None:
    """Say to openai what a status does not: no quota is not worth another attempt, a broken answer is."""
    if response.status_code == TOO_MANY and await _item(response, "error", "code") == NO_QUOTA:
        response.headers["x-should-retry"] = "false"
    elif response.is_success and not isinstance(await _item(response, "choices", 0, "message"), dict):
        response.status_code = BAD_GATEWAY
        response.extensions[NO_COMPLETION] = True


async def _item(response: Any, *keys: str | int) -> Any:
    """What stands under these keys in an answer; None if it is no such JSON."""
    await response.aread()
    try:
        return functools.reduce(operator.getitem, keys, response.json())
    except (ValueError, LookupError, TypeError):
        return None


def _reply(completion: "ChatCompletion") -> Reply:
    """What the completion says; a field that the endpoint leaves out is not there at all."""
    choice, usage = completion.choices[0], completion.usage
    text, refusal = choice.message.content, choice.message.refusal
    finish = getattr(choice, "finish_reason", None)
    reply = Reply(
        text="",
        model=str(getattr(completion, "model", "") or ""),
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
    )
    if refusal or finish == "content_filter":
        return replace(reply, problem=f"refused: {' '.join(str(refusal or finish).split())[:MESSAGE_LENGTH]}")
    if finish == "length":
        return replace(reply, problem="cut off at the most tokens; allow more")
    if not isinstance(text, str) or not text.strip():
        return replace(reply, problem="an empty answer")
    return replace(reply, text=text)


def _count(usage: object, name: str) -> int | None:
    count = getattr(usage, name, None)
    return count if isinstance(count, int) else None
