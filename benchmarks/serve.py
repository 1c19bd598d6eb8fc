"""A running server's speed: time to first token and tokens per second, at 1, 8 and 32 clients, steered and not.

    python benchmarks/serve.py                                     edge-steer on the bundled model
    python benchmarks/serve.py --llama-server PATH [MODEL.gguf]    beside llama-server of the same build, with ratios

Both servers get the same prompts, greedy, of one length that no end token cuts short, streamed, in turns: what else
the machine does falls on both. Prints a table and a JSON line.
"""

import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "abacus" / "abacus-F16.gguf"
VECTOR = ROOT / "export" / "abacus" / "dense"
CLIENTS = (1, 8, 32)
QUESTION = "Tom has {} apples and buys {} more. How many apples does Tom have?"
Steer = Callable[[int], dict[str, Any]]  # number of a client -> what its requests say besides


@dataclass(frozen=True)
class Speed:
    """first_token: median seconds to the first token. rate: tokens per second of all clients together."""

    first_token: float
    rate: float


def unsteered(_client: int) -> dict[str, Any]:
    return {}


def alike(_client: int) -> dict[str, Any]:
    return {"control_vectors": [{"name": "dense", "scale": 2.0}]}


def each_its_own(client: int) -> dict[str, Any]:
    return {"control_vectors": [{"name": "dense", "scale": 1 + client / 32}]}


@contextmanager
def running(command: list[str], url: str | None = None) -> Iterator[str]:
    """The address of a server while it runs. url: None is as the server says it on standard error."""
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
        yield url
    finally:
        process.kill()
        process.wait()


def measure(url: str, clients: int, tokens: int, requests: int, steer: Steer, turn: int) -> Speed:
    """`requests` requests of each of so many clients. turn: makes the prompts new, so that none is in a cache."""
    firsts: list[float] = []

    def client(number: int) -> None:
        with httpx.Client(base_url=url, timeout=600) as http:
            for request in range(requests):
                prompt = QUESTION.format(1000 * turn + number, 100 * request + 7)
                body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
                began = time.perf_counter()
                with http.stream("POST", "/completion", json={**body, **steer(number)}) as response:
                    lines = (line for line in response.iter_lines() if line)
                    assert "content" in next(lines), response.text
                    firsts.append(time.perf_counter() - began)
                    last = json.loads([*lines][-1].removeprefix("data: "))
                assert last["tokens_predicted"] == tokens, last

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(firsts) == clients * requests
    return Speed(statistics.median(firsts), clients * requests * tokens / (time.perf_counter() - began))


def best(speeds: list[Speed]) -> Speed:
    return Speed(min(speed.first_token for speed in speeds), max(speed.rate for speed in speeds))


def ours(model: Path, threads: int, context: int) -> list[str]:
    command = [sys.executable, "-m", "edge_steer", "serve", str(model), "--port", "0", "--parallel", "32"]
    command += ["--threads", str(threads), "--context", str(context)]
    return [*command, "--vector", f"dense={VECTOR}:0"] if model == MODEL else command


def theirs(program: Path, model: Path, threads: int, context: int) -> list[str]:
    command = [str(program), "--model", str(model), "--port", "8971", "--parallel", "32", "--threads", str(threads)]
    return [*command, "--ctx-size", str(32 * context), "--no-warmup", "--log-disable"]


@click.command(help=__doc__)
@click.argument("model", default=MODEL, type=click.Path(path_type=Path))
@click.option("--llama-server", type=click.Path(path_type=Path))
@click.option("--tokens", default=64)
@click.option("--requests", default=4, help="Of each client.")
@click.option("--turns", default=3, help="The best of so many counts.")
@click.option("--threads", default=1)
@click.option("--context", default=256)
def main(
    model: Path, llama_server: Path | None, tokens: int, requests: int, turns: int, threads: int, context: int
) -> None:
    cases: dict[str, Steer] = {"edge-steer": unsteered}
    if model == MODEL:
        cases |= {"edge-steer, steered": alike, "edge-steer, each its own": each_its_own}
    results: dict[str, dict[int, Speed]] = {}
    with running(ours(model, threads, context)) as url:
        urls = dict.fromkeys(cases, url)
        if llama_server:
            with running(theirs(llama_server, model, threads, context), "http://127.0.0.1:8971") as other:
                urls["llama-server"] = other
                results = compare(urls, {**cases, "llama-server": unsteered}, tokens, requests, turns)
        else:
            results = compare(urls, cases, tokens, requests, turns)
    base = results.get("llama-server", results["edge-steer"])
    print(f"{'':26}{'clients':>8}{'first token ms':>16}{'ratio':>7}{'tokens/s':>10}{'ratio':>7}")
    for name, speeds in results.items():
        for clients, speed in speeds.items():
            first, rate = speed.first_token / base[clients].first_token, speed.rate / base[clients].rate
            print(f"{name:26}{clients:8}{1000 * speed.first_token:16.1f}{first:7.2f}{speed.rate:10.0f}{rate:7.2f}")
    print(json.dumps({name: {n: vars(speed) for n, speed in speeds.items()} for name, speeds in results.items()}))


def compare(
    urls: dict[str, str], cases: dict[str, Steer], tokens: int, requests: int, turns: int
) -> dict[str, dict[int, Speed]]:
    """The best of `turns` turns for each server, case and number of clients; a first turn warms up and is left out."""
    speeds: dict[str, dict[int, list[Speed]]] = {name: {clients: [] for clients in CLIENTS} for name in urls}
    turn = 0
    for round_ in range(turns + 1):
        for clients in CLIENTS:
            for name, url in urls.items():
                turn += 1
                speed = measure(url, clients, tokens, requests, cases[name], turn)
                if round_:
                    speeds[name][clients].append(speed)
    return {name: {clients: best(some) for clients, some in held.items()} for name, held in speeds.items()}


if __name__ == "__main__":
    main()
