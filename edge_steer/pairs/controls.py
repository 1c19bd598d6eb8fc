"""Pairs to hold a vector against: solutions changed in one way that is not the wanted one.

Takes solutions, gives pairs whose negative is the solution as it is. A vector of such pairs says what that change
alone does: other line breaks, fewer sentences. It runs no model.
"""

import random
import re
from collections.abc import Callable, Iterable

from edge_steer.pairs.pair import ContrastPairs, Pair
from edge_steer.pairs.solutions import Solution

SENTENCE = re.compile(r".+?(?:[.!?](?=\s)|\n|$)\s*", re.DOTALL)  # with the white space behind it
DROPPED = 0.3  # of the sentences of a compression


def without_line_breaks(solutions: Iterable[Solution]) -> ContrastPairs:
    """The same solution on one line: each run of white space with a line break in it becomes a space.

    Nothing is denser, but tokens per paragraph rise: what such a vector does is formatting.
    """
    return _changed(solutions, lambda solution: re.sub(r"\s*\n\s*", " ", solution.text.strip()), "has no line break")


def with_sentences_dropped(solutions: Iterable[Solution], share: float = DROPPED, seed: int = 0) -> ContrastPairs:
    """The same solution without some of its sentences, drawn by `seed`, at least one and never the last."""

    def compress(solution: Solution) -> str:
        sentences = SENTENCE.findall(solution.text.strip())
        droppable = range(len(sentences) - 1)
        count = min(max(1, round(share * len(sentences))), len(droppable))
        dropped = random.Random(f"{seed} {solution.digest}").sample(droppable, count)
        return "".join(text for number, text in enumerate(sentences) if number not in dropped)

    return _changed(solutions, compress, "has but one sentence")


def _changed(solutions: Iterable[Solution], change: Callable[[Solution], str], unchanged: str) -> ContrastPairs:
    pairs, left_out = [], []
    for solution in solutions:
        text = change(solution)
        if text == solution.text.strip():
            left_out.append(f"{solution.id}: {unchanged}")
        else:
            pairs.append(Pair(solution.prompt, text, solution.text, solution.answer, solution.id, solution.system))
    return ContrastPairs(tuple(pairs), tuple(left_out))
