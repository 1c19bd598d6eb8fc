"""A running server against the reference: the right steering passes, another one fails, a broken one is one line."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from click.testing import CliRunner
from paths import ABACUS, DENSE
from serving_server import Server

from edge_steer.certificates.served import ServedReport, check_served
from edge_steer.commands.main import main
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.steering import Steering
from edge_steer.pairs.pair import Pair, read_pairs
from edge_steer.reference.model import Reference
from edge_steer.vectors.read import load

DENSE_2 = Steering.of(load(DENSE), 2.0)


@pytest.fixture(scope="module")
def texts() -> list[Pair]:
    return list(read_pairs(ABACUS / "pairs.jsonl"))[:6]


def verdicts(report: ServedReport) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in report.findings}


@pytest.mark.parametrize("request_", [{"steering": "2 dense"}, {"model": "abacus+strong"}])
def test_a_server_that_steers_as_the_reference_passes(
    server: Server, bundled: Reference, texts: list[Pair], request_: dict[str, object]
) -> None:
    report = check_served(server.url, bundled, texts, DENSE_2, request=request_)
    assert set(verdicts(report).values()) == {"pass"}, report.findings
    assert (report.quant, report.stated, report.verdict) == ("F16", True, "pass")
    assert max(report.delta_logprob) < 0.01
    assert report.steered
    assert report.steered.perplexity_ratio == pytest.approx(1, abs=0.001)
    assert report.steered.perplexity > 1.01 * report.unsteered.perplexity


def test_phase_generated_begins_with_the_first_token_on_both_sides(
    server: Server, bundled: Reference, texts: list[Pair]
) -> None:
    steer = replace(DENSE_2, phase="generated")
    vectors = [{"name": "dense", "scale": 2.0, "phase": "generated"}]
    report = check_served(server.url, bundled, texts, steer, request={"control_vectors": vectors})
    assert report.verdict == "pass", report.findings


def test_unsteered_there_are_only_unsteered_figures(server: Server, bundled: Reference, texts: list[Pair]) -> None:
    report = check_served(server.url, bundled, texts)
    assert list(verdicts(report)) == ["unsteered: mean KL", "unsteered: vectors stated otherwise"]
    assert report.verdict == "pass"
    assert json.loads(json.dumps(report.to_json()))["steered"] is None


@pytest.mark.parametrize(
    ("request_", "failing"),
    [
        ({"steering": "2 other"}, {"effect: cosine", "steered: vectors stated otherwise", "steered: mean KL"}),
        ({"steering": "2.1 dense"}, {"effect: length, at most", "steered: vectors stated otherwise"}),
        ({"steering": "- 2 dense"}, {"effect: cosine", "steered: mean KL"}),
        ({"control_vectors": []}, {"effect: cosine", "steered: vectors stated otherwise", "steered: mean KL"}),
    ],
)  # fmt: skip
def test_a_server_that_steers_otherwise_fails(
    server: Server, bundled: Reference, texts: list[Pair], request_: dict[str, object], failing: set[str]
) -> None:
    report = check_served(server.url, bundled, texts, DENSE_2, request=request_)
    assert report.verdict == "fail"
    assert failing <= {name for name, verdict in verdicts(report).items() if verdict == "fail"}, report.findings


class _Answers(BaseHTTPRequestHandler):
    """A server that is none of ours: the same bytes for everything."""

    status: ClassVar[int] = 200
    body: ClassVar[bytes] = b""

    def do_POST(self) -> None:
        self.send_response(self.status)
        self.send_header("Location", "http://127.0.0.1:1/")
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def other_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "line"),
    [
        (200, b"<html>", "answers with no JSON"),
        (200, b"{}", "gives no log-probabilities"),
        (200, b'{"choices": [{"logprobs": null}]}', "gives no log-probabilities"),
        (200, b'{"choices": [{"logprobs": {"token_logprobs": [], "top_logprobs": []}}]}', "0 log-probabilities for"),
        (400, b'{"error": {"message": "too\\nlong"}}', "refuses: too long"),
        (500, b"\xff", "refuses: status 500"),
        (302, b"", "refuses: status 302"),
        (401, b"", "EDGE_STEER_API_KEY"),
    ],
)
def test_a_server_without_figures_is_one_line(
    other_server: str, bundled: Reference, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, line: str
) -> None:
    monkeypatch.setattr(_Answers, "status", status)
    monkeypatch.setattr(_Answers, "body", body)
    with pytest.raises(EdgeSteerError, match=line) as caught:
        check_served(other_server, bundled, ["3 + 4 = 7"], quant="F16")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "ftp://localhost", "http://", "http://me:secret@localhost"])
def test_an_address_without_a_server_is_one_line(bundled: Reference, url: str) -> None:
    with pytest.raises(EdgeSteerError, match=r"does not answer|no address"):
        check_served(url, bundled, ["3 + 4 = 7"], quant="F16")


def test_the_command_prints_figures_and_a_verdict(server: Server) -> None:
    command = ["parity", server.url, "--reference", str(ABACUS), "--text-file", str(ABACUS / "pairs.jsonl")]
    command += ["--texts", "6", "--vector", f"{DENSE}:2"]
    right = CliRunner().invoke(main, [*command, "--request", '{"steering": "2 dense"}'])
    assert right.exit_code == 0, right.output
    assert "within tolerance" in right.stdout
    wrong = CliRunner().invoke(main, [*command, "--request", '{"steering": "2 other"}', "--json"])
    assert wrong.exit_code == 1
    assert json.loads(wrong.stdout)["verdict"] == "fail"
