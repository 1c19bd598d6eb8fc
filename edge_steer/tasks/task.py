"""Tasks: problems, how they are asked and how an answer is judged; steps and density of a text.

Takes a name, a published file or a user's task.toml, gives a frozen Task. It runs no model.
"""

import hashlib
import json
import random
import re
from dataclasses import dataclass, replace
from itertools import islice

from edge_steer.core.backend import Message, Sampling
from edge_steer.core.errors import EdgeSteerError
from edge_steer.tasks import answers, wordproblems

WORD_PROBLEMS = "wordproblems"
WORD_PROBLEM_COUNT = 500
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
