"""A server under many clients who come, go and send what they should not: does each answer stay what it is alone?

    python benchmarks/serve_soak.py                        1,000 requests of 64 clients, 100,000 fuzzed ones
    python benchmarks/serve_soak.py --requests 200 --fuzzed 5000

First the soak of tests/serving/test_soak.py in full: greedy answers, exact weights and cache, of which each that its
client waits for must equal the one computed alone, with no sequence and no memory left behind. Then the bodies and raw
bytes of tests/serving/test_fuzz.py: no defect (500), no end of the server. Prints counts and a JSON line.
"""

import json
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import click
import httpx
import psutil

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "serving")]
from paths import ABACUS, DENSE  # noqa: E402
from serving_server import Server, launch  # noqa: E402
from test_fuzz import PATHS, RAW_PARTS, body  # noqa: E402
from test_soak import EXACT, STRENGTHS, calls, expected_answers, soak  # noqa: E402

from edge_steer.llama.engine import Engine  # noqa: E402
from edge_steer.models.quantize import quantize  # noqa: E402

RAW_SHARE = 0.05  # of the fuzzed requests that are bytes and no HTTP request


def soaked(server: Server, model: Path, requests: int, clients: int) -> dict[str, object]:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    began = time.perf_counter()
    answers = soak(server, calls(requests), clients)
    seconds = time.perf_counter() - began
    with Engine.load(model, EXACT) as engine:
        expected = expected_answers(engine, answers)
    got = [(call, text) for call, texts in answers.items() for text in texts if text is not None]
    return {
        "requests": requests,
        "strengths": len(STRENGTHS),
        "answers": len(got),
        "answers that differ": sum(text != expected[call] for call, text in got),
        "sequences left": _still_running(server),
        "memory grown MiB": (process.memory_info().rss - before) / 2**20,
        "seconds": seconds,
    }


def _still_running(server: Server) -> int:
    """After a second in which those of clients who left are ended."""
    time.sleep(1)
    with server.client as http:
        return sum(slot["is_processing"] for slot in http.get("/slots").json())


def fuzzed(server: Server, requests: int, clients: int) -> dict[str, object]:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    statuses: Counter[int] = Counter()
    defects: list[str] = []

    def client(seed: int) -> None:
        draw = random.Random(seed)
        with server.client as http:
            for _ in range(requests // clients):
                if draw.random() < RAW_SHARE:
                    _send_bytes(server, draw)
                    continue
                path, raw = draw.choice(PATHS), body(draw)
                try:
                    status = http.post(path, content=raw).status_code
                except httpx.HTTPError as error:
                    defects.append(f"{path} {raw!r}: {type(error).__name__}")
                    continue
                statuses[status] += 1
                if status >= 500 and status not in (501, 503):
                    defects.append(f"{path} {raw!r}: {status}")

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with server.client as http:
        http.post("/control-vectors/apply", json=[])
        answer = http.post("/completion", json={"prompt": "1 + 1", "n_predict": 2})
    grown = (process.memory_info().rss - before) / 2**20
    return {
        "requests": requests // clients * clients,
        "statuses": dict(sorted(statuses.items())),
        "defects": defects,
        "answers afterwards": answer.status_code == 200,
        "sequences left": _still_running(server),
        "memory grown MiB": grown,
    }


def _send_bytes(server: Server, draw: random.Random) -> None:
    with suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        connection.settimeout(0.02)
        connection.sendall(b"".join(draw.choice(RAW_PARTS) for _ in range(draw.randint(1, 8))))
        connection.recv(4096)


@click.command(help=__doc__)
@click.option("--requests", default=1000)
@click.option("--clients", default=64)
@click.option("--fuzzed", "fuzzed_requests", default=100_000)
def main(requests: int, clients: int, fuzzed_requests: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = quantize(ABACUS / "abacus-F16.gguf", "F32", Path(folder) / "abacus-F32.gguf")
        exact = ("--parallel", "8", "--kv-type", "f32", "--flash-attention", "off", "--queue", str(4 * clients))
        server = launch("--vector", f"dense={DENSE}:0", *exact, model=model)
        try:
            results = {"soak": soaked(server, model, requests, clients)}
            print(json.dumps(results["soak"], indent=2))
            if fuzzed_requests:
                results["fuzz"] = fuzzed(server, fuzzed_requests, min(clients, 8))
                print(json.dumps(results["fuzz"], indent=2))
        finally:
            server.process.kill()
            server.process.wait()
    print(json.dumps(results))
    soak_, fuzz = results["soak"], results.get("fuzz", {})
    sys.exit(bool(soak_["answers that differ"] or soak_["sequences left"] or fuzz.get("defects")))


if __name__ == "__main__":
    main()
