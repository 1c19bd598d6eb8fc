"""Requests that nobody should send: the server answers each with a line, never with a defect, and goes on.

Most are valid requests with some fields changed, at any depth, so that they get past the first check.
"""

import copy
import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from serving_server import QUESTION, Server

HELLO = [{"role": "user", "content": "hi"}]
STEER = [{"name": "dense", "scale": 2.0, "layers": [5], "phase": "generated"}]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
FORMAT = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
SAMPLING = {
    "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.9, "seed": 1, "repeat_penalty": 1.1,
    "dry_multiplier": 0.8, "dry_sequence_breakers": ["\n"], "xtc_probability": 0.1, "mirostat": 0, "min_keep": 1,
    "samplers": ["top_k", "temperature"], "logit_bias": {"7": -1}, "stop": ["x"], "n_predict": 3,
}  # fmt: skip
VALID: dict[str, tuple[dict[str, Any], ...]] = {
    "/v1/chat/completions": (
        {"messages": HELLO, "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}},
        {"messages": HELLO, "max_tokens": 3, "logprobs": True, "top_logprobs": 2, "n": 2, "control_vectors": STEER},
        {"messages": [*HELLO, {"role": "assistant", "content": "I"}], "max_tokens": 3, "continue_final_message": True},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "max_tokens": 3, "verbose": True},
        {"messages": HELLO, "max_tokens": 8, "response_format": FORMAT},
        {"messages": HELLO, "max_tokens": 3, "steering": {"vectors": [{"name": "dense", "scale": 2}]}, **SAMPLING},
    ),
    "/v1/completions": (
        {"prompt": ["hi", [5, 6], [5, "b"]], "max_tokens": 2, "logprobs": 2, "echo": True},
        {"prompt": "hi", "max_tokens": 3, "stream": True, "steering": "2 dense - 0.5 other", "return_progress": True},
    ),
    "/completion": (
        {"prompt": {"prompt_string": "hi"}, **SAMPLING, "n_probs": 2, "response_fields": ["timings/prompt_n"]},
        {"prompt": [5, 6, "c"], "n_predict": 3, "stream": True, "timings_per_token": True, "control_vectors": []},
        {"prompt": "hi", "n_predict": 4, "grammar": 'root ::= "a" [0-9]+', "cache_prompt": False},
        {"prompt": "hi", "n_predict": 3, "lora": []},
    ),
    "/tokenize": ({"content": "hi é", "add_special": True, "with_pieces": True},),
    "/detokenize": ({"tokens": [5, 6]},),
    "/apply-template": ({"messages": HELLO, "chat_template_kwargs": {"a": 1}},),
    "/control-vectors/apply": ({"name": "dense", "scale": 1.0, "layers": "5", "phase": "all"},),
    "/lora-adapters": ({"id": 0, "scale": 1.0},),
    "/v1/control-vectors/load": ({"name": "more", "path": "more.gguf"},),
    "/v1/chat/logprobs": ({"messages": HELLO, "answer": [5, 6], "top_logprobs": 2, "steering": "2 dense"},),
    "/api/chat": (
        {"model": "abacus", "messages": HELLO, "options": {"num_predict": 3, "steer": "2 dense", "temperature": 0.5}},
        {"messages": HELLO, "stream": False, "format": SCHEMA, "options": {"num_predict": 8}, "think": False},
    ),
    "/api/generate": ({"prompt": "hi", "system": "be", "options": {"num_predict": 3, "control_vectors": STEER}},),
    "/api/show": ({"model": "abacus"},),
    "/props": ({},),
}  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**70), 0.5, -0.0, 1e308, "", "a", "\0", "\ud7ff", "é" * 300, QUESTION,
    [], [[]], [None], [1, 2, 3], ["a"], [[1, "a"]], {}, {"a": {}}, {"type": "object"}, {"1": -100}, [[1, -1.0]],
    HELLO, [{"role": "assistant", "content": ""}], [{"role": 1}], STEER,
    [{"id": 0, "scale": 1e30}],
    [{"name": "dense", "scale": 1e30}], [{"name": "dense", "layers": [5, 5, -1]}], "1e40 dense", "4 dense - dense",
    {"vectors": [{"name": "dense"}]}, {"type": "json_object"}, SCHEMA,
    {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}},
    {"$ref": "#/definitions/a"}, {"type": "array", "minItems": 10**9}, {"pattern": "^(((a+)+)+)$", "type": "string"},
    'root ::= "a"*', "root ::= [^\\x00-\\U0010ffff]", "root ::= root", "{{ messages }}", "abacus+strong",
    {"temperature": 2, "steer": "2 dense"}, "generated", "10-14", "-1", "NaN",
)  # fmt: skip
HEADERS = (
    {"Host": "evil.example"}, {"Host": "[::1"}, {"Origin": "http://evil.example"}, {"Origin": "null"},
    {"Content-Type": "text/plain"}, {"Content-Type": "multipart/form-data; boundary=\xff"}, {"Accept": "*"},
    {"Authorization": "Bearer \xe9"}, {"Authorization": "Basic"}, {"X-Api-Key": ""}, {"X": "a" * 5000},
    {"Content-Encoding": "gzip"}, {"Expect": "100-continue"}, {"Connection": "close"}, {"Cookie": "a=\xff"},
)  # fmt: skip
RAW_PARTS = (
    b"GET / HTTP/1.1\r\n", b"POST /completion HTTP/1.1\r\n", b"Host: localhost\r\n", b"Content-Length: 5\r\n",
    b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n", b"5\r\nhello\r\n",
    b"ffffffffffffffff\r\n",
    b"0\r\n\r\n", b"\0\xff", b"GET /%00%ff%2e%2e/%2e%2e HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\n", b"{" * 50,
    b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
)  # fmt: skip
EXPLAINED = (501, 503)  # what is not supported, a full queue
SLOW_SECONDS = 0.002  # between the pieces of a slow body


@dataclass(frozen=True)
class Sent:
    """A request to send. pieces: how many pieces its body comes in; 1 has a Content-Length, more are chunked."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    pieces: int = 1

    def send(self, http: httpx.Client) -> httpx.Response:
        headers = {name.encode("latin-1"): value.encode("latin-1") for name, value in self.headers.items()}
        content = self.body if self.pieces == 1 else self._chunks()
        return http.request(self.method, self.path, content=content, headers=headers)

    def _chunks(self) -> Iterator[bytes]:
        size = len(self.body) // self.pieces + 1
        for start in range(0, len(self.body), size):
            time.sleep(SLOW_SECONDS)
            yield self.body[start : start + size]


def drawn_request(draw: random.Random) -> Sent:
    path = draw.choice(list(VALID))
    fields = copy.deepcopy(draw.choice(VALID[path]))
    for _ in range(draw.choice((0, 1, 1, 2, 4))):
        _change(fields, draw.choice(VALID[path]), draw)
    whole: Any = [fields] if path.endswith(("/apply", "/lora-adapters")) else fields
    body = json.dumps(whole).encode()
    for _ in range(draw.choice((0,) * 8 + (1, 5))):
        at = draw.randrange(len(body))
        body = body[:at] + bytes([draw.randrange(256)]) + body[at + draw.randrange(2) :]
    headers = dict(draw.choice(HEADERS)) if draw.random() < 0.1 else {}
    if draw.random() < 0.05:
        path = draw.choice((path + "/", "/" + path, path.upper(), path + "/../health", path + "?a=%ff", "/nothing"))
    method = draw.choice(("GET", "PUT", "DELETE", "OPTIONS", "HEAD")) if draw.random() < 0.05 else "POST"
    return Sent(method, path, body, headers, pieces=draw.choice((1,) * 9 + (3,)))


def _change(fields: dict[str, Any], other: dict[str, Any], draw: random.Random) -> None:
    """Take over a field of another request, or replace, double or drop one at any depth."""
    places = list(_places(fields))
    if not places or draw.random() < 0.4:
        fields |= copy.deepcopy({name: other[name] for name in draw.sample(list(other), min(1, len(other)))})
        return
    holder, key = draw.choice(places)
    alike = [value for value in VALUES if type(value) is type(holder[key])]
    if draw.random() < 0.2:
        del holder[key]
    elif isinstance(holder, list) and draw.random() < 0.2:
        holder += copy.deepcopy(holder[key : key + 1]) * draw.choice((1, 70))
    else:
        holder[key] = copy.deepcopy(draw.choice(alike if alike and draw.random() < 0.7 else VALUES))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every dictionary and list in a value, with each of its keys."""
    for key in list(value if isinstance(value, dict) else range(len(value))):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def send_bytes(port: int, draw: random.Random) -> None:
    with suppress(TimeoutError, ConnectionError), socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.settimeout(0.02)
        connection.sendall(b"".join(draw.choice(RAW_PARTS) for _ in range(draw.randint(1, 8))))
        connection.recv(4096)


@pytest.mark.parametrize("seed", range(2))
def test_no_request_is_a_defect(server: Server, seed: int) -> None:
    draw = random.Random(seed)
    with server.client as http:
        for _ in range(200):
            sent = drawn_request(draw)
            response = sent.send(http)
            assert response.status_code < 500 or response.status_code in EXPLAINED, (sent, response.text)
            if response.status_code >= 400 and sent.method != "HEAD":
                error = response.json()["error"]
                assert "\n" not in (error if isinstance(error, str) else error["message"]), sent
        http.post("/control-vectors/apply", json=[])
        assert http.get("/health").status_code == 200
        assert http.post("/completion", json={"prompt": "1 + 1", "n_predict": 2}).status_code == 200


def test_most_drawn_requests_reach_the_engine(server: Server) -> None:
    """Else the test above would say little."""
    draw = random.Random(9)
    with server.client as http:
        statuses = [drawn_request(draw).send(http).status_code for _ in range(60)]
        http.post("/control-vectors/apply", json=[])
    assert statuses.count(200) > 15
    assert any(400 <= status < 500 for status in statuses)


def test_no_bytes_end_the_server(server: Server, http: httpx.Client) -> None:
    draw = random.Random(0)
    for _ in range(100):
        send_bytes(server.port, draw)
    assert http.get("/health").status_code == 200


def test_paths_lead_nowhere_else(http: httpx.Client, server: Server) -> None:
    outside = ("/page/..%2f..%2f..%2fsetup.cfg", "/page/%2e%2e/server.py", "/page//etc/passwd")
    for path in (*outside, "/v1/models/%00", "/%ff"):
        assert http.get(server.url + path).status_code in (400, 404)
