"""Published formats read as they are, sources that are pinned, and gold answers that the grader reads as meant.

The whole published files are graded where they are at hand: in $EDGE_STEER_DATA, else in ../shared/data.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
from paths import DATA

from edge_steer.core.errors import EdgeSteerError
from edge_steer.storage.digests import digest
from edge_steer.tasks import published
from edge_steer.tasks.answers import Grade, without_tolerance
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.published import BENCHMARKS, Source

PUBLISHED = {
    "gsm8k": ("gsm8k_test.jsonl", 1319),
    "math500": ("math500.jsonl", 500),
    "amc23": ("amc23.jsonl", 40),
    "olympiadbench": ("olympiadbench.jsonl", 675),
    "aime24": ("aime24.jsonl", 30),
    "minervamath": ("minerva_math.jsonl", 272),
    "logiqa": ("logiqa_test.txt", 651),
}
# Another problem's gold answer, yet equal: "x=5" and "5".
EQUAL = {"math500": 1}
CONTENT = b'{"id": 1, "problem": "1 + 1?", "answer": "2"}\n'


def jsonl(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def file_of(name: str) -> Path:
    path = DATA / PUBLISHED[name][0]
    if not path.is_file():
        pytest.skip(f"{path} is not at hand; set EDGE_STEER_DATA to a folder with the published files")
    return path


@pytest.fixture(scope="module")
def graders() -> Iterator[Graders]:
    with Graders(2, seconds=60) as graders:
        yield graders


@pytest.mark.parametrize("name", PUBLISHED)
def test_gold_answers_of_the_published_file_grade_as_they_should(name: str, graders: Graders) -> None:
    benchmark = BENCHMARKS[name]
    triples = benchmark.read(file_of(name))
    assert len(triples) == len({identity for identity, _, _ in triples}) == PUBLISHED[name][1]
    assert all(question.strip() and answer.strip() for _, question, answer in triples)
    golds = [answer for _, _, answer in triples]

    def submit(given: str, gold: str) -> Future[Grade]:
        return graders.submit(f"The answer is \\boxed{{{without_tolerance(given)}}}.", gold, benchmark.grader)

    own = [submit(gold, gold) for gold in golds]
    others = [submit(other, gold) for gold, other in pairwise(golds[:50]) if other != gold]
    assert [gold for gold, future in zip(golds, own, strict=True) if not future.result().correct] == []
    assert sum(future.result().correct for future in others) == EQUAL.get(name, 0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_file_is_the_one_that_is_pinned(name: str) -> None:
    assert digest(file_of(name)) == BENCHMARKS[name].splits["test"].sha256


def test_every_source_is_pinned_to_a_full_commit() -> None:
    for benchmark in BENCHMARKS.values():
        for source in benchmark.splits.values():
            assert len(source.revision) == 40
            assert len(source.sha256) == 64


def test_gsm8k(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "f", {"question": "How many?", "answer": "2 * 800 = <<2*800=1600>>1600\n#### 1,600"})
    assert published.read_gsm8k(path) == [("0", "How many?", "1600")]


def test_math_and_deepscaler_are_read_from_files_at_hand(tmp_path: Path) -> None:
    row: dict[str, object] = {"problem": "1 + 1?", "answer": "2", "solution": "2"}
    path = jsonl(tmp_path / "math", {**row, "unique_id": "train/algebra/1.json"})
    assert BENCHMARKS["math"].read(path) == [("train/algebra/1.json", "1 + 1?", "2")]
    array = tmp_path / "deepscaler.json"
    array.write_text(json.dumps([row, {**row, "answer": 3}], indent=2))
    triples = [("0", "1 + 1?", "2"), ("1", "1 + 1?", "3")]
    assert published.read_deepscaler(array) == triples
    assert published.read_deepscaler(jsonl(tmp_path / "lines", row, {**row, "answer": 3})) == triples
    array.write_text("[{}")
    with pytest.raises(EdgeSteerError, match="is not JSON"):
        published.read_deepscaler(array)


def test_competitions_write_numbers_in_three_ways(tmp_path: Path) -> None:
    answers = [27.0, "027", "336^\\circ", -1.0, "0", 100]
    path = jsonl(tmp_path / "f", *({"id": i, "problem": "p", "answer": answer} for i, answer in enumerate(answers)))
    found = [answer for _, _, answer in published.read_competition(path)]
    assert found == ["27", "27", "336^\\circ", "-1", "0", "100"]


def test_olympiadbench_answers_lists_tolerances_and_context(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "f",
        {"id": 1, "question": "Which?", "final_answer": ["$69$,$84$"], "context": None, "error": None},
        {"id": 2, "question": "What angle?", "final_answer": ["4.2"], "context": "Let it be.", "error": "1e-1"},
        {"id": 3, "question": "Find $f$.", "final_answer": ["$f(x)=a x$, where $a$ is an integer"]},
        {"id": 2045, "question": "Which $t$?", "final_answer": ["$t(0,4]$"]},
    )
    assert published.read_olympiadbench(path) == [
        ("1", "Which?", "69,84"),
        ("2", "Let it be.\n\nWhat angle?", "4.2 within 1e-1"),
        ("3", "Find $f$.", "f(x)=a x"),
        ("2045", "Which $t$?", "(0,4]"),
    ]


def test_minervamath_takes_the_last_box_without_its_unit(tmp_path: Path) -> None:
    solutions = ["\\boxed{3}, no, \\boxed{4.5e33} \\mathrm{ergs}", "$\\boxed{np.arcsin(10/13)}$.", "\\boxed{-1./3}"]
    path = jsonl(tmp_path / "f", *({"idx": i, "problem": "p", "solution": s} for i, s in enumerate(solutions)))
    assert [answer for _, _, answer in published.read_minervamath(path)] == [
        "4.5e33",
        "\\arcsin(10/13)",
        "-1/3",
    ]


def test_logiqa_options_are_put_in_the_order_of_their_labels(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text(
        "\nb\nAll men.\nWhich?\nA.One\nC.Three\nB.Two\nD.Four\n\na\nSome.\nWho?\nA One\nB? Two\nC.Three\nFour\n"
    )
    assert published.read_logiqa(path) == [
        ("0", "All men.\nWhich?\n\nA. One\nB. Two\nC. Three\nD. Four", "B"),
        ("1", "Some.\nWho?\n\nA. One\nB. Two\nC. Three\nD. Four", "A"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("{", "problem 1 is not JSON"),
        ("[]", "problem 1 is no object"),
        ('{"question": "q"}', "problem 1 has no field 'answer'; needed are question, answer"),
    ],
)
def test_another_format_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "f"
    path.write_text(content)
    with pytest.raises(EdgeSteerError, match=message):
        published.read_gsm8k(path)


def test_torn_or_boxless_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("\nb\nContext\nQuestion\nA.One\nB.Two\nC.Three\n")
    with pytest.raises(EdgeSteerError, match="line 1: expected a blank line"):
        published.read_logiqa(path)
    with pytest.raises(EdgeSteerError, match="problem 0: the solution has no"):
        published.read_minervamath(jsonl(path, {"idx": 0, "problem": "p", "solution": "s"}))
    with pytest.raises(EdgeSteerError, match="a list of answers is expected"):
        published.read_olympiadbench(jsonl(path, {"id": 1, "question": "q", "final_answer": "4"}))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/owner/name/0123/data/test.jsonl" else 404)
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_fetched_file_is_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_STEER_CACHE", str(tmp_path))
    right = hashlib.sha256(CONTENT).hexdigest()
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        address = f"http://127.0.0.1:{server.server_port}/{{repo}}/{{revision}}/{{path}}"
        monkeypatch.setattr(published, "GITHUB", address)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = Source("github", "owner/name", "0123", "data/test.jsonl", right)
        assert source.fetch().read_bytes() == CONTENT
        with pytest.raises(EdgeSteerError, match=f"has the SHA-256 {right}, not {'0' * 64}"):
            Source("github", "owner/name", "0123", "data/test.jsonl", "0" * 64).fetch()
        with pytest.raises(EdgeSteerError, match=r"cannot fetch data/other\.jsonl of .* at 0123: Not Found"):
            Source("github", "owner/name", "0123", "data/other.jsonl", right + "0").fetch()
        server.shutdown()
    assert source.fetch().read_bytes() == CONTENT
    source.fetch().write_bytes(b"spoilt")
    with pytest.raises(EdgeSteerError, match="cannot fetch"):
        source.fetch()


def test_a_hub_file_comes_from_the_hubs_cache_or_is_said_to_be_missing(tmp_path: Path) -> None:
    revision = "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"
    snapshot = tmp_path / "datasets--owner--name" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot / "test.jsonl").write_bytes(CONTENT)
    code = (
        "from edge_steer.core.errors import EdgeSteerError\nfrom edge_steer.storage.hub import dataset_file\n"
        f"print(dataset_file('owner/name', '{revision}', 'test.jsonl').read_bytes() == {CONTENT!r})\n"
        f"try: dataset_file('owner/name', '{revision}', 'other.jsonl')\n"
        "except EdgeSteerError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    found, missing = done.stdout.splitlines()
    assert found == "True"
    assert missing.startswith("cannot fetch other.jsonl of the Hugging Face data set owner/name at 6e4ed1a2a7: ")
