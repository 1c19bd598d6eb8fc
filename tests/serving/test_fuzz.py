"""Requests that nobody should send: the server answers each with a line, never with a defect, and goes on."""

import json
import random
import socket
from contextlib import suppress
from typing import Any

import httpx
import pytest
from serving_server import QUESTION, Server

PATHS = (
    "/v1/chat/completions", "/v1/completions", "/completion", "/tokenize", "/detokenize", "/apply-template",
    "/control-vectors/apply", "/v1/control-vectors/load", "/api/chat", "/api/generate", "/api/show", "/props",
)  # fmt: skip
FIELDS = (
    "messages", "prompt", "model", "stream", "n", "max_tokens", "temperature", "top_k", "top_p", "seed", "logprobs",
    "top_logprobs", "logit_bias", "grammar", "json_schema", "response_format", "control_vectors", "steering", "tools",
    "echo", "content", "tokens", "options", "format", "samplers", "dry_multiplier", "dry_sequence_breakers", "mirostat",
    "n_probs", "response_fields", "chat_template_kwargs", "think", "system", "stop",
    "typical_p", "xtc_probability", "min_keep",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**70), 0.5, -0.0, 1e308, "", "a", "\0", "\ud7ff", "é" * 300, QUESTION,
    [], [[]], [None], [1, 2, 3], ["a"], [[1, "a"]], {}, {"a": {}}, {"type": "object"}, {"1": -100}, [[1, -1.0]],
    [{"role": "user", "content": "hi"}], [{"role": "assistant", "content": ""}], [{"role": 1}],
    [{"name": "dense", "scale": 1e30}], [{"name": "dense", "layers": [5, 5, -1]}], "1e40 dense", "4 dense - dense",
    {"vectors": [{"name": "dense"}]}, {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}},
    {"$ref": "#/definitions/a"}, {"type": "array", "minItems": 10**9}, {"pattern": "^(((a+)+)+)$", "type": "string"},
    'root ::= "a"*', "root ::= [^\\x00-\\U0010ffff]", "{{ messages }}", {"temperature": 2, "steer": "2 dense"},
)  # fmt: skip
RAW_PARTS = (
    b"GET / HTTP/1.1\r\n", b"POST /completion HTTP/1.1\r\n", b"Host: localhost\r\n", b"Content-Length: 5\r\n",
    b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n", b"5\r\nhello\r\n",
    b"ffffffffffffffff\r\n",
    b"0\r\n\r\n", b"\0\xff", b"GET /%00%ff%2e%2e/%2e%2e HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\n", b"{" * 50,
    b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
)  # fmt: skip
SMALL = {"max_tokens": 4, "num_predict": 4}


def body(draw: random.Random) -> bytes:
    fields = {draw.choice(FIELDS): draw.choice(VALUES) for _ in range(draw.randint(0, draw.choice((1, 5))))}
    if draw.random() < 0.7:
        fields |= {"messages": [{"role": "user", "content": "hi"}]} if draw.random() < 0.5 else {"prompt": "hi"}
    fields.setdefault("max_tokens", 3)
    raw = json.dumps(fields).encode()
    for _ in range(draw.choice((0, 0, 0, 1, 5))):
        at = draw.randrange(len(raw))
        raw = raw[:at] + bytes([draw.randrange(256)]) + raw[at + draw.randrange(2) :]
    return raw


@pytest.mark.parametrize("seed", range(4))
def test_no_body_is_a_defect(server: Server, seed: int) -> None:
    draw = random.Random(seed)
    with server.client as http:
        for _ in range(150):
            path, raw = draw.choice(PATHS), body(draw)
            response = http.post(path, content=raw, timeout=60)
            assert response.status_code < 500 or response.status_code in (501, 503), (path, raw, response.text)
            if response.status_code >= 400:
                error = response.json()["error"]
                assert "\n" not in (error if isinstance(error, str) else error["message"]), (path, raw)
        http.post("/control-vectors/apply", json=[])
        assert http.get("/health").status_code == 200
        assert http.post("/completion", json={"prompt": "1 + 1", "n_predict": 2}).status_code == 200


@pytest.mark.parametrize("seed", range(2))
def test_no_bytes_end_the_server(server: Server, http: httpx.Client, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(100):
        with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
            connection.sendall(b"".join(draw.choice(RAW_PARTS) for _ in range(draw.randint(1, 8))))
            connection.settimeout(0.02)
            with suppress(TimeoutError, ConnectionResetError):
                connection.recv(4096)
    assert http.get("/health").status_code == 200


def test_paths_lead_nowhere_else(http: httpx.Client, server: Server) -> None:
    outside = ("/page/..%2f..%2f..%2fsetup.cfg", "/page/%2e%2e/server.py", "/page//etc/passwd")
    for path in (*outside, "/v1/models/%00", "/%ff"):
        assert http.get(server.url + path).status_code in (400, 404)
