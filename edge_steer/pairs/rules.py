"""The rules a rewriter is given: what it must keep, what it may change, and where problem and solution stand.

Takes and gives text. A template holds {problem} and {solution}; other braces are left as they are.
"""

import hashlib
import re

PLACES = "\n\nProblem:\n{problem}\n\nSolution:\n{solution}"
# DenseSteer's demands in our words: the same meaning, style, computations and answer; merge and rephrase; add nothing.
RULES = """\
Below are a problem and a solution to it, told in steps with a blank line between them. Rewrite the solution so that \
it has fewer steps and each step carries more of the reasoning.

- Merge neighbouring steps into one paragraph, and rephrase what only repeats or connects.
- Keep the meaning, the order of the reasoning, and the style: its words, notation and formatting, wherever you can.
- Keep every computation with its numbers, and the final answer in the form it has, with its \\boxed{} if there is one.
- Add nothing: no new step, fact, check, explanation, heading or remark. Do not solve the problem anew.
- Separate the steps that remain by a blank line.

Reply with the rewritten solution and nothing else."""
DEFAULT_RULES = RULES + PLACES


def fill_rules(rules: str, problem: str, solution: str) -> str:
    """The prompt for one solution."""
    texts = {"problem": problem, "solution": solution}
    return re.sub(r"\{(problem|solution)\}", lambda place: texts[place[1]], rules)


def rules_digest(rules: str) -> str:
    """SHA-256 of the rules in hex; the usual end, PLACES, is not part of it."""
    return hashlib.sha256(rules.removesuffix(PLACES).encode()).hexdigest()
