"""A running server's speed: time to first token and tokens per second, at 1, 8 and 32 clients, steered and not.

    python benchmarks/serve.py                                     edge-steer on the bundled model
    python benchmarks/serve.py --llama-server PATH [MODEL.gguf]    beside llama-server of the same build, with ratios

Both servers get the same prompts, greedy, of one length that no end token cuts short, streamed, in turns, every
second round the other way about: what else the machine does falls on both. Every prompt is computed whole
(`cache_prompt` is false), for what two caches take over is not the same. Two seconds of quiet and two short requests
of each client come before each turn: a server whose clients go from one steering to several makes its context again
once, and back when it rests. A model without a vector gets a random direction. Prints the median of the rounds, with
the ratio of each round's two neighbours as median, smallest and largest, and a JSON line.
"""

import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
import psutil

from edge_steer.core.vector import SteeringVector
from edge_steer.models.load import load
from edge_steer.vectors.write import save

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "abacus" / "abacus-F16.gguf"
VECTOR = ROOT / "export" / "abacus" / "dense"
QUESTION = "{} apples are Tom's, and he buys {} more. How many apples does Tom have?"
Steer = Callable[[int], dict[str, Any]]  # number of a client -> what its requests say besides


@dataclass(frozen=True)
class Speed:
    """first_token: median seconds to the first token. rate: tokens per second of all clients together. processor:
    milliseconds of the server's processor time a token, which other programs of the machine do not change."""

    first_token: float
    rate: float
    processor: float


@dataclass(frozen=True)
class Server:
    """A running server: where it is reached, and its process."""

    url: str
    process: psutil.Process

    @property
    def seconds(self) -> float:
        """Of processor time so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


def unsteered(_client: int) -> dict[str, Any]:
    return {}


def alike(_client: int) -> dict[str, Any]:
    return {"control_vectors": [{"name": "dense", "scale": 2.0}]}


def each_its_own(client: int) -> dict[str, Any]:
    return {"control_vectors": [{"name": "dense", "scale": 1 + client / 32}]}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def running(command: list[str], url: str | None = None) -> Iterator[Server]:
    """A server while it runs. url: None is as the server says it on standard error."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr
    try:
        if url is None:
            said = (re.search(r"at (http://\S+:\d+);", line) for line in process.stderr)
            url = next(match[1] for match in said if match)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        for _ in range(600):
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield Server(url, psutil.Process(process.pid))
    finally:
        process.kill()
        process.wait()


def first_token(http: httpx.Client, body: dict[str, Any]) -> float:
    """Seconds until the first token of a stream, which is read to its end."""
    began = time.perf_counter()
    try:
        with http.stream("POST", "/completion", json=body) as response:
            lines = (line for line in response.iter_lines() if line)
            assert "content" in next(lines), response.text
            seconds = time.perf_counter() - began
            last = json.loads([*lines][-1].removeprefix("data: "))
    except httpx.RemoteProtocolError:  # llama-server closes a connection now and then before it answers
        return first_token(http, body)
    assert last["tokens_predicted"] == body["n_predict"] and not last["timings"]["cache_n"], last
    return seconds


def measure(server: Server, clients: int, tokens: int, requests: int, steer: Steer) -> Speed:
    """`requests` requests of each of so many clients."""
    firsts: list[float] = []
    body = {"n_predict": tokens, "temperature": 0, "ignore_eos": True, "stream": True, "cache_prompt": False}

    def client(number: int) -> None:
        with httpx.Client(base_url=server.url, timeout=600) as http:
            for request in range(requests):
                prompt = QUESTION.format(1000 + 32 * request + number, 100 * request + 107)
                firsts.append(first_token(http, {**body, "prompt": prompt, **steer(number)}))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    began, spent = time.perf_counter(), server.seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(firsts) == clients * requests
    total = clients * requests * tokens
    processor = 1000 * (server.seconds - spent) / total
    return Speed(statistics.median(firsts), total / (time.perf_counter() - began), processor)


@dataclass(frozen=True)
class Ratio:
    """Of one server to another, round by round."""

    rounds: tuple[float, ...]

    def __str__(self) -> str:
        return f"{statistics.median(self.rounds):.2f} ({min(self.rounds):.2f}-{max(self.rounds):.2f})"


def vector_for(model: Path, folder: Path) -> Path:
    """The bundled model's vector; for another model a weak random direction in its middle block."""
    if model == MODEL:
        return VECTOR
    with load(model) as engine:
        identity = engine.model
    direction = np.random.default_rng(0).standard_normal(identity.hidden_size).astype(np.float32) / 100
    return save(SteeringVector({identity.block_count // 2: direction}, identity), folder / "random.safetensors")


def ours(model: Path, vector: Path, threads: int, context: int) -> list[str]:
    command = [sys.executable, "-m", "edge_steer", "serve", str(model), "--port", "0", "--parallel", "32"]
    command += ["--threads", str(threads), "--context", str(context)]
    return [*command, "--vector", f"dense={vector}:0"]


def theirs(program: Path, model: Path, port: int, threads: int, context: int) -> list[str]:
    command = [str(program), "--model", str(model), "--port", str(port), "--parallel", "32", "--threads", str(threads)]
    return [*command, "--ctx-size", str(32 * context), "--no-warmup", "--log-disable"]


@click.command(help=__doc__)
@click.argument("model", default=MODEL, type=click.Path(path_type=Path))
@click.option("--llama-server", type=click.Path(path_type=Path))
@click.option("--tokens", default=64)
@click.option("--requests", default=4, help="Of each client.")
@click.option("--rounds", default=5)
@click.option("--threads", default=1)
@click.option("--context", default=256)
@click.option("--clients", "counts", multiple=True, type=int, default=(1, 8, 32), show_default=True)
def main(
    model: Path,
    llama_server: Path | None,
    tokens: int,
    requests: int,
    rounds: int,
    threads: int,
    context: int,
    counts: tuple[int, ...],
) -> None:
    cases: dict[str, Steer] = {"edge-steer": unsteered, "steered": alike, "each its own": each_its_own}
    with ExitStack() as servers:
        vector = vector_for(model, Path(servers.enter_context(tempfile.TemporaryDirectory())))
        running_servers = dict.fromkeys(cases, servers.enter_context(running(ours(model, vector, threads, context))))
        if llama_server:
            port = free_port()
            command = theirs(llama_server, model, port, threads, context)
            running_servers["llama-server"] = servers.enter_context(running(command, f"http://127.0.0.1:{port}"))
            cases["llama-server"] = unsteered
        speeds = compare(running_servers, cases, counts, tokens, requests, rounds)
    print(f"{'':14}{'clients':>8}{'first token ms':>20}{'tokens/s':>20}{'processor ms/token':>20}")
    for name, counted in speeds.items():
        for clients, measured in counted.items():
            first, rate, processor = (statistics.median(column) for column in zip(*map(astuple, measured), strict=True))
            print(f"{name:14}{clients:8}{1000 * first:20.1f}{rate:20.0f}{processor:20.3f}")
    pairs = [("edge-steer", "llama-server"), ("steered", "edge-steer"), ("each its own", "steered")]
    for name, other in [pair for pair in pairs if pair[1] in speeds]:
        print(f"\n{name} / {other}")
        for clients in counts:
            rounds_ = zip(map(astuple, speeds[name][clients]), map(astuple, speeds[other][clients]), strict=True)
            ratios = [[mine / its for mine, its in zip(*both, strict=True)] for both in rounds_]
            print(f"{clients:22}" + "".join(f"{Ratio(column)!s:>20}" for column in zip(*ratios, strict=True)))
    figures = {name: {n: [*map(asdict, some)] for n, some in counted.items()} for name, counted in speeds.items()}
    print(json.dumps(figures))


def compare(
    servers: dict[str, Server],
    cases: dict[str, Steer],
    counts: tuple[int, ...],
    tokens: int,
    requests: int,
    rounds: int,
) -> dict[str, dict[int, list[Speed]]]:
    """Server or case -> clients -> its speed in each round; a first round warms up and is left out."""
    speeds: dict[str, dict[int, list[Speed]]] = {name: {clients: [] for clients in counts} for name in servers}
    for round_ in range(rounds + 1):
        for clients in counts:
            for name, server in sorted(servers.items(), reverse=bool(round_ % 2)):
                time.sleep(2)
                measure(server, clients, 2, 2, cases[name])
                speed = measure(server, clients, tokens, requests, cases[name])
                if round_:
                    speeds[name][clients].append(speed)
    return speeds


if __name__ == "__main__":
    main()
