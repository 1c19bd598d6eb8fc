"""Is an answer right? Mathematics by math-verify, multiple choice by the stated letter.

Takes the text of an answer and the gold answer, gives a Grade. The only door to math_verify. It knows no task, no model
and no time limit: `grading` grades in processes that can be ended.
"""

import logging
import math
import re
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from edge_steer.core.errors import need

Kind = Literal["math", "letter"]
Grading = Literal["boxed", "lenient"]
KINDS: tuple[Kind, ...] = get_args(Kind)
GRADINGS: tuple[Grading, ...] = get_args(Grading)
RELATIVE = 1e-4  # what decimal answers may differ by, as in Qwen2.5-Math's grader
WHOLE = re.compile(r"0|-?[1-9][0-9]{0,14}")
WITHIN = re.compile(r"(.+) within ([0-9.]+(?:e-?[0-9]+)?)", re.DOTALL)
EXPONENT = re.compile(r"(?<![\w\\.])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d+)(?![\w.])")
SUBSCRIPT = re.compile(r"_\{\\(max|min|odot)\s*\}")
ENERGY = re.compile(r"(?<![A-Za-z\\])E(?=_)")
TOKEN = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{|\\.|[{}]", re.DOTALL)
BETWEEN_BOXES = re.compile(r"(?:[\s$,;.&]|\\[()\[\]]|\\quad|\\text\{\s*(?:and|or)\s*\}|\band\b|\bor\b)*")
LETTER = r"[\s\"'*`$({\[]*(?:\\(?:text|textbf|mathrm|mathbf)\{)?[({\[]*(?P<letter>[A-H])(?![A-Za-z0-9'])"
STATED = re.compile(
    r"\b(?i:answer|option|choice)(?i:\s+is|\s+should\s+be|\s+would\s+be|\s*:)\W*?"
    r"(?i:(?:the\s+)?(?:correct\s+)?(?:option|choice|letter|answer|statement)?\s*:?)" + LETTER
)
STATED_SMALL = re.compile(r"\b(?i:answer|option|choice)(?i:\s+is|\s*:)[\s(*]*(?P<letter>[a-h])(?:[.)*]|\s*$)", re.M)
CALLED_CORRECT = re.compile(
    r"(?i:option|choice|statement|answer)\s+[(*]*(?P<letter>[A-H])[)*]*\s+is\s+(?:the\s+)?correct"
)
ALONE = re.compile(r"^[\s*(\[]*(?P<letter>[A-H])[\s*)\].:]*$", re.M)
MARKED = re.compile(r"\((?P<letter>[A-H])\)")
OPENING = re.compile(r"^[\s*(\[]*(?P<letter>[A-H])[)\].:*]", re.M)
SECOND = re.compile(
    r"[})\]*.\s$]*(?:(?:\bor\b|\band\b|/)[\s*(\[]*(?:option|choice)?[\s*(\[]*[A-H](?![A-Za-z0-9'])|,[\s(]*[A-H]\W*$)"
)


@dataclass(frozen=True)
class Grade:
    """correct: whether it is the right answer. extracted: what was read as the answer. error: why there is no grade.

    boxed, lenient: whether it is right in each of GRADINGS; `correct` is one of the two.
    """

    correct: bool
    extracted: str
    error: str = ""
    boxed: bool = False
    lenient: bool = False


def grade(text: str, answer: str, kind: Kind = "math", grading: Grading = "lenient") -> Grade:
    """Grade in this process, without a time limit: an expression like 9^{9^{9^9}} may hang it.

    kind "math": against `answer` in LaTeX; an answer "18.8 within 0.1" takes every number that near. kind "letter":
    against a letter. grading "boxed": the last \\boxed{...} with matching braces is the answer; a text without one is
    wrong. grading "lenient": boxes joined by "and" are one answer, and without a box it is what math-verify finds, or
    the letter the text ends up with. Errors: EdgeSteerError if math-verify is not installed.
    """
    if plain := grade_plain(text, answer, kind):
        return plain
    judge = _grade_letter if kind == "letter" else grade_math
    lenient = judge(text, answer)
    boxes = _boxes(text)
    if not boxes:
        boxed = Grade(False, "")
    elif boxes[-1][2] == last_boxed(text):
        boxed = lenient
    else:
        boxed = judge(f"\\boxed{{{boxes[-1][2]}}}", answer)
    chosen = boxed if grading == "boxed" else lenient
    return replace(chosen, boxed=boxed.correct, lenient=lenient.correct)


def grade_plain(text: str, answer: str, kind: Kind = "math") -> Grade | None:
    """The grade where last box and gold answer are whole numbers, as `grade` gives it at once and without math-verify.

    None for all others.
    """
    boxed = last_boxed(text) if kind == "math" and WHOLE.fullmatch(answer) else None
    if boxed is None or not WHOLE.fullmatch(boxed):
        return None
    correct = boxed == answer
    return Grade(correct, boxed, boxed=correct, lenient=correct)


def without_tolerance(answer: str) -> str:
    """A gold answer as a text would say it: "18.8" of "18.8 within 0.1"."""
    tolerant = WITHIN.fullmatch(answer)
    return tolerant[1] if tolerant else answer


def last_boxed(text: str) -> str | None:
    """What stands in the last \\boxed{...}, braces matched; boxes joined by no more than "and" or a comma are one list.

    None if there is none. A box that is never closed is passed over.
    """
    boxes = _boxes(text)
    if not boxes:
        return None
    listed = [boxes[-1][2]]
    for (_, end, content), (start, _, _) in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        between = text[end:start]
        if "\n\n" in between or not BETWEEN_BOXES.fullmatch(between) or content in listed:
            break
        listed.insert(0, content)
    return ", ".join(listed)


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of the closed boxes that stand in no other, in order."""
    boxes: list[tuple[int, int, str]] = []
    opened: list[re.Match[str]] = []
    for token in TOKEN.finditer(text):
        if token[0].endswith("{") and token[0] != "\\{":
            opened.append(token)
        elif token[0] == "}" and opened:
            start = opened.pop()
            if start[0] != "{":
                while boxes and boxes[-1][0] > start.start():
                    boxes.pop()
                boxes.append((start.start(), token.end(), text[start.end() : token.start()].strip()))
    return boxes


def grade_math(text: str, answer: str) -> Grade:
    """By math-verify, leniently. Errors: see `grade`."""
    need("evaluate")
    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off; ours hold
    boxed = last_boxed(text)
    parsed = parse(text if boxed is None else f"\\boxed{{{_readable(boxed)}}}", parsing_timeout=None)
    extracted = boxed if boxed is not None else next((part for part in parsed if isinstance(part, str)), "")
    tolerant = WITHIN.fullmatch(answer)
    gold = parse(f"\\boxed{{{_readable(without_tolerance(answer))}}}", [LatexExtractionConfig()], parsing_timeout=None)
    near = _near(gold, parsed, float(tolerant[2]) if tolerant else None)
    if near is None:
        near = bool(verify(gold, parsed, allow_set_relation_comp=True, timeout_seconds=None))
    return Grade(near, extracted)


def _readable(latex: str) -> str:
    """LaTeX that math-verify reads as meant: not 4.5e33 as 4.5 times Euler's number times 33."""
    latex = SUBSCRIPT.sub(r"_{\1}", EXPONENT.sub(r"\1 \\times 10^{\2}", latex))
    return ENERGY.sub(r"\\Xi", latex)


def _near(gold: list[Any], parsed: list[Any], tolerance: float | None) -> bool | None:
    """Whether two real numbers agree; None leaves it to math-verify.

    math-verify compares at six decimals and takes all numbers below as equal, so numbers must also agree relatively.
    """
    gold_values, values = _values(gold), _values(parsed)
    if not gold_values or not values:
        return None
    near = any(
        abs(a - b) <= (tolerance * (1 + 1e-9) if tolerance is not None else max(RELATIVE * abs(a), 1e-300))
        for a in gold_values
        for b in values
    )
    return near if tolerance is not None or _decimal(gold) or not near else None


def _values(parsed: list[Any]) -> tuple[float, ...]:
    """The real number that was parsed; a percentage also counts as the number before its sign."""
    from sympy import Expr, UnevaluatedExpr

    if not parsed or not isinstance(parsed[0], Expr) or not parsed[0].is_number:
        return ()
    try:
        value = float(parsed[0].doit().evalf())
    except (TypeError, ValueError, OverflowError):
        return ()
    if not math.isfinite(value):
        return ()
    return (value, 100 * value) if parsed[0].has(UnevaluatedExpr) else (value,)


def _decimal(parsed: list[Any]) -> bool:
    from sympy import Float

    return bool(parsed[0].has(Float))


def _grade_letter(text: str, answer: str) -> Grade:
    """By the last box, else the last "the answer is", a letter alone on its line, in brackets, or opening a line."""
    boxed = last_boxed(text)
    if boxed is not None:
        match = re.match(r"(?:\\?(?i:option|choice|answer))?" + LETTER, boxed.replace("~", " "))
        small = re.fullmatch(r"[({\s]*(?P<letter>[a-h])[)}.\s]*", boxed)
        letter = _single(boxed, match or small)
    else:
        sentences = [*STATED.finditer(text), *STATED_SMALL.finditer(text), *CALLED_CORRECT.finditer(text)]
        last = max(sentences, key=lambda match: match.end("letter"), default=None)
        for pattern in (ALONE, MARKED, OPENING):
            last = last or next(iter(deque(pattern.finditer(text), maxlen=1)), None)
        letter = _single(text, last)
    return Grade(letter == answer.strip().upper(), letter)


def _single(text: str, match: re.Match[str] | None) -> str:
    """The letter matched, unless another is offered beside it."""
    if match is None or SECOND.match(text, match.end("letter")):
        return ""
    return match["letter"].upper()
