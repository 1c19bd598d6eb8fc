import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from endpoint import Endpoint as Server
from endpoint import completion, cuts, dense_rewriter, fails, says
from paths import ABACUS

from edge_steer.commands.main import main
from edge_steer.core.stats import cosine
from edge_steer.core.vector import SteeringVector
from edge_steer.evaluation.evaluate import DENSE_PROMPT
from edge_steer.pairs.pair import read_pairs, write_pairs
from edge_steer.pairs.solutions import read_chosen_solutions, read_solutions
from edge_steer.storage.records import read
from edge_steer.vectors import native

SECRET = "sk-very-secret-0123456789"
COUNT = 16


def edge_steer(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["pairs", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def solutions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "solutions.jsonl"
    result = edge_steer(
        "generate", ABACUS, "--task", "wordproblems", "--solutions", COUNT, "--problems", 40, "-o", path, "--threads", 1
    )
    assert result.exit_code == 0, result.output
    assert f"{COUNT} solutions to use" in result.stdout
    assert "0 of 40 problems are among the 500 of wordproblems" in result.stderr
    return path


def test_problems_to_a_vector_with_an_endpoint_that_misbehaves(
    solutions: Path, tmp_path: Path, bundled_vector: SteeringVector
) -> None:
    made, checked, plot = (tmp_path / name for name in ("pairs.jsonl", "checked.jsonl", "nll.png"))
    tell = dense_rewriter()

    last = read_chosen_solutions(solutions)[-1]

    def wrong_once(prompt: str) -> str:
        text = tell(prompt)
        return text.replace("\\boxed{", "\\boxed{1") if last.question in prompt else text

    misdeeds = [fails(429, Retry_After="0.05"), fails(500, retry_after_ms="10"), cuts, says(completion("I'm sorry."))]
    with Server(wrong_once, misdeeds) as server:
        result = edge_steer(
            "rewrite", solutions, "-o", made, "--base-url", server.url, "--price-in", 1.25, "--price-out", 10,
            "--concurrency", 2,
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"used: {COUNT} requests, 1,600 tokens sent, 160 received, cost 0.0036" in result.stdout
    assert f"{COUNT} pairs of {COUNT} solutions" in result.stdout
    assert server.seen[0].body["model"] == "gpt-5.1"

    result = edge_steer(
        "check", made, "-o", checked, "--model", ABACUS, "--nll", "--traces", f"itself={solutions}", "--plot", plot,
        "--threads", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"{last.id}: the rewrite's answer is wrong" in result.stdout
    [sorry] = [pair.id for pair in read_pairs(made) if pair.positive == "I'm sorry."]
    assert f"{sorry}: the rewrite's answer is wrong; not denser" in result.stdout
    assert f"{COUNT - 2} of {COUNT} pairs are right and denser, with the same computed numbers" in result.stdout
    assert "own solution" in result.stdout and "itself" in result.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")

    chosen = {solution.id for solution in read_chosen_solutions(solutions)}
    assert {pair.id for pair in read_pairs(checked)} == chosen - {last.id, sorry}
    vector = tmp_path / "vector.safetensors"
    extracted = CliRunner().invoke(main, ["extract", str(ABACUS), str(checked), "-o", str(vector)])
    assert extracted.exit_code == 0, extracted.output
    found = native.load(vector)
    for layer in (3, 4, 5):  # 14 pairs against 50, told by the same rule
        assert cosine(found.directions[layer], bundled_vector.directions[layer]) > 0.9


def test_rewrites_are_kept_and_only_the_rest_is_asked_again(solutions: Path, tmp_path: Path) -> None:
    made = tmp_path / "pairs.jsonl"
    with Server(dense_rewriter(), [says(completion(None, refusal="no"))]) as server:
        command = ("rewrite", solutions, "-o", made, "--base-url", server.url, "--concurrency", 1)
        first = edge_steer(*command, "--solutions", 4)
        assert "refused: no" in first.stderr
        assert "3 pairs of 4 solutions; the same command asks again for the rest" in first.stdout
        second = edge_steer(*command, "--solutions", 6)
        assert "used: 3 requests" in second.stdout and "used over all runs: 7 requests" in second.stdout
        third = edge_steer(*command, "--solutions", 6)
        assert "used: " not in third.stdout and len(read_pairs(made)) == 6
        assert len(server.seen) == 7
        other = edge_steer(*command, "--model", "another")
    assert other.exit_code == 1
    assert "rewriter.name" in other.stderr and "another" in other.stderr


def test_a_dry_run_needs_no_key_and_sends_nothing(
    solutions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with Server(str.upper) as server:
        result = edge_steer(
            "rewrite", solutions, "--dry-run", "--base-url", server.url, "--price-in", 1, "--price-out", 1
        )  # fmt: skip
        assert not server.seen
    assert result.exit_code == 0
    assert read_chosen_solutions(solutions)[0].question in result.stdout
    assert f"estimate of all: {COUNT} requests" in result.stdout and "cost 0.00" in result.stdout
    other = edge_steer("rewrite", solutions, "--dry-run", "--rules", "ours", "--candidates", 3)
    assert "necessary and safe" in result.stdout and "necessary and safe" not in other.stdout
    assert f"estimate of all: {3 * COUNT} requests" in other.stdout
    shown = edge_steer("rewrite", solutions, "--dry-run", "--examples", ABACUS / "pairs.jsonl")
    assert read_pairs(ABACUS / "pairs.jsonl")[0].positive in shown.stdout
    refused = edge_steer("rewrite", solutions, "-o", tmp_path / "pairs.jsonl")
    assert refused.exit_code == 1
    assert refused.stderr.strip().startswith("edge-steer: no API key for https://api.openai.com/v1: set OPENAI_API_KEY")
    assert not list(tmp_path.iterdir())


def test_several_samples_of_a_problem_under_a_dense_instruction(tmp_path: Path, bundled_f16: Path) -> None:
    dense = tmp_path / "dense.jsonl"
    asked = ("--task", "wordproblems", "--problems", 4, "--solutions", 8, "--wrong", "--threads", 1)
    drawn = ("--style", "dense", "--samples", 2, "--temperature", 1, "-o", dense)
    made = edge_steer("generate", bundled_f16, *asked, *drawn)
    assert made.exit_code == 0, made.output
    assert f"next: edge-steer pairs contrast own-samples {dense} SOLUTIONS" in made.stdout
    assert {sample.system for sample in read_solutions(dense)} == {DENSE_PROMPT}
    samples = Counter(sample.id for sample in read_chosen_solutions(dense))
    assert max(samples.values()) > 1, "several of a problem are used"


def test_line_breaks_alone_make_a_control(solutions: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    assert edge_steer("contrast", "line-breaks", solutions, "-o", pairs).exit_code == 0
    assert len(read_pairs(pairs)) == COUNT
    assert not any("\n" in pair.positive for pair in read_pairs(pairs))


def test_a_refused_key_is_one_line_without_the_key(solutions: Path, tmp_path: Path) -> None:
    with Server(str.upper, [fails(401, f"Incorrect API key provided: {SECRET}")] * 16) as server:
        result = edge_steer("rewrite", solutions, "-o", tmp_path / "pairs.jsonl", "--base-url", server.url)
    assert result.exit_code == 1
    assert "refuses the key with status 401; check OPENAI_API_KEY" in result.stderr
    assert SECRET not in result.output
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert SECRET.encode() not in kept


def test_the_bundled_model_cannot_rewrite_and_the_check_says_so(solutions: Path, tmp_path: Path) -> None:
    made = tmp_path / "pairs.jsonl"
    result = edge_steer(
        "rewrite", solutions, "-o", made, "--rewriter", ABACUS, "-n", 200, "--solutions", 4, "--threads", 1
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    checked = edge_steer("check", made, "-o", tmp_path / "checked.jsonl")
    assert checked.exit_code == 1
    assert "0 of 4 pairs are right and denser" in checked.stdout
    assert "no pair passes" in checked.stderr
    assert not (tmp_path / "checked.jsonl").exists()


def test_a_check_of_the_bundled_pairs_and_of_a_wrong_one(tmp_path: Path, bundled_f16: Path) -> None:
    checked = edge_steer("check", ABACUS / "pairs.jsonl", "--model", bundled_f16)
    assert checked.exit_code == 0, checked.output
    assert "50 of 50 pairs are right and denser" in checked.stdout
    assert "counted in tokens" in checked.stdout
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text(
        '{"question": "q", "positive": "so 3 = 3, \\\\boxed{2}", "negative": "a b\\n\\n1 + 1 = 2\\n\\n\\\\boxed{3}",'
        ' "answer": "2"}\n'
    )
    result = edge_steer("check", wrong, "--json")
    assert result.exit_code == 1
    row = json.loads(result.stdout)
    assert row["reasons"] == ["the own solution's answer is wrong"]
    assert row["density_ratio"] == pytest.approx(5 / (8 / 3))


def test_pairs_are_chosen_by_their_nll(tmp_path: Path, bundled_f16: Path) -> None:
    source, out = tmp_path / "some.jsonl", tmp_path / "kept.jsonl"
    write_pairs(read_pairs(ABACUS / "pairs.jsonl")[:20], source)
    options = ("--model", bundled_f16, "--threads", 1)
    result = edge_steer("check", source, "-o", out, *options, "--max-nll-ratio", 5, "--keep-lowest", 5, "--json")
    assert result.exit_code == 0, result.output
    *rows, likelihoods = map(json.loads, result.stdout.splitlines())
    passing = sorted(row["positive_nll"] for row in rows if row["nll_ratio"] <= 5)
    assert 5 < len(passing) < 20
    kept = [row for row in rows if not row["reasons"]]
    assert sorted(row["positive_nll"] for row in kept) == passing[:5]
    assert len(read_pairs(out)) == 5
    assert [row["source"] for row in likelihoods["nll"]] == ["own solution", "dense rewrite"]


def test_of_several_candidates_the_likeliest_is_kept(solutions: Path, tmp_path: Path, bundled_f16: Path) -> None:
    """The bundled model answers, so candidates differ; it cannot rewrite, so only the NLL can judge them."""
    made, out = tmp_path / "pairs.jsonl", tmp_path / "kept.jsonl"
    options = ("--rewriter", ABACUS, "-n", 200, "--solutions", 3, "--candidates", 3, "--threads", 1)
    result = edge_steer("rewrite", solutions, "-o", made, *options)
    assert result.exit_code == 0, result.output
    assert f"edge-steer pairs check {made} -o checked.jsonl --model MODEL --best-candidate" in result.stdout
    pairs = read_pairs(made)
    negatives = {pair.negative_digest for pair in pairs}
    assert len(pairs) > len(negatives) >= 2
    chosen = ("--model", bundled_f16, "--only-nll", "--best-candidate", "--json", "--threads", 1)
    checked = edge_steer("check", made, "-o", out, *chosen)
    assert checked.exit_code == 0, checked.output
    lowest: dict[str, float] = {}
    for row in map(json.loads, checked.stdout.splitlines()[:-1]):
        nll = lowest.setdefault(row["negative_digest"], row["positive_nll"])
        lowest[row["negative_digest"]] = min(nll, row["positive_nll"])
    kept = [row for row in map(json.loads, checked.stdout.splitlines()[:-1]) if not row["reasons"]]
    assert {row["negative_digest"]: row["positive_nll"] for row in kept} == lowest
    assert [pair.id for pair in read_pairs(out)] == [row["name"] for row in kept]


def test_pairs_are_shown_with_the_prompts_that_differ(tmp_path: Path) -> None:
    shown = edge_steer("show", ABACUS / "pairs.jsonl", "--pairs", 1)
    assert "1 of 50 pairs shown" in shown.stdout
    made, texts = tmp_path / "pairs.jsonl", tmp_path / "texts.txt"
    texts.write_text("I think\n")
    result = edge_steer(
        "contrast", "personas", texts, "-o", made, "--positive", "very happy", "--negative", "very sad"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    shown = edge_steer("show", made)
    for said in ("Act as if you're very happy.", "Act as if you're very sad.", "1 of 1 pairs shown"):
        assert said in shown.stdout


def test_the_reference_solves_too_and_equal_solutions_make_no_pair(solutions: Path, tmp_path: Path) -> None:
    mine, out = tmp_path / "mine.jsonl", tmp_path / "pairs.jsonl"
    result = edge_steer(
        "generate", ABACUS, "--task", "wordproblems", "--solutions", 2, "--problems", 6, "-o", mine,
        "--backend", "torch", "--threads", 1, "--parallel", 2, "--evaluation", "wordproblems",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    header, _ = read(mine)
    found = read_solutions(mine)
    assert header["backend"]["name"] == "torch"
    assert [solution.text for solution in found] == [solution.text for solution in read_chosen_solutions(solutions)[:2]]
    same = edge_steer("contrast", "in-family", solutions, mine, "-o", out)
    assert same.exit_code == 1
    assert "both solutions are the same text" in same.stderr and "no pairs to write" in same.stderr
    assert not out.exists()


def test_evaluation_problems_are_left_out(tmp_path: Path) -> None:
    task, rows = tmp_path / "mine.toml", tmp_path / "mine.jsonl"
    questions = [sample.question for sample in read_pairs(ABACUS / "pairs.jsonl")[:3]]
    task.write_text(
        'name = "mine"\nfile = "mine.jsonl"\nprompt = "{question}"\nquestion = "q"\nanswer = "a"\ngrader = "math"\n'
    )
    rows.write_text("".join(json.dumps({"q": f"  {text.upper()} ", "a": "1"}) + "\n" for text in questions))
    out = tmp_path / "solutions.jsonl"
    result = edge_steer(
        "generate", ABACUS, "--task", "wordproblems", "--solutions", 1, "--problems", 5, "-o", out,
        "--evaluation", task, "--threads", 1, "--parallel", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "3 of 5 problems are among the 3 of mine" in result.stderr
    assert "left out: calibration-0-0: is mine 0" in result.stderr
    assert {solution.id for solution in read_solutions(out)} <= {"calibration-0-3", "calibration-0-4"}
    alone = edge_steer("generate", ABACUS, "--task", task, "--evaluation", task, "-o", tmp_path / "none.jsonl")
    assert alone.exit_code == 1 and "every problem of mine is an evaluation problem" in alone.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("rewrite", "{solutions}", "--rewriter", "a.gguf", "--model", "m"), "leave out --model"),
        (("rewrite", "{solutions}", "--rewriter", "a.gguf", "--reasoning-effort", "low"), "and --reasoning-effort"),
        (("rewrite", "{solutions}", "--price-in", "1"), "belong together"),
        (("rewrite", "{solutions}"), "--dry-run"),
        (("check", "{pairs}", "--nll"), "name it with --model"),
        (("check", "{pairs}", "--only-nll"), "needs --max-nll-ratio, --best-candidate or --keep-lowest"),
        (("check", "{pairs}", "--model", "m", "--traces", "x"), "write NAME=FILE"),
        (("generate", "m", "--task", "t", "-o", "o", "--style", "dense", "--system", "s"), "leave out --system"),
        (("contrast", "texts", "{pairs}", "-o", "o", "--positive", "x"), "belong to personas"),
    ],
)
def test_wrong_usage_is_status_2(arguments: tuple[str, ...], said: str, solutions: Path) -> None:
    words = {"solutions": solutions, "pairs": ABACUS / "pairs.jsonl"}
    result = edge_steer(*(argument.format(**words) for argument in arguments))
    assert result.exit_code == 2
    assert said in result.stderr


def test_an_interrupted_generation_goes_on(tmp_path: Path, bundled_f16: Path) -> None:
    out = tmp_path / "solutions.jsonl"
    options = ["--task", "wordproblems", "--solutions", "150", "-o", str(out), "--threads", "1", "--parallel", "4"]
    command = [sys.executable, "-m", "edge_steer", "pairs", "generate", str(bundled_f16), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    while process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < 10):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; the same command goes on from there" in errors and "Traceback" not in errors
    before = read_solutions(out)
    assert 9 <= len(before) < 150
    refused = edge_steer("rewrite", out, "--dry-run")
    assert refused.exit_code == 1 and "is not complete" in refused.stderr
    options[3] = "8"
    again = edge_steer("generate", bundled_f16, *options)
    assert again.exit_code == 0, again.output
    assert read_solutions(out)[: len(before)] == before
    assert len(read_chosen_solutions(out)) == 8
