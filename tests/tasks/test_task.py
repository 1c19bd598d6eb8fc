"""Tasks: how each is asked under each protocol, limits and splits, a user's own task; steps and density."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from edge_steer.core.errors import EdgeSteerError
from edge_steer.tasks import task as tasks_task
from edge_steer.tasks.load import load_task
from edge_steer.tasks.protocols import PROTOCOLS, Protocol
from edge_steer.tasks.task import Sample, Task
from edge_steer.tasks.wordproblems import word_problems

TOML = """
name = "sums"
file = "sums.jsonl"
prompt = "Add. {question}"
question = "ask"
answer = "gold"
grader = "math"
"""


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    path = tmp_path / "gsm8k.jsonl"
    rows = [{"question": f"What is {n} + {{1}}?", "answer": f"Easy.\n#### {n + 1}"} for n in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sums(folder: Path, toml: str = TOML) -> Path:
    rows = [{"ask": f"{n} + 1?", "gold": n + 1, "name": f"sum {n}"} for n in range(3)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sums.toml").write_text(toml)
    return folder / "sums.toml"


def test_a_benchmark_from_a_local_file(gsm8k: Path) -> None:
    task = load_task(f"gsm8k={gsm8k}")
    assert task == load_task("gsm8k", file=gsm8k)
    assert (task.name, task.grader, len(task.samples)) == ("gsm8k", "math", 10)
    assert task.samples[4] == Sample("4", "What is 4 + {1}?", "5")
    (message,) = task.messages(task.samples[4])
    assert message["role"] == "user"
    assert message["content"].startswith("What is 4 + {1}?\n\n")
    asked = replace(task, settings=replace(task.settings, system="Be dense."))
    assert asked.messages(task.samples[4]) == [{"role": "system", "content": "Be dense."}, message]


def test_protocols_ask_as_the_papers_do(gsm8k: Path, tmp_path: Path) -> None:
    amc = tmp_path / "amc.jsonl"
    amc.write_text('{"id": 0, "problem": "1 + 1?", "answer": 2.0}\n')
    dense, code, trained = (load_task("gsm8k", protocol=protocol, file=gsm8k) for protocol in PROTOCOLS)
    assert (dense.settings.sampling.temperature, dense.settings.max_tokens, dense.settings.samples) == (0, 2048, 1)
    assert (dense.settings.stop, dense.settings.grading) == ((), "lenient")
    assert (code.settings.sampling.temperature, code.settings.max_tokens) == (0, 2048)
    assert (code.settings.stop, code.settings.grading) == (("Problem:",), "lenient")
    assert code.messages(code.samples[0]) == [
        {
            "role": "user",
            "content": "Solve the following math problem. Present the final answer in the format: Final Answer: "
            "\\boxed{your_answer}.\nProblem: What is 0 + {1}?\nAnswer:",
        }
    ]
    assert load_task("amc23", protocol="densesteer-code", file=amc).settings.grading == "boxed"
    assert (trained.settings.sampling.temperature, trained.settings.samples) == (1, 1)
    assert (trained.settings.grading, trained.settings.context) == ("boxed", 32768)
    assert trained.messages(trained.samples[0]) == [
        {
            "role": "system",
            "content": "Please reason step by step, and put your final answer within \\boxed{}.",
        },
        {"role": "user", "content": "What is 0 + {1}?"},
    ]
    assert load_task("amc23", protocol="bias-only", file=amc).settings.samples == 32
    assert load_task("amc23", protocol="densesteer", file=amc).settings.samples == 1


def test_a_subset_is_drawn_by_its_seed(gsm8k: Path) -> None:
    task = load_task("gsm8k", file=gsm8k)
    drawn = [[sample.id for sample in task.subset(4, seed).samples] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] == sorted(drawn[0])
    assert drawn[0] != drawn[2]
    assert drawn[0] != [sample.id for sample in task.limit(4).samples]
    assert len({*drawn[0]}) == 4
    for count in (0, 11):
        with pytest.raises(EdgeSteerError, match=f"a subset of {count} problems; task gsm8k has 10"):
            task.subset(count)


def test_how_a_completion_ends_and_is_graded_can_be_set(gsm8k: Path) -> None:
    task = load_task("gsm8k", file=gsm8k)
    settings = task.with_settings(stop=["\n\n"], grading="boxed", context=100).settings
    assert (settings.stop, settings.grading, settings.context) == (("\n\n",), "boxed", 100)
    for wrong, says in (
        ({"stop": [""]}, "stop string"),
        ({"grading": "mild"}, "no grading"),
        ({"context": 0}, "context"),
    ):
        with pytest.raises(EdgeSteerError, match=says):
            task.with_settings(**wrong)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_word_problems_are_asked_plainly(protocol: Protocol) -> None:
    task = load_task("wordproblems", protocol=protocol, limit=3)
    assert task.messages(task.samples[0]) == [{"role": "user", "content": task.samples[0].question}]
    assert task.settings.max_tokens == 400
    assert [sample.answer for sample in task.samples] == [s.answer for s in word_problems("test", 3)]
    assert load_task("wordproblems", split="dev", limit=3).samples == word_problems("dev", 3)


def test_the_digest_follows_problems_and_grader_alone(gsm8k: Path) -> None:
    task = load_task("gsm8k", file=gsm8k)
    assert task.digest == load_task("gsm8k", protocol="bias-only", file=gsm8k).digest
    assert len({task.digest, task.limit(9).digest, replace(task, grader="letter").digest}) == 3


def test_a_limit_takes_the_first(gsm8k: Path) -> None:
    task = load_task("gsm8k", file=gsm8k)
    assert load_task("gsm8k", file=gsm8k, limit=4) == task.limit(4)
    assert task.limit(4).samples == task.samples[:4]
    assert task.limit(40) == task
    for bad in (0, -1):
        with pytest.raises(EdgeSteerError, match="at least 1"):
            task.limit(bad)
        with pytest.raises(EdgeSteerError, match="at least 1"):
            load_task("wordproblems", limit=bad)


def test_splits_share_no_problem(gsm8k: Path) -> None:
    task = load_task("gsm8k", file=gsm8k)
    dev, test = task.split(4, 6)
    assert (len(dev.samples), len(test.samples)) == (4, 6)
    assert {*dev.samples} | {*test.samples} == {*task.samples}
    assert task.split(4, 6) == (dev, test)
    assert task.split(4, 6, seed=1) != (dev, test)
    with pytest.raises(EdgeSteerError, match=r"has 10 problems; 5 \+ 6 were asked"):
        task.split(5, 6)
    with pytest.raises(EdgeSteerError, match="at least 1"):
        task.split(0, 6)


def test_word_problems_split_into_their_own_splits() -> None:
    dev, test = load_task("wordproblems", limit=1).split(30, 40)
    assert dev.samples == word_problems("dev", 30)
    assert test.samples == word_problems("test", 40)


def test_a_task_asked_otherwise(gsm8k: Path) -> None:
    task = load_task("gsm8k", file=str(gsm8k), limit=2)
    assert task.with_settings() == task
    changed = task.with_settings(prompt="{question}!", system="Be brief.", max_tokens=5, samples=2)
    assert changed.messages(task.samples[0])[0] == {"role": "system", "content": "Be brief."}
    assert changed.messages(task.samples[0])[1]["content"] == "What is 0 + {1}?!"
    assert changed.with_settings(system="").settings.system is None
    described = changed.described()
    assert (described["name"], described["problems"], described["digest"]) == ("gsm8k", 2, task.digest)
    assert described["settings"] == asdict(changed.settings)
    with pytest.raises(EdgeSteerError, match="both must be at least 1"):
        task.with_settings(samples=0)


def test_a_users_task(tmp_path: Path) -> None:
    task = load_task(str(sums(tmp_path)))
    assert (task.name, task.grader) == ("sums", "math")
    assert task.samples[1] == Sample("1", "1 + 1?", "2")
    assert task.messages(task.samples[1]) == [{"role": "user", "content": "Add. 1 + 1?"}]
    assert task.settings.max_tokens == 2048
    ending = 'stop = ["Q:"]\ngrading = "boxed"\n'
    settings = load_task(str(sums(tmp_path, TOML + ending))).settings
    assert (settings.stop, settings.grading, settings.system) == (("Q:",), "boxed", None)
    more = 'id = "name"\nsystem = "Be brief."\nmax_tokens = 64\ntemperature = 0.7\nsamples = 4\n'
    task = load_task(str(sums(tmp_path, TOML + more)), limit=2)
    assert [sample.id for sample in task.samples] == ["sum 0", "sum 1"]
    settings = task.settings
    assert (settings.system, settings.max_tokens, settings.samples) == ("Be brief.", 64, 4)
    assert settings.sampling.temperature == 0.7


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (TOML + "surprise = 1\n", "surprise: no such key; allowed are answer, file"),
        (TOML.replace('grader = "math"', 'grader = "vibes"'), "grader: allowed are math, letter"),
        (TOML.replace('name = "sums"', 'name = "gsm8k"'), "name: 'gsm8k' is a shipped task's"),
        (TOML.replace('name = "sums"', 'name = "my sums"'), "name: 'my sums'"),
        (TOML.replace("{question}", ""), "has no {question} in it"),
        (TOML.replace('answer = "gold"\n', ""), "answer: is missing"),
        (TOML.replace('answer = "gold"', 'answer = "silver"'), "problem 1 has no field 'silver'"),
        (TOML.replace("sums.jsonl", "gone.jsonl"), "no such file"),
        (TOML + 'id = "gold"\nsamples = 0\n', "at least 1"),
        (TOML + "max_tokens = 1.5\n", "max_tokens: 1.5 is not a whole number"),
        (TOML + "temperature = -1\n", "temperature"),
        (TOML + 'stop = [""]\n', "a stop string is empty"),
        (TOML + 'grading = "mild"\n', "grading: allowed are boxed, lenient"),
        ("name = ", "is not TOML"),
    ],
)
def test_a_users_task_is_checked(tmp_path: Path, changed: str, message: str) -> None:
    path = sums(tmp_path, changed)
    with pytest.raises(EdgeSteerError, match=message):
        load_task(str(path))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gsm9k", {}, "no task 'gsm9k'; known are gsm8k, "),
        ("gsm9k=x.jsonl", {}, "no task 'gsm9k=x.jsonl'"),
        ("gsm8k=a.jsonl", {"file": Path("b.jsonl")}, "give one"),
        ("gsm8k", {"file": Path("gone.jsonl")}, "no such file: gone.jsonl"),
        ("gsm8k", {"split": "dev"}, "no split 'dev'; there is test, train"),
        ("gsm8k", {"file": Path("a.jsonl"), "split": "test"}, "leave out the split"),
        ("wordproblems", {"split": "exam"}, "no split 'exam'; wordproblems have train"),
        ("wordproblems=a.jsonl", {}, "leave out the file"),
        ("gone.toml", {}, "no such file: gone.toml"),
        ("gone.toml", {"split": "test"}, "leave out the file or split"),
        ("deepscaler", {}, "task deepscaler has no source to fetch it from; give its file as deepscaler=FILE"),
        ("gsm8k", {"protocol": "mine"}, "no protocol 'mine'; known are densesteer, densesteer-code, "),
    ],
)
def test_what_there_is_not_is_said(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgeSteerError, match=message):
        load_task(name, **options)


def test_a_task_needs_problems_with_ids_of_their_own() -> None:
    task = load_task("wordproblems", limit=2)
    with pytest.raises(EdgeSteerError, match="has no problems"):
        replace(task, samples=())
    with pytest.raises(EdgeSteerError, match="twice"):
        Task("t", (task.samples[0],) * 2, task.settings, "math")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("3 + 4 = 7.\n\nThe answer is \\boxed{7}.", True),
        ("The answer is \\boxed{8}. It is not 7.", False),
    ],
)
def test_grade(text: str, right: bool) -> None:
    assert tasks_task.grade(text, "7") is right


def test_steps_are_paragraphs() -> None:
    assert tasks_task.count_steps("a\n\nb\nc\n \n\n\nd\n\n") == 3
    assert tasks_task.count_steps(" \n\n ") == 0
    assert tasks_task.density(30, 3) == 10
    with pytest.raises(EdgeSteerError, match="empty text"):
        tasks_task.density(0, 0)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", 0),
        ("Mia has 3.5 apples. She buys 4!\n\nHow many? (She has 7.5.) Done", 5),
        ("1. Add them.\n2. The answer is 12.", 2),
        ("The answer is\n\n12.", 1),
        ("no end", 1),
    ],
)
def test_sentences_end_where_a_sentence_ends_not_where_a_line_breaks(text: str, sentences: int) -> None:
    assert tasks_task.count_sentences(text) == sentences
    assert tasks_task.count_sentences(text.replace("\n", " ")) == sentences


def test_a_calculation_is_a_result_that_is_stated() -> None:
    text = r"3 * 4 = 12, x = y, 12 + 1 = $13, \frac{1}{3} \approx 0.33 and 2 * 2 = \boxed{4}; **7 + 1 = 8**, 5 - 6 = -1"
    assert tasks_task.count_calculations(text) == 6
