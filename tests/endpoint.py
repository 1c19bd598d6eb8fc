"""A real OpenAI-compatible HTTP server on this machine for the tests, which can misbehave on demand."""

import contextlib
import json
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from types import TracebackType
from typing import Any, Self

from edge_steer.tasks import wordproblems
from edge_steer.tasks.task import count_steps

Handler = BaseHTTPRequestHandler
Misdeed = Callable[[Handler], None]


@dataclass
class Seen:
    """One request as it came."""

    headers: dict[str, str]
    body: dict[str, Any]
    at: float = field(default_factory=time.monotonic)

    @property
    def prompt(self) -> str:
        return str(self.body["messages"][0]["content"])


class Endpoint:
    """Answers prompts by `tell`; the first requests meet the `misdeeds` instead, in their order."""

    def __init__(self, tell: Callable[[str], str], misdeeds: list[Misdeed] | None = None) -> None:
        self.tell = tell
        self.misdeeds = misdeeds or []
        self.seen: list[Seen] = []
        self.answered = 0
        self._lock = threading.Lock()
        endpoint = self

        class Requests(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                with contextlib.suppress(ConnectionError):  # the client may be gone
                    endpoint._serve(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: Handler) -> None:
        seen = Seen(
            {name.lower(): value for name, value in handler.headers.items()},
            json.loads(handler.rfile.read(int(handler.headers["Content-Length"]))),
        )
        with self._lock:
            self.seen.append(seen)
            misdeed = self.misdeeds.pop(0) if self.misdeeds else None
        if misdeed:
            misdeed(handler)
            return
        text = self.tell(seen.prompt)
        reply(handler, completion(text))
        with self._lock:
            self.answered += 1


def completion(text: str | None, finish: str = "stop", **message: Any) -> dict[str, Any]:
    return {
        "id": "c", "object": "chat.completion", "created": 0, "model": "told-by-rule",
        "choices": [{"index": 0, "finish_reason": finish,
                     "message": {"role": "assistant", "content": text, **message}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }  # fmt: skip


def reply(handler: Handler, body: object, headers: dict[str, str] | None = None, status: int = 200) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    sent = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
    for name, value in sent.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)


def fails(status: int, message: str = "no", code: str | None = None, **headers: str) -> Misdeed:
    error = {"error": {"message": message, "code": code}}
    return lambda handler: reply(handler, error, headers, status)


def says(body: object, **headers: str) -> Misdeed:
    return lambda handler: reply(handler, body, headers)


def sleeps(seconds: float) -> Misdeed:
    def wait(handler: Handler) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return wait


def cuts(handler: Handler) -> None:
    """Promises more than it sends."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def hangs_up(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.close()


def dense_rewriter(count: int = 300) -> Callable[[str], str]:
    """Rewrites a solution of a calibration word problem: the same computations in fewer paragraphs, nothing added."""
    known = {problem.question: problem for problem in islice(wordproblems.problems("calibration"), count)}

    def tell(prompt: str) -> str:
        question, own = prompt.split("\n\nProblem:\n")[1].split("\n\nSolution:\n")
        rng = random.Random(question)
        while True:
            dense = wordproblems.solution(known[question], 0.7, rng)
            same_end = re.split(r"\.\s+", dense)[-1] == re.split(r"\.\s+", own)[-1]
            if same_end and count_steps(dense) < count_steps(own):
                return dense

    return tell
