"""Contrasts as pairs: another model's traces, the model's own dense samples, prompted opposites, answer letters,
reflection, personas, plain texts; and controls.

Takes files, gives pairs and what was left out. Each contrast is one function in CONTRASTS. It runs no model.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edge_steer.core.errors import EdgeSteerError
from edge_steer.pairs.controls import with_sentences_dropped, without_line_breaks
from edge_steer.pairs.pair import ContrastPairs, Pair
from edge_steer.pairs.solutions import Solution, read_solutions, usable_solutions
from edge_steer.storage.files import read_lines, readable

Thought = Literal["execution", "reflection", "transition"]
PERSONA = "Act as if you're {persona}."
BREAK = re.compile(r"\n(?:[ \t]*\n)+")  # between two thoughts
THINKING, THOUGHT_OVER = "<think>", "</think>"
MATCHING, OTHER = "answer_matching_behavior", "answer_not_matching_behavior"
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "'": "'", '"': '"', "\\": "\\"}
MANY = 10**6  # every sample of a problem
ESCAPE = re.compile(r"\\(?:([nrt'\"\\])|x([0-9a-fA-F]{2}))")
# SEAL's keywords (Chen et al., 2025), whatever the case; reflection is looked for first.
STARTS: dict[Thought, tuple[str, ...]] = {"reflection": ("wait",), "transition": ("alternatively",)}
HOLDS: dict[Thought, tuple[str, ...]] = {
    "reflection": (
        "verify", "make sure", "hold on", "think again", "'s correct", "'s incorrect", "let me check", "seems right",
    ),
    "transition": (
        "think differently", *(f"another {word}" for word in
                               ("way", "approach", "method", "solution", "strategy", "technique")),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Sources:
    """What a contrast is made of. personas: of the positive and the negative side; template: holds {persona}.

    beginnings: take every beginning of a text, word by word, too. seed: of what is drawn.
    """

    files: tuple[str | Path, ...]
    personas: tuple[str, str] | None = None
    template: str = PERSONA
    beginnings: bool = False
    seed: int = 0


def in_family(sources: Sources) -> ContrastPairs:
    """InFamilySteer: a larger model's right solutions against the target's own to the same problems.

    Files: the larger model's solutions, the target's. The pair is asked as the target was.
    """
    positive, negative = _solutions(sources, "the larger model's solutions", "the target's solutions")
    return trace_pairs(positive, negative)


def opposites(sources: Sources) -> ContrastPairs:
    """CAA on free answers: a model's solutions under one system message against those under its opposite.

    Files: the solutions under the wanted message, those under the other, right or wrong, whole. The pair is asked
    without either message.
    """
    positive, negative = _solutions(sources, "the solutions under one message", "those under its opposite")
    if {s.system for s in positive} & {s.system for s in negative}:
        raise EdgeSteerError("both files were made under the same system message; make them under two")
    contrasted = trace_pairs(positive, negative, wrong=True)
    return replace(contrasted, pairs=tuple(replace(pair, system=None) for pair in contrasted.pairs))


def letters(sources: Sources) -> ContrastPairs:
    """CAA (Panickssery et al., 2024): the letter of the answer with the behaviour against the other letter.

    File: JSON or JSONL with question, answer_matching_behavior, answer_not_matching_behavior. The answer ends with the
    letter itself, so that the last token is the one that CAA reads: "(A)" becomes "(A".
    """
    [path] = _files(sources, "questions with both answers")
    pairs = []
    for number, row in enumerate(_objects(path), 1):
        fields = [row.get(name) for name in ("question", MATCHING, OTHER)]
        if not all(isinstance(value, str) and value.strip() for value in fields):
            raise EdgeSteerError(f"{path}, question {number}: question, {MATCHING} and {OTHER} must be text")
        question, positive, negative = (str(value).strip() for value in fields)
        name = f"question {number}"
        pairs.append(_pair(path, question=question, positive=_letter(positive), negative=_letter(negative), id=name))
    return ContrastPairs(tuple(pairs))


def reflection(sources: Sources) -> ContrastPairs:
    """SEAL (Chen et al., 2025): about to execute a step, against about to reflect or to change the approach.

    File: solutions of the target, right or wrong, whole. Paragraphs are classed by `thought_of`. For each one of
    reflection or transition, the negative is the text up to the blank line before it, and the positive the text up to
    the one before the nearest paragraph of execution: the last token is where the next thought is chosen.
    """
    [path] = _files(sources, "the target's solutions")
    pairs, left_out = [], []
    for solution in usable_solutions(read_solutions(path), per_problem=MANY, wrong=True):
        thoughts = list(_thoughts(solution.text))
        executions = [end for end, thought in thoughts if thought == "execution"]
        others = [(end, thought) for end, thought in thoughts if thought != "execution"]
        if not others or not executions:
            left_out.append(f"{solution.id}: " + ("no paragraph of execution" if others else "no reflection"))
            continue
        for number, (end, thought) in enumerate(others, 1):
            nearest = min(executions, key=lambda start: (abs(start - end), start))
            pairs.append(
                Pair(
                    question=solution.prompt,
                    positive=solution.text[:nearest],
                    negative=solution.text[:end],
                    answer=solution.answer,
                    id=f"{solution.id}, {thought} {number}",
                    system=solution.system,
                )
            )
    return ContrastPairs(tuple(pairs), tuple(left_out))


def thoughts(sources: Sources) -> ContrastPairs:
    """SEAL as published: all thoughts of execution against all of reflection or transition, of all solutions.

    File and sides as in `reflection`. The class with fewer thoughts is gone through again, so that each thought stands
    in a pair; the method "class_means" counts each one once.
    """
    [path] = _files(sources, "the target's solutions")
    executions: list[_Thought] = []
    others: list[_Thought] = []
    for solution in usable_solutions(read_solutions(path), per_problem=MANY, wrong=True):
        for number, (end, thought) in enumerate(_thoughts(solution.text), 1):
            side = _Thought(solution, f"{solution.id}, {thought} {number}", solution.text[:end])
            (executions if thought == "execution" else others).append(side)
    if not executions or not others:
        raise EdgeSteerError(f"{path} has {len(executions)} thoughts of execution and {len(others)} others; give more")
    pairs, left_out = [], []
    for i in range(max(len(executions), len(others))):
        wanted, other = executions[i % len(executions)], others[i % len(others)]
        if (wanted.solution.prompt, wanted.text) == (other.solution.prompt, other.text):
            left_out.append(f"{wanted.name}: is {other.name} too")
            continue
        pairs.append(
            Pair(
                question=wanted.solution.prompt,
                positive=wanted.text,
                negative=other.text,
                id=f"{wanted.name}; {other.name}",
                system=wanted.solution.system,
                negative_question=other.solution.prompt,
                negative_system=other.solution.system or "",
            )
        )
    return ContrastPairs(tuple(pairs), tuple(left_out))


def personas(sources: Sources) -> ContrastPairs:
    """Two prompts: the same beginning of an answer under one persona and under the other, as repeng's users do.

    File: beginnings of answers, one a line. The persona stands in the user's turn.
    """
    [path] = _files(sources, "beginnings of answers, one a line")
    if sources.personas is None or not all(text.strip() for text in sources.personas):
        raise EdgeSteerError("two personas are needed, a positive and a negative one")
    if "{persona}" not in sources.template:
        raise EdgeSteerError(f"the template {sources.template!r} has no {{persona}} in it")
    wanted, other = (sources.template.replace("{persona}", text) for text in sources.personas)
    texts = read_lines(path, "beginnings of answers, one a line")
    if sources.beginnings:
        texts = list(dict.fromkeys(text[: word.end()] for text in texts for word in re.finditer(r"\S+", text)))
    return ContrastPairs(
        tuple(
            _pair(path, question=wanted, positive=text, negative=text, id=f"text {number}", negative_question=other)
            for number, text in enumerate(texts, 1)
        )
    )


def texts(sources: Sources) -> ContrastPairs:
    """Two plain files as llama-cvector-generator takes them: a text a line, already in the model's own format.

    Line i of one belongs to line i of the other; \\n and its like are read as escapes.
    """
    first, second = _files(sources, "positive texts, one a line", "negative texts, one a line")
    positive, negative = (read_lines(path, "texts, one a line") for path in (first, second))
    if len(positive) != len(negative):
        raise EdgeSteerError(
            f"{first} has {len(positive)} texts and {second} {len(negative)}; they must be of one number"
        )
    return ContrastPairs(
        tuple(
            _pair(first, question="", positive=_unescaped(a), negative=_unescaped(b), id=f"text {number}", raw=True)
            for number, (a, b) in enumerate(zip(positive, negative, strict=True), 1)
        )
    )


def own_samples(sources: Sources) -> ContrastPairs:
    """Dense pairs without a teacher: right samples of the target under a dense instruction against its own solutions.

    Files: the samples under the instruction, the target's solutions. Every different right sample of a problem is a
    candidate of the same negative, asked without the instruction; `checks` keeps the denser ones and the likeliest.
    """
    samples, own = _solutions(sources, "the samples under a dense instruction", "the target's solutions")
    by_question: dict[str, list[Solution]] = {}
    for sample in usable_solutions(samples, per_problem=MANY):
        by_question.setdefault(sample.question, []).append(sample)
    pairs, left_out = [], []
    for solution in usable_solutions(own):
        candidates = [s for s in by_question.get(solution.question, ()) if s.text != solution.text]
        if not candidates:
            left_out.append(f"{solution.id}: no other right sample under the instruction")
        for number, sample in enumerate(candidates, 1):
            name = f"{solution.id}, sample {number}"
            pairs.append(Pair(solution.prompt, sample.text, solution.text, solution.answer, name, solution.system))
    return ContrastPairs(tuple(pairs), tuple(left_out))


def line_breaks(sources: Sources) -> ContrastPairs:
    """Control: right solutions of the target on one line against the same as they are. File: its solutions."""
    return without_line_breaks(_own(sources))


def compressions(sources: Sources) -> ContrastPairs:
    """Control: right solutions of the target without some sentences against the whole. File: its solutions."""
    return with_sentences_dropped(_own(sources), seed=sources.seed)


CONTRASTS: dict[str, Callable[[Sources], ContrastPairs]] = {
    "in-family": in_family,
    "own-samples": own_samples,
    "opposites": opposites,
    "letters": letters,
    "reflection": reflection,
    "thoughts": thoughts,
    "personas": personas,
    "texts": texts,
    "line-breaks": line_breaks,
    "compressions": compressions,
}


def trace_pairs(positive: Sequence[Solution], negative: Sequence[Solution], *, wrong: bool = False) -> ContrastPairs:
    """Solutions to the same questions side by side, the first right one of each, asked as the negative was.

    wrong: the first whole one, right or wrong.
    """
    first, own = (
        {solution.question: solution for solution in reversed(usable_solutions(solutions, wrong=wrong))}
        for solutions in (positive, negative)
    )
    kind = "whole" if wrong else "right and whole"
    pairs, left_out = [], []
    for question in dict.fromkeys(solution.question for solution in (*negative, *positive)):
        if question not in first or question not in own:
            name = next(s.id for s in (*negative, *positive) if s.question == question)
            sides = [
                side for side, by_question in (("positive", first), ("negative", own)) if question not in by_question
            ]
            left_out.append(f"{name}: no {kind} solution for the {' and the '.join(sides)}")
            continue
        mine, other = own[question], first[question]
        if mine.text == other.text:
            left_out.append(f"{mine.id}: both solutions are the same text")
            continue
        pairs.append(Pair(mine.prompt, other.text, mine.text, mine.answer, mine.id, mine.system))
    return ContrastPairs(tuple(pairs), tuple(left_out))


def thought_of(paragraph: str) -> Thought:
    """What a paragraph does, by SEAL's keywords: one it starts with, or one it holds; else it executes."""
    text = paragraph.replace("\u2019", "'").strip().lower()
    for thought in STARTS:
        if text.startswith(STARTS[thought]) or any(word in text for word in HOLDS[thought]):
            return thought
    return "execution"


@dataclass(frozen=True)
class _Thought:
    """Where a model is about to think so: a solution's text up to there."""

    solution: Solution
    name: str
    text: str


def _thoughts(text: str) -> Iterator[tuple[int, Thought]]:
    """Each paragraph that follows another: where the blank line before it ends, and what it does.

    Of a reasoning model only what it thinks is taken.
    """
    start = text.find(THINKING) + len(THINKING) if THINKING in text else 0
    stop = text.find(THOUGHT_OVER, start)
    stop = len(text) if stop < 0 else stop
    breaks = list(BREAK.finditer(text, start, stop))
    for this, following in zip(breaks, [*breaks[1:], None], strict=True):
        paragraph = text[this.end() : following.start() if following else stop]
        if paragraph.strip() and text[start : this.start()].strip():
            yield this.end(), thought_of(paragraph)


def _files(sources: Sources, *wanted: str) -> tuple[Path, ...]:
    if len(sources.files) != len(wanted):
        names = ", ".join(wanted)
        raise EdgeSteerError(f"{len(sources.files)} files given; this contrast takes {len(wanted)}: {names}")
    return tuple(map(Path, sources.files))


def _solutions(sources: Sources, *wanted: str) -> list[list[Solution]]:
    return [read_solutions(path) for path in _files(sources, *wanted)]


def _own(sources: Sources) -> list[Solution]:
    [solutions] = _solutions(sources, "the target's solutions")
    return usable_solutions(solutions, per_problem=MANY)


def _pair(path: Path, **fields: Any) -> Pair:
    try:
        return Pair(**fields)
    except EdgeSteerError as error:
        raise EdgeSteerError(f"{path}, {fields['id']}: {error}") from None


def _objects(path: Path) -> list[dict[str, Any]]:
    """JSON objects: of a list, or one a line."""
    try:
        text = readable(path, "JSON objects: a list, or one a line").read_text("utf-8")
        rows = json.loads(text) if text.lstrip().startswith("[") else [
            json.loads(line) for line in text.split("\n") if line.strip()
        ]  # fmt: skip
    except ValueError:
        raise EdgeSteerError(f"{path} is no JSON in UTF-8; expected a list of objects, or one object a line") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise EdgeSteerError(f"{path} holds no objects, or something else; expected a list of objects, or one a line")
    return list(rows)


def _letter(answer: str) -> str:
    return answer[:-1] if re.fullmatch(r"\([A-Za-z]\)", answer) else answer


def _unescaped(line: str) -> str:
    return ESCAPE.sub(lambda escape: ESCAPES[escape[1]] if escape[1] else chr(int(escape[2], 16)), line)
