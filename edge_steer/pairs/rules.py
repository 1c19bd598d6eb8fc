"""The rules a rewriter is given: what it must keep, what it may change, and where problem and solution stand.

Takes a name or a file, and worked examples as pairs; gives text. Rules hold {solution} and may hold {problem}; other
braces are left as they are.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError
from edge_steer.pairs.pair import Pair
from edge_steer.storage.files import read_text

PLACE = re.compile(r"\{(problem|solution)\}")
PARAGRAPH = re.compile(r"\n[ \t]*\n")
REWRITTEN = "Rewritten solution:"
PLACES = "\n\nProblem:\n{problem}\n\nSolution:\n{solution}"
# DenseSteer's demands and an aim of ours: few, full steps.
OUR_RULES = """\
Below are a problem and a solution to it, told in steps with a blank line between them. Rewrite the solution so that \
it has fewer steps and each step carries more of the reasoning.

- Merge neighbouring steps into one paragraph, and rephrase what only repeats or connects.
- Keep the meaning, the order of the reasoning, and the style: its words, notation and formatting, wherever you can.
- Keep every computation with its numbers, and the final answer in the form it has, with its \\boxed{} if there is one.
- Add nothing: no new step, fact, check, explanation, heading or remark. Do not solve the problem anew.
- Separate the steps that remain by a blank line.

Reply with the rewritten solution and nothing else."""
# A minimal rewrite, as DenseSteer has it: the rules of its public code, in our words.
CONSERVATIVE_RULES = """\
Below are a problem and a solution to it. Rewrite the solution so that it is denser, and change as little as possible.

- Merge steps only where that is necessary and safe. Do not try to have as few steps as possible.
- Prefer to merge two steps that stand next to each other.
- Keep the meaning, the style, every computation and the final answer. Only merge and rephrase.
- Keep markers such as <<a=b>> and \\boxed{} as they are.
- Add no fact, no step and no calculation.
- Separate the steps by a blank line.

Reply with the rewritten solution and nothing else."""
# A control: as many steps in other words.
PARAPHRASE_RULES = """\
Below are a problem and a solution to it. Say the same in other words.

- Keep every step, their number and their order, and each step about as long as it is.
- Keep every computation with its numbers, and the final answer in the form it has, with its \\boxed{} if there is one.
- Separate the steps as they are separated.

Reply with the reworded solution and nothing else."""
DEFAULT_RULES_NAME = "conservative"
BUILT_IN = {
    DEFAULT_RULES_NAME: CONSERVATIVE_RULES + PLACES,
    "ours": OUR_RULES + PLACES,
    "paraphrase": PARAPHRASE_RULES + PLACES,
}
DEFAULT_RULES = BUILT_IN[DEFAULT_RULES_NAME]


def read_rules(source: str | Path) -> str:
    """Built-in rules by their name in BUILT_IN, or the text of a file.

    Errors: EdgeSteerError for a file that is missing, empty, not UTF-8, or without {solution}.
    """
    if str(source) in BUILT_IN:
        return BUILT_IN[str(source)]
    path = Path(source)
    if not path.is_file():
        raise EdgeSteerError(f"no rules {source}; built in are {', '.join(BUILT_IN)}, anything else is a file")
    rules = read_text(path, "rules of rewriting").strip()
    if "{solution}" not in rules:
        raise EdgeSteerError(f"{path} has no {{solution}} in it, the place of the text to rewrite")
    return rules


def with_examples(rules: str, examples: Sequence[Pair]) -> str:
    """The rules with worked examples before the problem and the solution that are to be rewritten.

    examples: a pair's negative is the solution, its positive the rewrite. Errors: EdgeSteerError for no examples.
    """
    if not examples:
        raise EdgeSteerError("no examples to show; give at least one pair")
    paragraphs = PARAGRAPH.split(rules)
    first = next(number for number, text in enumerate(paragraphs) if PLACE.search(text))
    while first > 0 and paragraphs[first - 1].rstrip().endswith(":"):  # the title of the place
        first -= 1
    shown = [
        f"Example {number}\n\nProblem:\n{_plain(pair.question)}\n\nSolution:\n{_plain(pair.negative)}\n\n"
        f"{REWRITTEN}\n{_plain(pair.positive)}"
        for number, pair in enumerate(examples, 1)
    ]
    return "\n\n".join([*paragraphs[:first], *shown, "Now the one to rewrite", *paragraphs[first:], REWRITTEN])


def fill_rules(rules: str, problem: str, solution: str) -> str:
    """The prompt for one solution."""
    texts = {"problem": problem, "solution": solution}
    return PLACE.sub(lambda place: texts[place[1]], rules)


def instruction(rules: str) -> str:
    """The rules as a prompt to the model that answers: without the paragraphs that hold a place."""
    return "\n\n".join(text for text in PARAGRAPH.split(rules) if not PLACE.search(text)).strip()


def rules_digest(rules: str) -> str:
    """SHA-256 of the rules in hex; the usual end, PLACES, is not part of it."""
    return hashlib.sha256(rules.removesuffix(PLACES).encode()).hexdigest()


def _plain(text: str) -> str:
    """A text in which nothing is a place."""
    return PLACE.sub(lambda place: f"{{ {place[1]} }}", text.strip())
