"""Ollama's endpoints on a running server, and its own Python client."""

import json
from typing import Any

import httpx
import ollama
import pytest
from serving_server import QUESTION, Json, Server

from edge_steer.core.backend import Request
from edge_steer.llama.engine import Engine

GREEDY: Json = {"temperature": 0, "num_predict": 12}
CHAT: Json = {"model": "abacus", "messages": [{"role": "user", "content": QUESTION}], "options": GREEDY}


def lines(http: httpx.Client, path: str, body: Json) -> list[Any]:
    """As Ollama's documentation sends it: no content type that says JSON."""
    response = http.post(path, content=json.dumps(body).encode())
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def alone(engine: Engine) -> str:
    return engine.generate([Request(engine.chat([{"role": "user", "content": QUESTION}]), 12)])[0].text


@pytest.mark.parametrize("name", ["abacus", "abacus:latest", ""])
def test_a_chat_streams_by_default(http: httpx.Client, engine: Engine, name: str) -> None:
    chunks = lines(http, "/api/chat", {**CHAT, "model": name})
    assert "".join(chunk["message"]["content"] for chunk in chunks) == alone(engine)
    assert [chunk["done"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    last = chunks[-1]
    assert (last["done_reason"], last["eval_count"], last["steering"]) == ("length", 12, [])
    assert all(last[name] >= 0 for name in ("total_duration", "prompt_eval_duration", "eval_duration"))


def test_steering_is_an_option(http: httpx.Client) -> None:
    plain = http.post("/api/chat", json={**CHAT, "stream": False}).json()
    for options in ({"steer": "2 dense"}, {"control_vectors": [{"name": "dense", "scale": 2.0}]}):
        steered = http.post("/api/chat", json={**CHAT, "stream": False, "options": {**GREEDY, **options}}).json()
        assert steered["message"]["content"] != plain["message"]["content"]
        assert steered["steering"][0]["scale"] == 2.0
    preset = http.post("/api/chat", json={**CHAT, "stream": False, "model": "abacus+strong"}).json()
    assert preset["message"] == steered["message"]


def test_generate_is_a_chat_of_one_message_or_raw(http: httpx.Client, engine: Engine) -> None:
    body = {"model": "abacus", "prompt": QUESTION, "options": GREEDY, "stream": False}
    assert http.post("/api/generate", json=body).json()["response"] == alone(engine)
    raw = http.post("/api/generate", json={**body, "raw": True}).json()["response"]
    assert raw == engine.generate([Request(engine.encode(QUESTION), 12)])[0].text


def test_a_format_is_a_schema(http: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    options = {"temperature": 0, "num_predict": 60}
    answer = http.post("/api/chat", json={**CHAT, "options": options, "stream": False, "format": schema}).json()
    assert isinstance(json.loads(answer["message"]["content"])["n"], int)


def test_without_a_prompt_the_model_is_loaded(http: httpx.Client) -> None:
    for path in ("/api/chat", "/api/generate"):
        assert http.post(path, json={"model": "abacus"}).json()["done_reason"] == "load"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/chat", {**CHAT, "model": "llama9"}, 404),
        ("/api/chat", {**CHAT, "tools": [{}]}, 501),
        ("/api/chat", {**CHAT, "options": {"steer": "4 dance"}}, 400),
        ("/api/chat", {**CHAT, "options": {"temperature": "hot"}}, 400),
        ("/api/chat", {**CHAT, "options": {"temperature": -1}}, 400),
        ("/api/pull", {"model": "x"}, 501),
        ("/api/embed", {"model": "x"}, 501),
        ("/api/show", {"model": "nothing"}, 404),
    ],
)
def test_errors_are_ollamas(http: httpx.Client, path: str, body: Json, status: int) -> None:
    response = http.post(path, json=body)
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    assert "\n" not in response.json()["error"]


def test_ollamas_own_client(server: Server, engine: Engine) -> None:
    client = ollama.Client(server.url)
    messages = [{"role": "user", "content": QUESTION}]
    assert client.chat("abacus", messages, options=GREEDY).message.content == alone(engine)
    streamed = client.chat("abacus", messages, options=GREEDY, stream=True)
    assert "".join(part.message.content or "" for part in streamed) == alone(engine)
    assert client.generate("abacus", QUESTION, options=GREEDY).response == alone(engine)
    assert {model.model for model in client.list().models} == {"abacus", "gpt-4o", "abacus+strong", "abacus+mixed"}
    assert client.show("abacus").capabilities == ["completion"]
    assert client.ps().models[0].model == "abacus"
    with pytest.raises(ollama.ResponseError, match="there are"):
        client.chat("nothing", messages)
