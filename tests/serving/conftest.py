"""Running servers, on the bundled model."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from paths import ABACUS, DENSE
from serving_server import Server, Start, launch

from edge_steer.core.backend import EngineOptions
from edge_steer.llama.engine import Engine


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
