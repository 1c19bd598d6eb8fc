"""Tasks: problems, how they are asked and how an answer is judged; steps and density of a text.

Takes a name, a published file or a user's task.toml, gives a frozen Task. It runs no model.
"""

import hashlib
import json
import random
import re
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

from edge_steer import answers, wordproblems
from edge_steer.backend import GREEDY, Message, Sampling
from edge_steer.errors import EdgeSteerError
from edge_steer.published import BENCHMARKS, read_rows
from edge_steer.toml_table import TomlTable

Protocol = Literal["densesteer", "bias-only"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
WORD_PROBLEMS = "wordproblems"
WORD_PROBLEM_COUNT = 500
TASKS: tuple[str, ...] = (*BENCHMARKS, WORD_PROBLEMS)
BOX = "\\boxed{}"
PROMPTS: dict[tuple[Protocol, answers.Kind], str] = {
    ("densesteer", "math"): f"{{question}}\n\nLet's think step by step, and put the final answer in {BOX}.",
    ("densesteer", "letter"): f"{{question}}\n\nLet's think step by step, and put the letter of the answer in {BOX}.",
    ("bias-only", "math"): f"{{question}}\n\nPlease reason step by step, and put your final answer within {BOX}.",
    ("bias-only", "letter"): f"{{question}}\n\nPlease reason step by step, and put your final letter within {BOX}.",
}
BLANK_LINE = re.compile(r"\n[ \t]*\n")


@dataclass(frozen=True)
class Sample:
    """One problem: its id, unique in its task, the question as asked and the gold answer as text."""

    id: str
    question: str
    answer: str

    @property
    def messages(self) -> list[Message]:
        """The question as the user's only turn."""
        return [{"role": "user", "content": self.question}]


@dataclass(frozen=True)
class Settings:
    """How a task is asked. `prompt` holds {question}; `samples` completions are made of each problem.

    sampling.seed is the base seed, from which every completion of every problem gets a seed of its own.
    """

    prompt: str
    system: str | None
    max_tokens: int
    sampling: Sampling
    samples: int

    def __post_init__(self) -> None:
        if "{question}" not in self.prompt:
            raise EdgeSteerError(f"the prompt template {self.prompt!r} has no {{question}} in it")
        if self.max_tokens < 1 or self.samples < 1:
            raise EdgeSteerError(f"max_tokens is {self.max_tokens} and samples {self.samples}; both must be at least 1")


@dataclass(frozen=True)
class Task:
    """Problems with their settings and grader. Errors: EdgeSteerError for no problems or an id that comes twice."""

    name: str
    samples: tuple[Sample, ...]
    settings: Settings
    grader: answers.Kind

    def __post_init__(self) -> None:
        if not self.samples:
            raise EdgeSteerError(f"task {self.name} has no problems; at least one is needed")
        seen: set[str] = set()
        for sample in self.samples:
            if sample.id in seen:
                raise EdgeSteerError(f"task {self.name} has the id {sample.id!r} twice; ids must differ")
            seen.add(sample.id)

    @property
    def digest(self) -> str:
        """SHA-256 over the problems in their order and the grader, in hex."""
        rows = [[sample.id, sample.question, sample.answer] for sample in self.samples]
        return hashlib.sha256(json.dumps([self.grader, rows]).encode()).hexdigest()

    def messages(self, sample: Sample) -> list[Message]:
        """The conversation that asks one problem."""
        system: list[Message] = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        return [*system, {"role": "user", "content": self.settings.prompt.replace("{question}", sample.question)}]

    def limit(self, count: int) -> "Task":
        """The first `count` problems, or all if there are fewer. Errors: EdgeSteerError for a count below 1."""
        if count < 1:
            raise EdgeSteerError(f"{count} problems asked; at least 1 is needed")
        return replace(self, samples=self.samples[:count])

    def split(self, dev: int, test: int, seed: int = 0) -> tuple["Task", "Task"]:
        """Two tasks without a common problem, drawn by `seed`; word problems come from their own disjoint splits.

        Errors: EdgeSteerError for a part below 1, or more problems than there are.
        """
        if dev < 1 or test < 1:
            raise EdgeSteerError(f"a split into {dev} and {test} problems; each part needs at least 1")
        if self.name == WORD_PROBLEMS:
            parts = word_problems("dev", dev, seed), word_problems("test", test, seed)
        elif dev + test > len(self.samples):
            raise EdgeSteerError(
                f"task {self.name} has {len(self.samples)} problems; {dev} + {test} were asked, take fewer"
            )
        else:
            drawn = random.Random(seed).sample(self.samples, dev + test)
            parts = drawn[:dev], drawn[dev:]
        return replace(self, samples=tuple(parts[0])), replace(self, samples=tuple(parts[1]))


def load_task(
    name: str,
    *,
    protocol: Protocol = "densesteer",
    file: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> Task:
    """A task by its name in TASKS, by NAME=FILE or `file` (that task from a local file), or the path of a task.toml.

    protocol: whose way of asking the settings follow. split: of those the task has; a local file is its own split.
    Without a file a published benchmark is fetched from its pinned source once. limit: the first so many problems.
    Errors: EdgeSteerError.
    """
    if protocol not in PROTOCOLS:
        raise EdgeSteerError(f"no protocol {protocol!r}; known are {', '.join(PROTOCOLS)}")
    known, equals, given = name.partition("=")
    if equals and known in TASKS:
        if file is not None:
            raise EdgeSteerError(f"{name} names a file, and {file} is another; give one")
        return load_task(known, protocol=protocol, file=Path(given), split=split, limit=limit)
    if file is not None and split is not None:
        raise EdgeSteerError(f"{file} is the split to ask; leave out the split {split!r}")
    if name == WORD_PROBLEMS:
        task = _load_word_problems(protocol, file, split, limit)
    elif name in BENCHMARKS:
        task = _load_benchmark(name, protocol, file, split)
    elif name.endswith(".toml"):
        if file is not None or split is not None:
            raise EdgeSteerError(f"{name} names its own file of problems; leave out the file or split")
        task = _load_toml(Path(name), protocol)
    else:
        raise EdgeSteerError(f"no task {name!r}; known are {', '.join(TASKS)}, or the path of a task.toml")
    return task if limit is None else task.limit(limit)


def word_problems(split: wordproblems.Split, count: int, seed: int = 0) -> list[Sample]:
    """The first `count` generated word problems of a split. Errors: EdgeSteerError for an unknown split."""
    if count < 1:
        raise EdgeSteerError(f"{count} problems asked; at least 1 is needed")
    drawn = islice(wordproblems.problems(split, seed), count)
    return [Sample(f"{split}-{seed}-{i}", problem.question, str(problem.answer)) for i, problem in enumerate(drawn)]


def grade(text: str, answer: str) -> bool:
    """Whether the final answer in `text` equals `answer`, by math-verify; see answers.grade."""
    return answers.grade(text, answer).correct


def count_steps(text: str) -> int:
    """N_steps: paragraphs of a text, split at blank lines (DenseSteer, section on the reasoning density)."""
    return sum(bool(part.strip()) for part in BLANK_LINE.split(text))


def density(tokens: int, steps: int) -> float:
    """rho = N_tokens / N_steps. Errors: EdgeSteerError for a text without a step."""
    if steps < 1:
        raise EdgeSteerError("the density of an empty text is undefined")
    return tokens / steps


def _settings(protocol: Protocol, grader: answers.Kind, averaged: bool) -> Settings:
    prompt = PROMPTS[protocol, grader]
    if protocol == "densesteer":
        return Settings(prompt, None, 2048, GREEDY, 1)
    return Settings(prompt, None, 4096, Sampling(temperature=1.0), 32 if averaged else 1)


def _load_word_problems(protocol: Protocol, file: Path | None, split: str | None, limit: int | None) -> Task:
    """Asked plainly in every protocol: the bundled model knows the bare question alone."""
    if file is not None:
        raise EdgeSteerError(f"{WORD_PROBLEMS} are generated, not read from {file}; leave out the file")
    known = next((known for known in wordproblems.SPLITS if known == (split or "test")), None)
    if known is None:
        raise EdgeSteerError(f"no split {split!r}; {WORD_PROBLEMS} have {', '.join(wordproblems.SPLITS)}")
    samples = word_problems(known, WORD_PROBLEM_COUNT if limit is None else limit)
    settings = replace(_settings(protocol, "math", averaged=False), prompt="{question}", max_tokens=400)
    return Task(WORD_PROBLEMS, tuple(samples), settings, "math")


def _load_benchmark(name: str, protocol: Protocol, file: Path | None, split: str | None) -> Task:
    benchmark = BENCHMARKS[name]
    if file is None:
        try:
            file = benchmark.file(split)
        except EdgeSteerError as error:
            raise EdgeSteerError(f"task {name}: {error}; or give its file as {name}=FILE") from error
    samples = tuple(Sample(*triple) for triple in benchmark.read(file))
    return Task(name, samples, _settings(protocol, benchmark.grader, benchmark.averaged), benchmark.grader)


def _load_toml(path: Path, protocol: Protocol) -> Task:
    """A user's task: what its TOML leaves out, the protocol says."""
    table = TomlTable(path, "a task: name, file, prompt, question, answer, grader")
    name, file, prompt = table.text("name"), path.parent / table.text("file"), table.text("prompt")
    question, answer, identity = table.text("question"), table.text("answer"), table.text("id", optional=True)
    named = table.text("grader")
    grader = next((kind for kind in answers.KINDS if kind == named), None)
    if grader is None:
        raise table.error("grader", f"allowed are {', '.join(answers.KINDS)}")
    preset = _settings(protocol, grader, averaged=False)
    settings = Settings(
        prompt=prompt,
        system=table.text("system", optional=True) or None,
        max_tokens=table.whole("max_tokens", preset.max_tokens),
        sampling=replace(preset.sampling, temperature=table.number("temperature", preset.sampling.temperature)),
        samples=table.whole("samples", preset.samples),
    )
    table.finish()
    if name in TASKS or not re.fullmatch(r"\w[\w.-]*", name):
        raise table.error("name", f"{name!r} is a shipped task's, or holds more than letters, digits, '.', '_' and '-'")
    needed = [field for field in (question, answer, identity) if field]
    samples = tuple(
        Sample(str(row[identity]) if identity else str(number), str(row[question]), str(row[answer]))
        for number, row in enumerate(read_rows(file, *needed))
    )
    return Task(name, samples, settings, grader)
