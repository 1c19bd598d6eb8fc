"""A server's life: its start, what it refuses to start with, its end; and what it loads."""

import asyncio
import logging
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from paths import ABACUS, DENSE
from serving_server import KEY, QUESTION, Start

from edge_steer.serving.loading import refusing_while_loading
from edge_steer.serving.server import is_no_client_that_left


def refused(*arguments: str) -> str:
    """The one line with which a start ends."""
    command = [sys.executable, "-m", "edge_steer", "serve", str(ABACUS), "--port", "0", "--threads", "1", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    line = ended.stderr.splitlines()[-1]
    assert line.startswith("edge-steer: ")
    assert "Traceback" not in ended.stderr
    return line


def test_a_second_start_on_a_used_port_says_so_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        line = refused("--port", str(port))
    assert f"127.0.0.1:{port}" in line
    assert "in use" in line


def test_while_the_model_loads_everyone_is_told_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with refusing_while_loading(listening):
            for response in (httpx.get(f"{url}/health"), httpx.post(f"{url}/completion", content=b"a" * 2**20)):
                assert response.status_code == 503
                assert response.headers["retry-after"] == "1"
                error = response.json()["error"]
                assert (error["code"], error["message"], error["type"]) == (503, "Loading model", "unavailable_error")
            with socket.create_connection(listening.getsockname()) as silent:
                assert httpx.get(f"{url}/health").status_code == 503
                silent.close()
        later = socket.create_connection(listening.getsockname())
        listening.setblocking(True)
        listening.accept()[0].close()
        later.close()


def test_page_slots_and_metrics_can_be_left_out(start: Start) -> None:
    with start("--no-page", "--no-slots", "--no-metrics").client as http:
        assert http.get("/").status_code == 404
        assert http.get("/page/style.css").status_code == 404
        assert http.get("/slots").status_code == http.get("/metrics").status_code == 501
        props = http.get("/props").json()
        assert props["endpoint_slots"] is False
        assert (props["model_path"], props["model_ftype"]) == ("abacus-F16.gguf", "F16")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--host", "0.0.0.0"), "no key"),
        (("--admin",), "needs a key"),
        (("--host", "no-such-host.invalid", "--no-auth"), "cannot listen"),
        (("--api-key", " "), "empty"),
        (("--vector", "a=nothing.gguf"), "nothing.gguf"),
        (("--vector", f"a={DENSE}", "--vector", f"a={DENSE}"), "already"),
        (("--vector", f"a b={DENSE}"), "no name"),
        (("--preset", "strong=4 dense"), "no vector 'dense'"),
        (("--vector", f"dense={DENSE}", "--preset", "strong=4 4"), "cannot read the steering"),
        (("--context", "100000000000"), "shorter context"),
    ],
)
def test_a_start_that_cannot_be_is_one_line(arguments: tuple[str, ...], named: str) -> None:
    assert named in refused(*arguments)


def test_the_start_says_what_steers(start: Start) -> None:
    assert "steered by: 0.325 dense at layers [5], phase all" in start("--vector", f"dense={DENSE}").said
    assert "steered by: nothing" in start("--vector", f"dense={DENSE}:0").said


def test_defaults_are_those_of_the_start(start: Start) -> None:
    with start("--temperature", "0", "-n", "5").client as http:
        answer = http.post("/completion", json={"prompt": QUESTION}).json()
        assert answer["tokens_predicted"] == 5
        assert answer["generation_settings"]["temperature"] == 0
        assert http.post("/completion", json={"prompt": QUESTION, "n_predict": 3}).json()["tokens_predicted"] == 3


def test_told_to_end_it_finishes_what_runs(start: Start) -> None:
    server = start("--parallel", "2")
    answers: list[httpx.Response] = []

    def ask() -> None:
        with server.client as http:
            answers.append(http.post("/completion", json={"prompt": QUESTION, "n_predict": 600, "ignore_eos": True}))

    asking = threading.Thread(target=ask)
    asking.start()
    with server.client as http:
        while not any(slot["is_processing"] for slot in http.get("/slots").json()):
            time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    asking.join()
    assert answers[0].json()["tokens_predicted"] == 600
    server.process.wait(20)
    with pytest.raises(httpx.ConnectError), server.client as http:
        http.get("/health")


def test_it_waits_no_longer_than_it_is_told(start: Start) -> None:
    server = start("--parallel", "1", "--stop-seconds", "1")
    body = {"prompt": [QUESTION] * 50, "n_predict": 900, "ignore_eos": True, "stream": True}
    with server.client as http, http.stream("POST", "/completion", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(20)
        assert time.monotonic() - began < 10


def test_killed_while_it_answers_it_starts_again(start: Start) -> None:
    server = start()
    body = {"prompt": QUESTION, "stream": True}
    with server.client as http, http.stream("POST", "/completion", json=body) as running:
        kept = running.iter_lines()
        next(kept)
        server.process.kill()
        server.process.wait()
    with start("--port", str(server.port)).client as http:
        assert http.get("/health").status_code == 200
        answer = http.post("/completion", json={"prompt": QUESTION, "n_predict": 4, "ignore_eos": True})
        assert answer.json()["tokens_predicted"] == 4


def test_a_full_queue_says_when_to_come_again(start: Start) -> None:
    server = start("--parallel", "1", "--queue", "1")
    body = {"prompt": QUESTION, "n_predict": 900, "ignore_eos": True, "stream": True}
    with server.client as http, http.stream("POST", "/completion", json=body) as first:
        kept = first.iter_lines()
        next(kept)
        response = http.post("/v1/completions", json={"prompt": [QUESTION] * 2, "max_tokens": 1})
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.json()["error"]["type"] == "unavailable_error"
    with server.client as http:
        assert http.post("/v1/completions", json={"prompt": [QUESTION] * 2, "max_tokens": 1}).status_code == 200


def test_a_server_loads_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from edge_steer.frontends.serve import serve\n"
        "from edge_steer.serving import server\n"
        "from edge_steer.core.backend import EngineOptions\n"
        "from edge_steer.serving.server import ServerOptions, application, served_vectors\n"
        "from edge_steer.vectors.named import NamedFile\n"
        "from edge_steer.serving.questions import Service\n"
        "from edge_steer.models.load import load\n"
        f"with load({str(ABACUS)!r}, options=EngineOptions(threads=1, parallel=1)) as engine:\n"
        f"    options = ServerOptions(vectors=(NamedFile('dense', {str(DENSE)!r}),))\n"
        "    vectors = served_vectors(engine.model, options)\n"
        "    application(Service(engine, vectors, ['m'], options.access, queue=1, defaults={}), options)\n"
        "print(sorted({'torch', 'transformers', 'opentelemetry.sdk'} & set(sys.modules)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_a_key_is_nowhere_in_what_it_says(start: Start) -> None:
    server = start("--api-key", KEY)
    assert KEY not in server.said


async def write_to_one_that_left() -> None:
    """Several pieces for a connection that its client has just reset."""
    closed = asyncio.Event()

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await closed.wait()
        for _ in range(20):
            writer.write(b"a piece")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        client = socket.create_connection(server.sockets[0].getsockname())
        await asyncio.sleep(0.05)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        closed.set()
        await asyncio.sleep(0.05)


def test_a_client_that_left_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(write_to_one_that_left())
    said = [record for record in caplog.records if record.name == "asyncio" and record.levelno >= logging.WARNING]
    assert said
    assert not any(is_no_client_that_left(record) for record in said)
    assert is_no_client_that_left(logging.makeLogRecord({"msg": "the event loop is closed"}))
