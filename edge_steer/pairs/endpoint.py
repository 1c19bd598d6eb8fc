"""One OpenAI-compatible endpoint: prompts in, replies with their token counts out, several at a time.

Takes the key and the address from the environment variables of the openai package, of which this is the only door.
Waits and tries again where that can help. No error it raises, and no reply, holds the key.
"""

import asyncio
import email.utils
import json
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from edge_steer.core.errors import EdgeSteerError, need

if TYPE_CHECKING:
    import openai


KEY, ADDRESS = "OPENAI_API_KEY", "OPENAI_BASE_URL"
PUBLIC = "https://api.openai.com/v1"
LOCAL = ("localhost", "127.0.0.1", "::1")  # servers that need no key
RETRIED = (408, 409, 429)  # and every status from 500 on
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds; doubled from one attempt to the next
PATIENCE = 600.0  # a server that asks for a longer wait is not waited for
SHOWN = 200  # characters of a server's message
# What the package says of the machine it runs on: the endpoint has no need of it.
UNSENT = ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async", "Retry-Count", "Read-Timeout")


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


OnReply = Callable[[int, Reply], None]  # which prompt, its reply


@dataclass(frozen=True)
class Endpoint:
    """Which model to ask, where and how. base_url None: $OPENAI_BASE_URL, else OpenAI's own.

    temperature and reasoning_effort are sent only if given: not every model takes them. timeout: seconds for one
    attempt; attempts: how often a prompt is tried; concurrency: prompts under way at once. first_wait: seconds before
    the second attempt where the endpoint names none.
    Errors: EdgeSteerError for numbers out of range, an address that is none, or a missing key; a server on this
    machine needs no key.
    """

    model: str
    base_url: str | None = None
    max_tokens: int = 8192
    temperature: float | None = None
    reasoning_effort: str | None = None
    timeout: float = 300.0
    attempts: int = 6
    concurrency: int = 8
    first_wait: float = FIRST_WAIT

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.attempts < 1 or self.concurrency < 1 or not self.timeout > 0:
            raise EdgeSteerError("max_tokens, attempts and concurrency must be at least 1, the timeout above 0")
        if urlsplit(self.address).scheme not in ("http", "https") or not urlsplit(self.address).hostname:
            raise EdgeSteerError(f"{self.shown!r} is no address; give one such as http://localhost:8080/v1")
        self._key()

    @property
    def address(self) -> str:
        return self.base_url or os.environ.get(ADDRESS) or PUBLIC

    @property
    def shown(self) -> str:
        """The address without a name or password in it."""
        parts = urlsplit(self.address)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()

    def ask(self, prompts: Sequence[str], on_reply: OnReply) -> None:
        """Send each prompt as the user's only turn; on_reply gets its reply as soon as it is there, in any order.

        A prompt that fails at last ends as a Reply with a problem; the others go on. An interrupt ends it at once.
        Errors: EdgeSteerError, ending all, where no other prompt could fare better: a refused key, a model or address
        that is not there, an exhausted account, an endpoint that never answered; or if openai is not installed.
        """
        need("pairs")
        if prompts:
            asyncio.run(_Run(self, self._key(), on_reply).all(prompts))

    def _key(self) -> str:
        if key := os.environ.get(KEY, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise EdgeSteerError(f"the key in {KEY} holds characters that no key has; set it again")
            return key
        if urlsplit(self.address).hostname in LOCAL:
            return "none"
        raise EdgeSteerError(
            f"no API key for {self.shown}: set {KEY}, name a server on this machine with --base-url, "
            "or a model file with --rewriter"
        )


class _Broken(Exception):
    """An answer that is none: a server or a proxy in trouble."""


class _Fatal(Exception):
    """Why no prompt can be answered."""


@dataclass
class _Run:
    endpoint: Endpoint
    key: str
    on_reply: OnReply
    answered: bool = False
    not_before: float = 0.0  # on the clock of time.monotonic: no attempt begins earlier
    client: "openai.AsyncOpenAI" = field(init=False)

    async def all(self, prompts: Sequence[str]) -> None:
        import openai

        waiting = iter(enumerate(prompts))
        async with openai.AsyncOpenAI(
            api_key=self.key, base_url=self.endpoint.address, timeout=self.endpoint.timeout, max_retries=0
        ) as self.client:

            async def work() -> None:
                for index, prompt in waiting:
                    reply = await self.one(prompt)
                    self.on_reply(index, reply)

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.endpoint.concurrency, len(prompts))):
                        group.create_task(work())
            except BaseExceptionGroup as failures:
                raise _cause(failures) from None

    async def one(self, prompt: str) -> Reply:
        """Try until there is a reply, or a problem that another attempt would not mend."""
        problem = ""
        for attempt in range(1, self.endpoint.attempts + 1):
            while (wait := self.not_before - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            problem, wait_asked, again = "", None, True
            try:
                async with asyncio.timeout(self.endpoint.timeout):
                    body = await self.send(prompt)
                self.answered = True
                return replace(_reply(body), attempts=attempt)
            except Exception as failure:
                problem, wait_asked, again, shared = self.judge(failure)
            if not again:
                return Reply("", problem, attempts=attempt)
            wait = min(LONGEST_WAIT, self.endpoint.first_wait * 2 ** (attempt - 1)) * random.uniform(0.75, 1.0)
            if wait_asked is not None:
                wait = wait_asked
            if wait > PATIENCE:
                return Reply("", f"{problem}; it asks to wait {wait:.0f} s: run again then", attempts=attempt)
            if attempt < self.endpoint.attempts:
                if shared:
                    self.not_before = max(self.not_before, time.monotonic() + wait)
                await asyncio.sleep(wait)
        if not self.answered:
            raise _Fatal(f"{self.endpoint.shown} does not answer: {problem}, {self.endpoint.attempts} times")
        return Reply("", f"{problem}, {self.endpoint.attempts} times", attempts=self.endpoint.attempts)

    async def send(self, prompt: str) -> bytes:
        import openai

        asked = self.endpoint
        response = await self.client.chat.completions.with_raw_response.create(
            model=asked.model,
            messages=[{"role": "user", "content": prompt}],
            max_completion_tokens=asked.max_tokens,
            temperature=openai.omit if asked.temperature is None else asked.temperature,
            reasoning_effort=openai.omit if asked.reasoning_effort is None else asked.reasoning_effort,  # type: ignore[arg-type]
            extra_headers={f"X-Stainless-{name}": openai.omit for name in UNSENT},
        )
        return response.content

    def judge(self, failure: Exception) -> tuple[str, float | None, bool, bool]:
        """The problem, the wait asked for, whether to try again, and whether the wait is for every prompt."""
        import openai

        if isinstance(failure, openai.APITimeoutError | TimeoutError):
            return f"no answer within {self.endpoint.timeout:g} s", None, True, False
        if isinstance(failure, openai.APIConnectionError):
            return "the connection failed", None, True, False
        if isinstance(failure, _Broken):
            return f"the answer is broken: {failure}", None, True, False
        if not isinstance(failure, openai.APIStatusError):
            raise failure
        status, said = failure.status_code, self.said(failure)
        if status in (401, 403):
            raise _Fatal(f"{self.endpoint.shown} refuses the key with status {status}; check {KEY}")
        if status == 404:
            raise _Fatal(f"{self.endpoint.shown} has no model {self.endpoint.model!r}, or is no such API (404){said}")
        if status == 429 and failure.code == "insufficient_quota":
            raise _Fatal(f"{self.endpoint.shown}: the account has no quota left{said}")
        again = status in RETRIED or status >= 500
        if status != 429:
            self.answered = self.answered or status < 500
        return f"status {status}{said}", _wait_asked(failure.response.headers), again, status == 429

    def said(self, failure: "openai.APIStatusError") -> str:
        """The server's own words, in one line and without the key."""
        message = failure.body.get("message") if isinstance(failure.body, dict) else None
        if not isinstance(message, str):
            return ""
        line = " ".join(message.replace(self.key, "***").split()) if self.key else message
        return f": {line[:SHOWN]}"


def _cause(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure of the group, as the user reads it."""
    first = failures.exceptions[0]
    return EdgeSteerError(str(first)) if isinstance(first, _Fatal) else first


def _reply(body: bytes) -> Reply:
    """A chat completion, checked. Errors: _Broken for anything else."""
    try:
        found = json.loads(body)
    except ValueError:
        raise _Broken("no JSON") from None
    choice = _item(_item(found, "choices"), 0)
    message = _item(choice, "message")
    if not isinstance(message, dict):
        raise _Broken("a chat completion without a message")
    usage = found.get("usage")
    reply = Reply(
        text="",
        model=str(found.get("model") or ""),
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
    )
    text, finish, refusal = message.get("content"), choice.get("finish_reason"), message.get("refusal")
    if refusal or finish == "content_filter":
        return replace(reply, problem=f"refused: {' '.join(str(refusal or finish).split())[:SHOWN]}")
    if finish == "length":
        return replace(reply, problem="cut off at the most tokens; raise --max-tokens")
    if not isinstance(text, str) or not text.strip():
        return replace(reply, problem="an empty answer")
    return replace(reply, text=text)


def _item(value: Any, key: str | int) -> Any:
    try:
        return value[key]
    except (KeyError, IndexError, TypeError):
        return None


def _count(usage: Any, name: str) -> int | None:
    count = _item(usage, name)
    return count if isinstance(count, int) else None


def _wait_asked(headers: Any) -> float | None:
    """Seconds by Retry-After, a number or a date, or by retry-after-ms."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        given = headers.get(name)
        if given is None:
            continue
        try:
            wait = float(given) / unit
        except ValueError:
            date = email.utils.parsedate_tz(given)
            if date is None:
                continue
            wait = email.utils.mktime_tz(date) - time.time()
        if not math.isnan(wait):
            return max(0.0, wait)
    return None
