"""Solutions rewritten by an endpoint or an engine: what is sent, what is tried again, what is kept."""

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from endpoint import Endpoint as Server
from endpoint import Misdeed, completion, cuts, dense_rewriter, fails, hangs_up, says, sleeps
from heard import Heard
from paths import ROOT

from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.llama.engine import Engine
from edge_steer.pairs.endpoint import Endpoint, Reply
from edge_steer.pairs.pair import Pair
from edge_steer.pairs.rewrite import (
    ModelRewriter,
    Rewrite,
    dense_pairs,
    estimate_usage,
    prompt_of,
    rewrite_solutions,
)
from edge_steer.pairs.rules import (
    CONSERVATIVE_RULES,
    DEFAULT_RULES,
    OUR_RULES,
    fill_rules,
    read_rules,
    rules_digest,
    with_examples,
)
from edge_steer.pairs.solutions import Solution
from edge_steer.storage.digests import digest
from edge_steer.storage.records import read
from edge_steer.tasks.task import count_steps
from edge_steer.tasks.wordproblems import word_problems

SECRET = "sk-very-secret-0123456789"
OWN = "Mia has 2.\n\n2 + 3 = 5.\n\nThe answer is \\boxed{5}."


def solution(number: int = 0, text: str = OWN) -> Solution:
    return Solution(
        id=f"secret-id-{number}", repeat=0, question=f"What is 2 + 3, for the {number}th time?",
        prompt=f"What is 2 + 3, for the {number}th time? Think.", system="secret system", answer="secret gold",
        text=text, tokens=9, correct=True, finish="stop",
    )  # fmt: skip


def endpoint(server: Server, **settings: Any) -> Endpoint:
    return Endpoint("m", **{"base_url": server.url, "timeout": 5.0, **settings})


def asked(end: Endpoint, prompts: list[str]) -> list[Reply]:
    replies: dict[int, Reply] = {}
    end.ask(prompts, replies.__setitem__)
    assert sorted(replies) == list(range(len(prompts)))
    return [replies[i] for i in range(len(prompts))]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)  # seconds


def test_the_prompt_holds_the_rules_the_problem_and_the_solution_and_nothing_else_is_sent(tmp_path: Path) -> None:
    sent = solution()
    with Server(lambda _: "2 + 3 = 5, so \\boxed{5}.") as server:
        [rewrite] = rewrite_solutions([sent], endpoint(server), tmp_path / "r.jsonl").rewrites
    [seen] = server.seen
    assert seen.body == {
        "model": "m",
        "messages": [
            {"role": "user", "content": f"{CONSERVATIVE_RULES}\n\nProblem:\n{sent.question}\n\nSolution:\n{OWN}"}
        ],
        "max_completion_tokens": 8192,
    }
    assert seen.headers["authorization"] == f"Bearer {SECRET}"
    told = {name for name in seen.headers if name.startswith("x-stainless")}
    assert told <= {"x-stainless-raw-response"}  # nothing of this machine
    assert not [value for value in seen.headers.values() if "secret" in value.replace(SECRET, "")]
    assert rewrite == Rewrite(sent.digest, sent.id, "2 + 3 = 5, so \\boxed{5}.", "", "told-by-rule", 100, 10, 1)
    for rule in ("meaning", "style", "every computation", "final answer", "Merge", "rephrase", "Add nothing"):
        assert rule in OUR_RULES


def test_what_was_asked_for_is_sent() -> None:
    with Server(str.upper) as server:
        settings = {"temperature": 0.5, "reasoning_effort": "low", "max_tokens": 7}
        assert asked(endpoint(server, **settings), ["a"])[0].text == "A"
    body = server.seen[0].body
    assert (body["temperature"], body["reasoning_effort"], body["max_completion_tokens"]) == (0.5, "low", 7)


@pytest.mark.parametrize(
    "misdeed",
    [
        fails(429, Retry_After="0.01"),
        fails(500),
        fails(503, retry_after_ms="1"),
        fails(408),
        cuts,
        hangs_up,
        says(b"{not json"),
        says(b'{"choices": [{"message": '),
        says(b"<html>busy</html>", Content_Type="text/html"),
        says({"choices": None}),
        says({"choices": []}),
        says([1, 2]),
        says({"choices": [{"message": "text"}]}),
    ],
    ids=["429", "500", "503", "408", "cut", "hang-up", "json", "half-json", "html", "null", "empty", "list", "text"],
)
def test_what_may_pass_is_tried_again(misdeed: Misdeed) -> None:
    with Server(str.upper, [misdeed, misdeed]) as server:
        [reply] = asked(endpoint(server), ["a"])
    assert reply == Reply("A", "", "told-by-rule", 100, 10, attempts=3)
    assert len(server.seen) == 3


def test_what_takes_too_long_is_tried_again() -> None:
    with Server(str.upper, [sleeps(3)]) as server:
        [reply] = asked(endpoint(server, timeout=1.0), ["a"])
        assert (reply.text, reply.attempts, len(server.seen)) == ("A", 2, 2)


def test_retry_after_is_waited_for_by_every_prompt() -> None:
    with Server(str.upper, [fails(429, Retry_After="0.4")]) as server:
        replies = asked(endpoint(server, concurrency=1), ["a", "b"])
    assert [reply.text for reply in replies] == ["A", "B"]
    first, *later = server.seen
    assert all(seen.at - first.at >= 0.4 for seen in later)


def test_a_wait_longer_than_patience_is_reported_not_waited_for() -> None:
    with Server(str.upper, [fails(429, "slow down", Retry_After="3600")]) as server:
        refused, fine = asked(endpoint(server, concurrency=1), ["a", "b"])
    assert refused.problem.startswith("status 429: slow down; it asks to wait 3")
    assert fine.text == "B"


def test_attempts_end_and_the_other_prompts_go_on() -> None:
    with Server(str.upper, [says(completion("FIRST")), fails(502), fails(502), cuts]) as server:
        first, failed, last = asked(endpoint(server, attempts=3, concurrency=1), ["a", "b", "c"])
    assert (first.text, last.text) == ("FIRST", "C")
    assert failed == Reply("", "the connection failed, 3 times", attempts=3)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (completion(None, refusal="I cannot\nhelp with that."), "refused: I cannot help with that."),
        (completion("half", "content_filter"), "refused: content_filter"),
        (completion("half a", "length"), "cut off at the most tokens; allow more"),
        (completion(""), "an empty answer"),
        (completion(None), "an empty answer"),
        ({"choices": [{"message": {"content": 5}}]}, "an empty answer"),
    ],
)
def test_an_answer_without_a_rewrite_is_a_problem_and_its_tokens_count(body: dict[str, Any], problem: str) -> None:
    with Server(str.upper, [says(body)]) as server:
        [reply] = asked(endpoint(server), ["a"])
    assert (reply.text, reply.problem) == ("", problem)
    assert reply.prompt_tokens == (100 if "usage" in body else None)
    assert len(server.seen) == 1


def test_a_bad_request_fails_alone_and_is_not_repeated() -> None:
    with Server(str.upper, [fails(400, "too\nlong")]) as server:
        bad, fine = asked(endpoint(server, concurrency=1), ["a", "b"])
    assert bad == Reply("", "status 400: too long")
    assert fine.text == "B"


@pytest.mark.parametrize(
    ("misdeed", "said"),
    [
        (fails(401, f"Incorrect API key {SECRET}"), "refuses the key with status 401; check OPENAI_API_KEY"),
        (fails(403, f"not for {SECRET}"), "refuses the key with status 403"),
        (fails(404, f"no model m for {SECRET}"), "has no model 'm', or is no such API (404): no model m for ***"),
        (fails(429, "pay first", "insufficient_quota"), "has no quota left: pay first"),
    ],
)
def test_what_no_prompt_can_survive_ends_all_at_once(misdeed: Misdeed, said: str) -> None:
    with Server(str.upper, [misdeed] * 9) as server:
        with pytest.raises(EdgeSteerError) as caught:
            endpoint(server, concurrency=2).ask(["a"] * 9, lambda *_: None)
        assert len(server.seen) <= 4
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_the_key_is_never_shown() -> None:
    with Server(str.upper, [fails(400, f"your key {SECRET} is\n{SECRET}")]) as server:
        end = endpoint(server)
        [reply] = asked(end, ["a"])
    assert reply.problem == "status 400: your key *** is ***"
    assert SECRET not in repr(end)
    assert Endpoint("m", "http://me:hush@localhost:1/v1?token=hush").public_address == "http://localhost:1/v1"


def test_an_endpoint_that_never_answers_is_one_error() -> None:
    with Server(str.upper) as server:
        gone = endpoint(server, attempts=2)
    with pytest.raises(EdgeSteerError, match=r"does not answer: the connection failed, 2 times"):
        gone.ask(["a", "b"], lambda *_: None)


def test_no_key_is_an_error_but_for_a_server_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(EdgeSteerError, match=r"no API key for https://api.openai.com/v1: set OPENAI_API_KEY"):
        Endpoint("m")
    with pytest.raises(EdgeSteerError, match=r"no API key for https://example\.org"):
        Endpoint("m", "https://example.org/v1")
    with Server(str.upper) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert asked(Endpoint("m"), ["a"])[0].text == "A"
    monkeypatch.setenv("OPENAI_API_KEY", "schlüssel")
    with pytest.raises(EdgeSteerError, match="characters that no key has"):
        Endpoint("m")


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"base_url": "localhost:8080"}, "is no address"), ({"attempts": 0}, "at least 1"), ({"timeout": 0}, "above 0")],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(EdgeSteerError, match=said):
        Endpoint("m", **settings)


def test_many_prompts_share_the_connections_and_each_gets_its_own_reply() -> None:
    prompts = [f"prompt {i}" for i in range(40)]
    misdeeds = [fails(500), cuts, fails(429), says(b"")]
    with Server(str.upper, misdeeds) as server:
        replies = asked(endpoint(server, concurrency=5), prompts)
    assert [reply.text for reply in replies] == [prompt.upper() for prompt in prompts]
    assert sum(reply.attempts for reply in replies) == len(server.seen) == 44


def test_a_notebook_whose_event_loop_runs_already_asks_too() -> None:
    async def cell() -> list[Reply]:
        return asked(endpoint(server), ["a", "b"])

    with Server(str.upper) as server:
        assert [reply.text for reply in asyncio.run(cell())] == ["A", "B"]


def test_finished_rewrites_are_kept_and_problems_are_asked_again(tmp_path: Path) -> None:
    solutions = [solution(i) for i in range(4)]
    path = tmp_path / "r.jsonl"
    with Server(lambda _: "dense", [says(completion(None, refusal="no"))]) as server:
        first = rewrite_solutions(solutions[:2], endpoint(server, concurrency=1), path)
        assert [rewrite.problem for rewrite in first.rewrites] == ["refused: no", ""]
        heard = Heard()
        second = rewrite_solutions(solutions, endpoint(server), path, progress=heard)
        assert [rewrite.text for rewrite in second.rewrites] == ["dense"] * 4
        assert heard.steps == [("rewriting", done, 3) for done in range(4)]
        assert {record["id"] for record in read(path)[1][2:]} == {"secret-id-0", "secret-id-2", "secret-id-3"}
        third = rewrite_solutions(solutions, endpoint(server), path)
    usage = second.total_usage
    assert (usage.requests, usage.prompt_tokens, usage.completion_tokens, usage.uncounted) == (5, 500, 50, 0)
    assert usage.cost(1.25, 10) == pytest.approx((500 * 1.25 + 50 * 10) / 1e6)
    assert (second.usage.requests, third.usage.requests, third.total_usage) == (3, 0, usage)
    assert str(usage) == "5 requests, 500 tokens sent, 50 received"
    counts = Counter(seen.prompt for seen in server.seen)
    assert sorted(counts.values()) == [1, 1, 1, 2]


def test_candidates_are_drawn_kept_and_counted(tmp_path: Path) -> None:
    solutions, path = [solution(0), solution(1)], tmp_path / "r.jsonl"
    replies = iter(["b", "c", "a", "b", "c"])
    with Server(lambda _: next(replies), [says(completion("a")), says(completion(None, refusal="no"))]) as server:
        end = endpoint(server, concurrency=1, temperature=0.0)
        first = rewrite_solutions(solutions, end, path, candidates=2)
        assert [seen.body["temperature"] for seen in server.seen] == [0, 0, 1, 1]
        assert [(rewrite.candidate, rewrite.problem) for rewrite in first.rewrites] == [
            (0, ""), (1, ""), (0, "refused: no"), (1, ""),
        ]  # fmt: skip
        second = rewrite_solutions(solutions, end, path, candidates=3)
    assert [seen.body["temperature"] for seen in server.seen[4:]] == [0, 1, 1]
    assert (second.usage.requests, second.total_usage.requests) == (3, 7)
    made = dense_pairs(solutions, second.rewrites).pairs
    assert [pair.id for pair in made] == [
        "secret-id-0", "secret-id-0, candidate 2", "secret-id-1", "secret-id-1, candidate 2",
    ]  # fmt: skip
    assert [pair.positive for pair in made] == ["a", "b", "a", "c"]  # the third are equal to the second
    assert len({pair.negative_digest for pair in made}) == 2
    assert estimate_usage(solutions, candidates=3).requests == 6


def test_equal_solutions_are_asked_once(tmp_path: Path) -> None:
    twice = [solution(), solution()]
    with Server(lambda _: "dense") as server:
        assert len(rewrite_solutions(twice, endpoint(server), tmp_path / "r.jsonl").rewrites) == 2
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("told", "text", "problem"),
    [
        ("<think>merge\n\nthem</think>\n\n dense \n", "dense", ""),
        ("<think>still thinking</think>", "", "an empty answer"),
        (f"  {OWN}\n", "", "the rewrite is the solution itself"),
    ],
)
def test_thinking_is_no_part_of_a_rewrite_and_a_copy_is_none(
    told: str, text: str, problem: str, tmp_path: Path
) -> None:
    with Server(lambda _: told) as server:
        [rewrite] = rewrite_solutions([solution()], endpoint(server), tmp_path / "r.jsonl").rewrites
    assert (rewrite.text, rewrite.problem) == (text, problem)


def test_pairs_are_asked_as_the_solutions_were(tmp_path: Path) -> None:
    solutions = [solution(0), solution(1), solution(2)]
    rewrites = [
        Rewrite(solutions[0].digest, "0", "dense", "", "m", None, None, 1),
        Rewrite(solutions[1].digest, "1", "", "refused: no", "m", None, None, 1),
    ]
    dense = dense_pairs(solutions, rewrites)
    [pair] = dense.pairs
    assert (pair.question, pair.system) == (solutions[0].prompt, "secret system")
    assert (pair.positive, pair.negative, pair.answer) == ("dense", OWN, "secret gold")
    assert dense.left_out == ("secret-id-1: refused: no", "secret-id-2: not rewritten yet")


def test_an_estimate_counts_what_would_be_sent() -> None:
    solutions = [solution(0), solution(1)]
    guess = estimate_usage(solutions, count_tokens=len)
    assert guess.prompt_tokens == sum(len(prompt_of(s)) for s in solutions)
    assert guess.completion_tokens == 2 * len(OWN)
    by_characters = estimate_usage(solutions)
    assert by_characters.prompt_tokens == pytest.approx(guess.prompt_tokens / 4, rel=0.01)


def test_our_own_engine_rewrites_and_refuses_what_does_not_fit(tmp_path: Path, bundled_f16: Path) -> None:
    """The bundled model follows no instruction: what it says is a text, not a rewrite."""
    problem = word_problems("calibration", 1)[0]
    short = Solution("short", 0, problem.question, problem.question, None, problem.answer, OWN, 9, True, "stop")
    long = Solution("long", 0, problem.question, problem.question, None, problem.answer, "a " * 2000, 9, True, "stop")
    with Engine.load(bundled_f16, EngineOptions(threads=1)) as engine:
        path = tmp_path / "r.jsonl"
        written, failed = rewrite_solutions([short, long], ModelRewriter(engine, 200), path).rewrites
        [cut] = rewrite_solutions([short], ModelRewriter(engine, 3), tmp_path / "cut.jsonl").rewrites
        assert read(path)[0]["rewriter"]["digest"] == digest(bundled_f16)
        prompt = engine.chat([{"role": "user", "content": prompt_of(short)}])
    assert written.text and not written.problem
    assert written.prompt_tokens == len(prompt)
    assert written.completion_tokens and written.model == engine.model.name
    assert "the context holds" in failed.problem
    assert cut.problem.startswith("cut off") and cut.completion_tokens == 3


def test_the_rule_based_rewriter_keeps_the_computations() -> None:
    tell = dense_rewriter(5)
    for problem in word_problems("calibration", 5):
        own = f"So.\n\nThen.\n\nNext.\n\nThen.\n\nOn.\n\nOn.\n\nThe answer is \\boxed{{{problem.answer}}}."
        dense = tell(f"{OUR_RULES}\n\nProblem:\n{problem.question}\n\nSolution:\n{own}")
        assert count_steps(dense) < 7
        assert f"\\boxed{{{problem.answer}}}" in dense


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL], ids=["interrupt", "kill"])
def test_a_stopped_run_goes_on_and_pays_for_nothing_twice(stop: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    script = (
        "import sys\nsys.path[:0] = ['tests', 'tests/pairs']\n"
        "from edge_steer.core.progress import Progress\nfrom edge_steer.pairs.endpoint import Endpoint\n"
        "from edge_steer.pairs.rewrite import rewrite_solutions\nimport test_rewrite as t\n"
        "class Printed(Progress):\n"
        "    def __call__(self, doing, done=0, total=1): print(done, flush=True)\n"
        "endpoint = Endpoint('m', sys.argv[2], concurrency=1)\n"
        "rewrite_solutions([t.solution(i) for i in range(12)], endpoint, sys.argv[1], progress=Printed())\n"
    )

    def tell(prompt: str) -> str:
        time.sleep(0.05)
        return prompt.splitlines()[-1] + " dense"

    with Server(tell) as server:
        command = [sys.executable, "-c", script, str(path), server.url]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout
        finished = [process.stdout.readline().strip() for _ in range(4)]
        process.send_signal(stop)
        finished += process.communicate()[0].split()
        assert process.returncode != 0
        before = len(server.seen)
        assert before < 12
        kept = read(path)[1]
        assert len(kept) >= max(map(int, finished))
        rewriting = rewrite_solutions([solution(i) for i in range(12)], endpoint(server), path)
        assert [rewrite.id for rewrite in rewriting.rewrites] == [f"secret-id-{i}" for i in range(12)]
        assert len(server.seen) == before + 12 - len(kept)
        assert before <= len(kept) + 1


def test_other_rules_are_sent_and_belong_to_another_file(tmp_path: Path) -> None:
    own, path = tmp_path / "rules.txt", tmp_path / "r.jsonl"
    own.write_text("Shorter, please, {but} keep {problem}:\n{solution}\n")
    sent = solution(text="so {problem}")
    with Server(str.upper) as server:
        rewrite_solutions([sent], endpoint(server), path, rules=read_rules(str(own)))
        assert server.seen[0].prompt == f"Shorter, please, {{but}} keep {sent.question}:\nso {{problem}}"
        with pytest.raises(EdgeSteerError, match="rules is "):
            rewrite_solutions([sent], endpoint(server), path, rules=read_rules("ours"))
    assert len(server.seen) == 1
    assert read_rules("conservative") == DEFAULT_RULES
    for demand in ("necessary and safe", "two steps that stand next to each other", "<<a=b>>", "as few steps"):
        assert demand in read_rules("conservative")


@pytest.mark.parametrize(
    ("text", "said"),
    [(b"Rewrite {problem}", "has no {solution} in it"), (b"", "is empty"), (b"\xff{solution}", "is not UTF-8")],
)
def test_wrong_rules_are_one_line(text: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.txt"
    path.write_bytes(text)
    with pytest.raises(EdgeSteerError, match=said):
        read_rules(path)
    with pytest.raises(EdgeSteerError, match="no rules none; built in are conservative, ours"):
        read_rules("none")


def test_worked_examples_stand_between_the_rules_and_what_is_to_be_rewritten() -> None:
    rules = with_examples(DEFAULT_RULES, [Pair("1 + {problem}?", "dense {solution}", "sparse"), Pair("q", "d", "s")])
    prompt = fill_rules(rules, "2 + 2?", "It is 4.")
    parts = ["nothing else.", "1 + { problem }?", "sparse", "dense { solution }", "\nq\n", "2 + 2?", "It is 4."]
    places = [prompt.index(part) for part in parts]
    assert places == sorted(places)
    assert prompt.count("2 + 2?") == prompt.count("It is 4.") == 1
    assert prompt.endswith("Rewritten solution:")
    assert rules_digest(rules) != rules_digest(DEFAULT_RULES)
    own = with_examples("Shorten this, please: {solution}", [Pair("q", "d", "s")])
    assert fill_rules(own, "", "a b c").index("Example 1") < fill_rules(own, "", "a b c").index("a b c")
    with pytest.raises(EdgeSteerError, match="no examples"):
        with_examples(DEFAULT_RULES, [])
