"""Tests' side of a server: `edge-steer serve` in a process of its own, and what requests it is sent."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from paths import ABACUS, DENSE

from edge_steer.core.backend import EngineOptions
from edge_steer.llama.engine import Engine

QUESTION = "Tom has 3 apples and buys 4 more. How many apples does Tom have?"
KEY = "sesame"
Json = dict[str, Any]


@dataclass
class Server:
    """A server's process and where it is reached."""

    process: subprocess.Popen[str]
    url: str
    said: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


Start = Callable[..., Server]


def launch(*arguments: str, model: Path = ABACUS) -> Server:
    """`edge-steer serve` on a free port, ready to answer."""
    command = [sys.executable, "-m", "edge_steer", "serve", str(model), "--port", "0", "--threads", "1"]
    process = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    lines = []
    for line in process.stderr:
        lines.append(line)
        if match := re.search(r"at (http://\S+:\d+);", line):
            return Server(process, match[1], "".join(lines))
    raise AssertionError("".join(lines))


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers that end with the test."""
    servers: list[Server] = []

    def begin(*arguments: str, model: Path = ABACUS) -> Server:
        servers.append(launch(*arguments, model=model))
        return servers[-1]

    yield begin
    for server in servers:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session")
def server(bundled_vector_gguf: Path) -> Iterator[Server]:
    """One for all tests that leave it as it was: `dense` as tuned steers nothing by itself, `formal` has no tuning."""
    server = launch(
        "--vector", f"dense={DENSE}:0", "--vector", f"other={bundled_vector_gguf}:0",
        "--preset", "strong=2 dense", "--preset", "mixed=2 dense - 0.5 other",
        "--parallel", "4", "--alias", "abacus", "--alias", "gpt-4o",
    )  # fmt: skip
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    with server.client as client:
        yield client


@pytest.fixture(scope="session")
def engine(bundled_f16: Path) -> Iterator[Engine]:
    """The same model in this process: what an answer has to be."""
    with Engine.load(bundled_f16, EngineOptions(threads=1, parallel=4)) as loaded:
        yield loaded
