"""A task: problems, how they are asked and how an answer is judged; steps and density of a text.

A frozen value with the conversation that asks each problem. It knows no shipped task, reads no file and runs no model.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

from edge_steer.core.backend import Message
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.sampling import Sampling
from edge_steer.tasks import answers

BLANK_LINE = re.compile(r"\n[ \t]*\n")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][*\"')\]])\s+")
LIST_NUMBER = re.compile(r"[\W_]*\d{1,2}[.)]")
RESULT = re.compile(r"(?:=|≈|\\approx)[\s$({*]*(?:\\[a-z]*\{)?-?[\s$]*\.?\d")


@dataclass(frozen=True)
class Sample:
    """One problem: its id, unique in its task, the question as asked and the gold answer as text."""

    id: str
    question: str
    answer: str


Draw = Callable[[str, int, int], tuple[Sample, ...]]  # the name of a split, how many problems, a seed


@dataclass(frozen=True)
class TaskSettings:
    """How a task is asked. `prompt` holds {question}; `samples` completions are made of each problem.

    sampling.seed is the base seed, from which every completion of every problem gets a seed of its own.
    stop: strings that end a completion. grading: whether only a box counts, or any stated answer.
    context: most positions of a prompt and its completion together; None is what the model has.
    """

    prompt: str
    system: str | None
    max_tokens: int
    sampling: Sampling
    samples: int
    stop: tuple[str, ...] = ()
    grading: answers.Grading = "lenient"
    context: int | None = None

    def __post_init__(self) -> None:
        if "{question}" not in self.prompt:
            raise EdgeSteerError(f"the prompt template {self.prompt!r} has no {{question}} in it")
        if self.max_tokens < 1 or self.samples < 1:
            raise EdgeSteerError(f"max_tokens is {self.max_tokens} and samples {self.samples}; both must be at least 1")
        if self.context is not None and self.context < 1:
            raise EdgeSteerError(f"context is {self.context}; it must be at least 1")
        if "" in self.stop:
            raise EdgeSteerError("a stop string is empty; leave it out")
        if self.grading not in answers.GRADINGS:
            raise EdgeSteerError(f"no grading {self.grading!r}; allowed are {', '.join(answers.GRADINGS)}")


@dataclass(frozen=True)
class Task:
    """Problems with their settings and grader. Errors: EdgeSteerError for no problems or an id that comes twice.

    draw: gives new problems of a split, for a task whose problems are generated; None for one with a fixed list.
    """

    name: str
    samples: tuple[Sample, ...]
    settings: TaskSettings
    grader: answers.Kind
    draw: Draw | None = field(default=None, compare=False, repr=False)

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

    def described(self) -> dict[str, object]:
        """The task as the header of a results file tells it."""
        return {
            "name": self.name,
            "digest": self.digest,
            "problems": len(self.samples),
            "grader": self.grader,
            "settings": asdict(self.settings),
        }

    def with_settings(
        self,
        *,
        prompt: str | None = None,
        system: str | None = None,
        max_tokens: int | None = None,
        samples: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] | None = None,
        grading: answers.Grading | None = None,
        context: int | None = None,
    ) -> "Task":
        """The task asked otherwise; None leaves a setting as it is, and the system message "" is none.

        Errors: EdgeSteerError for a prompt without {question}, a number below 1, or an empty stop string.
        """
        old = self.settings
        settings = TaskSettings(
            prompt=old.prompt if prompt is None else prompt,
            system=old.system if system is None else system or None,
            max_tokens=old.max_tokens if max_tokens is None else max_tokens,
            sampling=sampling or old.sampling,
            samples=old.samples if samples is None else samples,
            stop=old.stop if stop is None else tuple(stop),
            grading=grading or old.grading,
            context=old.context if context is None else context,
        )
        return replace(self, settings=settings)

    def messages(self, sample: Sample) -> list[Message]:
        """The conversation that asks one problem."""
        system: list[Message] = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        return [*system, {"role": "user", "content": self.settings.prompt.replace("{question}", sample.question)}]

    def limit(self, count: int) -> "Task":
        """The first `count` problems, or all if there are fewer. Errors: EdgeSteerError for a count below 1."""
        if count < 1:
            raise EdgeSteerError(f"{count} problems asked; at least 1 is needed")
        return replace(self, samples=self.samples[:count])

    def subset(self, count: int, seed: int = 0) -> "Task":
        """`count` problems drawn by `seed`, in their order. Errors: EdgeSteerError for a count below 1 or too large."""
        if not 1 <= count <= len(self.samples):
            raise EdgeSteerError(f"a subset of {count} problems; task {self.name} has {len(self.samples)}")
        drawn = sorted(random.Random(seed).sample(range(len(self.samples)), count))
        return replace(self, samples=tuple(self.samples[index] for index in drawn))

    def split(self, dev: int, test: int, seed: int = 0) -> tuple["Task", "Task"]:
        """Two tasks without a common problem, drawn by `seed`; generated problems come from splits "dev" and "test".

        Errors: EdgeSteerError for a part below 1, or more problems than there are.
        """
        if dev < 1 or test < 1:
            raise EdgeSteerError(f"a split into {dev} and {test} problems; each part needs at least 1")
        if self.draw:
            return replace(self, samples=self.draw("dev", dev, seed)), replace(
                self, samples=self.draw("test", test, seed)
            )
        if dev + test > len(self.samples):
            raise EdgeSteerError(
                f"task {self.name} has {len(self.samples)} problems; {dev} + {test} were asked, take fewer"
            )
        drawn = random.Random(seed).sample(self.samples, dev + test)
        return replace(self, samples=tuple(drawn[:dev])), replace(self, samples=tuple(drawn[dev:]))


def grade(text: str, answer: str) -> bool:
    """Whether the final answer in `text` equals `answer`, by math-verify; see answers.grade."""
    return answers.grade(text, answer).correct


def count_steps(text: str) -> int:
    """N_steps: paragraphs of a text, split at blank lines (DenseSteer, section on the reasoning density)."""
    return sum(bool(part.strip()) for part in BLANK_LINE.split(text))


def count_sentences(text: str) -> int:
    """Sentences of a text, ended by . ! or ? before white space; where its lines break makes no difference.

    The number of a list's item is no sentence of its own.
    """
    pieces = SENTENCE_END.split(" ".join(text.split()))
    return sum(bool(piece) and not LIST_NUMBER.fullmatch(piece) for piece in pieces)


def count_calculations(text: str) -> int:
    """How often a text states a result: an equals sign, or one for about, before a number."""
    return len(RESULT.findall(text))


def density(tokens: int, steps: int) -> float:
    """rho = N_tokens / N_steps. Errors: EdgeSteerError for a text without a step."""
    if steps < 1:
        raise EdgeSteerError("the density of an empty text is undefined")
    return tokens / steps
