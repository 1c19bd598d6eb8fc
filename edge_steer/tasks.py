"""Problems to solve and how an answer is judged: samples, the prompt, the grade, the density of a text.

Takes a split or a text, gives samples and numbers. The only door to math_verify. It runs no model.
"""

import re
from dataclasses import dataclass
from itertools import islice

from edge_steer import wordproblems
from edge_steer.backend import Message
from edge_steer.errors import EdgeSteerError, need

BLANK_LINE = re.compile(r"\n[ \t]*\n")


@dataclass(frozen=True)
class Sample:
    """One problem: its id within the task, the question and the gold answer."""

    id: str
    question: str
    answer: str

    @property
    def messages(self) -> list[Message]:
        """The zero-shot prompt: the question as the user's only turn."""
        return [{"role": "user", "content": self.question}]


def word_problems(split: wordproblems.Split, count: int, seed: int = 0) -> list[Sample]:
    """The first `count` generated word problems of a split. Errors: EdgeSteerError for an unknown split."""
    if count < 1:
        raise EdgeSteerError(f"{count} problems asked; at least 1 is needed")
    drawn = islice(wordproblems.problems(split, seed), count)
    return [Sample(f"{split}-{seed}-{i}", problem.question, str(problem.answer)) for i, problem in enumerate(drawn)]


def grade(text: str, answer: str) -> bool:
    """Whether the final answer in `text` equals `answer`, by math-verify."""
    need("evaluate")
    from math_verify import parse, verify

    return bool(verify(parse(f"${answer}$"), parse(text)))


def count_steps(text: str) -> int:
    """N_steps: paragraphs of a text, split at blank lines (DenseSteer, section on the reasoning density)."""
    return sum(bool(part.strip()) for part in BLANK_LINE.split(text))


def density(tokens: int, steps: int) -> float:
    """rho = N_tokens / N_steps. Errors: EdgeSteerError for a text without a step."""
    if steps < 1:
        raise EdgeSteerError("the density of an empty text is undefined")
    return tokens / steps
