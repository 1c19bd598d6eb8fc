"""Many clients at once, some of whom go away: each answer is the one computed alone, and nothing is left behind."""

import json
import random
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from paths import DENSE
from serving_server import Json, Server, launch

from edge_steer.core.backend import EngineOptions, Request
from edge_steer.core.steering import Steering
from edge_steer.core.vector import Phase
from edge_steer.llama.engine import Engine
from edge_steer.vectors.read import load

CLIENTS = 16
REQUESTS = 160
EXACT = EngineOptions(threads=1, parallel=8, kv_type="f32", flash_attention="off")
PHASES: tuple[Phase, ...] = ("all", "generated")
STRENGTHS = (None, -1.0, 0.5, 2.0)


@dataclass(frozen=True)
class Call:
    """A request, and whether its client waits for the answer."""

    question: str
    strength: float | None
    phase: Phase
    stream: bool
    leaves: bool

    @property
    def body(self) -> Json:
        vectors = [] if self.strength is None else [{"name": "dense", "scale": self.strength, "phase": self.phase}]
        messages = [{"role": "user", "content": self.question}]
        return {
            "messages": messages,
            "temperature": 0,
            "max_tokens": 32,
            "stream": self.stream,
            "control_vectors": vectors,
        }


def calls(count: int) -> list[Call]:
    draw = random.Random(5)
    return [
        Call(
            f"Tom has {draw.randint(2, 5)} apples and buys {draw.randint(2, 5)} more. How many apples does Tom have?",
            draw.choice(STRENGTHS),
            draw.choice(PHASES),
            draw.random() < 0.5,
            draw.random() < 0.2,
        )
        for _ in range(count)
    ]


def answer(http: httpx.Client, call: Call) -> str | None:
    """The text; None where the client left."""
    if call.leaves and not call.stream:
        with suppress(httpx.TimeoutException):
            http.post("/v1/chat/completions", json=call.body, timeout=0.02)
        return None
    if not call.stream:
        return str(http.post("/v1/chat/completions", json=call.body).json()["choices"][0]["message"]["content"])
    text = ""
    with http.stream("POST", "/v1/chat/completions", json=call.body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
                if call.leaves and text:
                    return None
    return text


@pytest.fixture(scope="module")
def exact(bundled_f32: Path) -> Iterator[Server]:
    """Weights and cache in float32, so that a batch changes no greedy choice."""
    options = ("--parallel", "8", "--kv-type", "f32", "--flash-attention", "off")
    server = launch("--vector", f"dense={DENSE}:0", *options, model=bundled_f32)
    yield server
    server.process.kill()
    server.process.wait()


def soak(server: Server, asked: list[Call], clients: int = CLIENTS) -> dict[Call, list[str | None]]:
    """What each call got, asked by so many clients at once."""
    waiting = iter(asked)
    answers: dict[Call, list[str | None]] = {call: [] for call in asked}
    lock = threading.Lock()
    errors: list[Exception] = []

    def client() -> None:
        with server.client as http:
            while True:
                with lock:
                    call = next(waiting, None)
                if call is None:
                    return
                try:
                    text = answer(http, call)
                except Exception as error:
                    errors.append(error)
                    return
                with lock:
                    answers[call].append(text)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]
    return answers


def expected_answers(engine: Engine, asked: Iterable[Call]) -> dict[Call, str]:
    """What each call has to get: the answer computed alone."""
    vector = load(DENSE)
    alone: dict[Request, str] = {}
    expected = {}
    for call in asked:
        steering = () if call.strength is None else (Steering(vector, call.strength, None, call.phase),)
        request = Request(engine.chat([{"role": "user", "content": call.question}]), 32, steering)
        if request not in alone:
            alone[request] = engine.generate([request])[0].text
        expected[call] = alone[request]
    return expected


def test_each_answer_is_the_one_computed_alone_and_no_sequence_is_left(exact: Server, bundled_f32: Path) -> None:
    answers = soak(exact, calls(REQUESTS))
    with Engine.load(bundled_f32, EXACT) as engine:
        expected = expected_answers(engine, answers)
    for call, texts in answers.items():
        assert {text for text in texts if text is not None} <= {expected[call]}, call
    assert sum(text is not None for texts in answers.values() for text in texts) > REQUESTS / 2
    with exact.client as http:
        for _ in range(100):
            if not any(slot["is_processing"] for slot in http.get("/slots").json()):
                break
        else:
            pytest.fail("a sequence still runs")
        assert "requests_deferred 0.0" in http.get("/metrics").text


def test_memory_stays_flat(exact: Server) -> None:
    process = psutil.Process(exact.process.pid)
    soak(exact, calls(40))
    before = process.memory_info().rss
    draw = random.Random(6)
    for _ in range(3):
        soak(exact, [Call(call.question, draw.uniform(-3, 3), "all", call.stream, call.leaves) for call in calls(40)])
    assert process.memory_info().rss - before < 16 * 2**20
