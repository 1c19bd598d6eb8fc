"""A server under many clients who come, go and send what they should not: does each answer stay what it is alone?

    python benchmarks/serve_soak.py                        1,000 requests of 64 clients, 100,000 fuzzed ones
    python benchmarks/serve_soak.py --requests 200 --fuzzed 5000

First the soak of tests/serving/test_soak.py in full: greedy answers, exact weights and cache, of which each that its
client waits for must equal the one computed alone, with no sequence and no memory left behind. Then the requests and
raw bytes of tests/serving/test_fuzz.py: no defect (500), no end of the server. Prints counts, the server's resident
memory and a JSON line.
"""

import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import click
import httpx
import psutil

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "serving")]
from paths import ABACUS, DENSE  # noqa: E402
from serving_server import Server, launch  # noqa: E402
from test_fuzz import EXPLAINED, drawn_request, send_bytes  # noqa: E402
from test_soak import EXACT, STRENGTHS, calls, expected_answers, soak  # noqa: E402

from edge_steer.llama.engine import Engine  # noqa: E402
from edge_steer.models.quantize import quantize  # noqa: E402

RAW_SHARE = 0.05  # of the fuzzed requests that are bytes and no HTTP request


def soaked(server: Server, model: Path, requests: int, clients: int) -> dict[str, object]:
    process = psutil.Process(server.process.pid)
    soak(server, calls(4 * clients), clients)
    before = process.memory_info().rss
    began = time.perf_counter()
    answers = soak(server, calls(requests), clients)
    seconds = time.perf_counter() - began
    after = process.memory_info().rss
    with Engine.load(model, EXACT) as engine:
        expected = expected_answers(engine, answers)
    got = [(call, text) for call, texts in answers.items() for text in texts if text is not None]
    return {
        "requests": requests,
        "strengths": len(STRENGTHS),
        "answers": len(got),
        "answers that differ": sum(text != expected[call] for call, text in got),
        "sequences left": _still_running(server),
        "resident MiB, warm": before / 2**20,
        "resident MiB, after": after / 2**20,
        "seconds": seconds,
    }


def _still_running(server: Server) -> int:
    """After a second in which those of clients who left are ended."""
    time.sleep(1)
    with server.client as http:
        return sum(slot["is_processing"] for slot in http.get("/slots").json())


def fuzzed(server: Server, requests: int, clients: int, seed: int) -> dict[str, object]:
    process = psutil.Process(server.process.pid)
    each = requests // clients
    statuses: Counter[int] = Counter()
    defects: list[str] = []
    resident = [process.memory_info().rss / 2**20]

    def client(number: int) -> None:
        draw = random.Random(1000 * seed + number)
        with server.client as http:
            for sent_before in range(each):
                if number == 0 and sent_before % max(each // 10, 1) == 0:
                    resident.append(process.memory_info().rss / 2**20)
                if draw.random() < RAW_SHARE:
                    send_bytes(server.port, draw)
                    continue
                sent = drawn_request(draw)
                try:
                    status = sent.send(http).status_code
                except httpx.HTTPError as error:
                    defects.append(f"{sent}: {type(error).__name__}")
                    continue
                statuses[status] += 1
                if status >= 500 and status not in EXPLAINED:
                    defects.append(f"{sent}: {status}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with server.client as http:
        http.post("/control-vectors/apply", json=[])
        answer = http.post("/completion", json={"prompt": "1 + 1", "n_predict": 2})
    resident.append(process.memory_info().rss / 2**20)
    return {
        "requests": each * clients,
        "statuses": dict(sorted(statuses.items())),
        "defects": defects,
        "answers afterwards": answer.status_code == 200,
        "sequences left": _still_running(server),
        "resident MiB, tenth by tenth": [round(one, 1) for one in resident],
    }


@click.command(help=__doc__)
@click.option("--requests", default=1000)
@click.option("--clients", default=64)
@click.option("--fuzzed", "fuzzed_requests", default=100_000)
@click.option("--seed", default=0, help="Of the fuzzed requests, so that they can be sent in several runs.")
def main(requests: int, clients: int, fuzzed_requests: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = quantize(ABACUS / "abacus-F16.gguf", "F32", Path(folder) / "abacus-F32.gguf")
        exact = (
            "--parallel",
            "8",
            "--kv-type",
            "f32",
            "--flash-attention",
            "off",
            "--queue",
            str(4 * clients),
            "--context",
            "256",
        )
        vectors = ("--vector", f"dense={DENSE}:0", "--vector", f"other={DENSE}:0")
        server = launch(*vectors, *exact, "--alias", "abacus", "--preset", "strong=2 dense", model=model)
        try:
            results: dict[str, dict[str, object]] = {}
            if requests:
                results["soak"] = soaked(server, model, requests, clients)
                print(json.dumps(results["soak"], indent=2))
            if fuzzed_requests:
                results["fuzz"] = fuzzed(server, fuzzed_requests, min(clients, 8), seed)
                print(json.dumps(results["fuzz"], indent=2))
        finally:
            server.process.kill()
            server.process.wait()
    print(json.dumps(results))
    wrong = ("answers that differ", "sequences left", "defects")
    sys.exit(any(result.get(name) for result in results.values() for name in wrong))


if __name__ == "__main__":
    main()
