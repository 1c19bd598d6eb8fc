"""Is a dense rewrite a good one? Right, denser, with the same computed numbers, and likely to the model it is for.

Takes pairs, gives what was found of each, and which to keep with the reason for every one that is dropped. It rewrites
nothing and knows no file.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edge_steer.core.backend import Backend
from edge_steer.core.errors import EdgeSteerError, RequestError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.stats import MIN_VALUES, Interval, bootstrap
from edge_steer.pairs.numbers import changed_numbers
from edge_steer.pairs.pair import Pair, Side
from edge_steer.pairs.solutions import Solution
from edge_steer.tasks.answers import Kind, last_boxed
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.task import count_steps

Count = Callable[[str], int]  # text -> number of tokens
OWN, REWRITE = "own solution", "dense rewrite"


@dataclass(frozen=True)
class Check:
    """What was found of one pair. Steps are paragraphs; density is tokens per step (rho in DenseSteer).

    known: whether there is an answer to grade by. dropped, added: computed numbers that only one side has.
    positive_nll, negative_nll: nats per token under the model the pair is for; None if not scored, and `unscored`
    says why it could not be.
    """

    name: str
    known: bool
    positive_right: bool
    negative_right: bool
    positive_steps: int
    negative_steps: int
    positive_tokens: int
    negative_tokens: int
    dropped: tuple[str, ...]
    added: tuple[str, ...]
    positive_nll: float | None = None
    negative_nll: float | None = None
    unscored: str = ""

    @property
    def positive_density(self) -> float:
        return self.positive_tokens / self.positive_steps

    @property
    def negative_density(self) -> float:
        return self.negative_tokens / self.negative_steps

    @property
    def density_ratio(self) -> float:
        return self.positive_density / self.negative_density

    @property
    def nll_ratio(self) -> float | None:
        """NLL of a rewrite's token over that of the own solution's."""
        if self.positive_nll is None or not self.negative_nll:
            return None
        return self.positive_nll / self.negative_nll


@dataclass(frozen=True)
class Rules:
    """What a pair must satisfy. numbers: keep the computed numbers. max_nll_ratio: of rewrite to own solution.

    keep_lowest: of those that satisfy the rest, so many with the likeliest rewrites.
    """

    numbers: bool = True
    max_nll_ratio: float | None = None
    keep_lowest: int | None = None

    @property
    def by_nll(self) -> bool:
        """Whether pairs must be scored."""
        return self.max_nll_ratio is not None or self.keep_lowest is not None


@dataclass(frozen=True)
class Likelihood:
    """NLL per token of texts of one source under the target model, each in answer to a question of the pairs.

    values: by the pair's name. mean, and its 95% interval over pairs, None for too few. ratio: to the own solutions
    on the same questions.
    """

    source: str
    values: Mapping[str, float] = field(repr=False)
    mean: float
    interval: Interval | None
    ratio: float


def check(pairs: Sequence[Pair], count: Count, graders: Graders, kind: Kind = "math") -> list[Check]:
    """Grade, measure and compare both sides of each pair.

    A pair without `answer` is graded by what its negative, the model's own solution, puts in \\boxed{...}.
    """
    grades = []
    for pair in pairs:
        expected = pair.answer if pair.answer is not None else last_boxed(pair.negative)
        sides = (pair.positive, pair.negative)
        grades.append(None if expected is None else [graders.submit(side, expected, kind) for side in sides])
    found = []
    for number, (pair, graded) in enumerate(zip(pairs, grades, strict=True), 1):
        positive, negative = (future.result().correct for future in graded) if graded else (False, False)
        dropped, added = changed_numbers(pair)
        found.append(
            Check(
                name=name_of(pair, number),
                known=graded is not None,
                positive_right=positive,
                negative_right=negative,
                positive_steps=count_steps(pair.positive),
                negative_steps=count_steps(pair.negative),
                positive_tokens=count(pair.positive),
                negative_tokens=count(pair.negative),
                dropped=dropped,
                added=added,
            )
        )
    return found


def score(backend: Backend, pairs: Sequence[Pair], checks: Sequence[Check], progress: Progress = SILENT) -> list[Check]:
    """The checks with the NLL of both sides under the unsteered model, each in answer to its own prompt.

    A side that does not fit the context leaves its pair unscored.
    """
    scored = []
    for done, (pair, found) in enumerate(zip(pairs, checks, strict=True), 1):
        try:
            positive, negative = (mean_nll(backend, side) for side in pair.sides)
            scored.append(replace(found, positive_nll=positive, negative_nll=negative))
        except RequestError as error:
            scored.append(replace(found, unscored=str(error)))
        progress("scoring", done, len(pairs))
    return scored


def mean_nll(backend: Backend, side: Side) -> float:
    """Mean negative log-likelihood of an answer's tokens in nats. Errors: RequestError if it does not fit."""
    prompt, answer = side.tokens(backend)
    return float(backend.nll((*prompt, *answer), len(prompt)).mean())


def select(checks: Sequence[Check], rules: Rules) -> list[tuple[str, ...]]:
    """For each check why its pair is dropped; nothing for one that is kept.

    Errors: EdgeSteerError where the rules ask for an NLL and nothing is scored.
    """
    if rules.by_nll and all(found.positive_nll is None for found in checks):
        raise EdgeSteerError("no pair has an NLL to choose by; score them under the model they are for")
    reasons = [_reasons(found, rules) for found in checks]
    if rules.keep_lowest is not None:
        left = [(found.positive_nll or 0.0, i) for i, found in enumerate(checks) if not reasons[i]]
        for nll, i in sorted(left)[rules.keep_lowest :]:
            reasons[i] = [f"its NLL of {nll:.3f} is not among the {rules.keep_lowest} lowest"]
    return [tuple(why) for why in reasons]


def likelihoods(
    backend: Backend,
    pairs: Sequence[Pair],
    checks: Sequence[Check],
    traces: Mapping[str, Sequence[Solution]],
    progress: Progress = SILENT,
) -> list[Likelihood]:
    """DenseSteer's figure 3: NLL of own solutions, dense rewrites and other models' solutions to the same questions.

    checks: scored. traces: by the name of their source; whole ones that fit the context, right or wrong, the first of
    each question.
    Errors: EdgeSteerError if nothing is scored, or a source has no solution to any question of the pairs.
    """
    scored = [(pair, found) for pair, found in zip(pairs, checks, strict=True) if found.nll_ratio is not None]
    if not scored:
        raise EdgeSteerError("no pair has an NLL; score them under the model they are for")
    own = {found.name: found.negative_nll or 0.0 for _, found in scored}
    values = {OWN: own, REWRITE: {found.name: found.positive_nll or 0.0 for _, found in scored}}
    done, total = 0, len(traces) * len(scored)
    for source, solutions in traces.items():
        first = {s.prompt: s.text for s in reversed(solutions) if s.whole}
        values[source] = {}
        for pair, found in scored:
            done += 1
            if pair.question in first:
                side = replace(pair.sides[0], answer=first[pair.question])
                with contextlib.suppress(RequestError):
                    values[source][found.name] = mean_nll(backend, side)
            progress("scoring other traces", done, total)
        if not values[source]:
            raise EdgeSteerError(f"{source} has no solution to any question of the pairs; solve the same problems")
    return [_likelihood(source, found, own) for source, found in values.items()]


def name_of(pair: Pair, number: int) -> str:
    """What a pair is called in messages: its id, or its place from 1."""
    return pair.id or f"pair {number}"


def _reasons(found: Check, rules: Rules) -> list[str]:
    reasons = []
    if not found.known:
        reasons.append("no answer to grade by")
    else:
        reasons += ["the rewrite's answer is wrong"] * (not found.positive_right)
        reasons += ["the own solution's answer is wrong"] * (not found.negative_right)
    if found.density_ratio <= 1:
        reasons.append(f"not denser: {found.density_ratio:.2f} times the density")
    if rules.numbers and found.dropped:
        reasons.append(f"computed numbers dropped: {', '.join(found.dropped)}")
    if rules.numbers and found.added:
        reasons.append(f"computed numbers added: {', '.join(found.added)}")
    if rules.by_nll:
        if found.unscored:
            reasons.append(f"not scored: {found.unscored}")
        elif rules.max_nll_ratio is not None and found.nll_ratio is not None and found.nll_ratio > rules.max_nll_ratio:
            reasons.append(f"its NLL is {found.nll_ratio:.2f} times the own solution's, above {rules.max_nll_ratio:g}")
    return reasons


def _likelihood(source: str, values: Mapping[str, float], own: Mapping[str, float]) -> Likelihood:
    array = np.array(list(values.values()))
    return Likelihood(
        source=source,
        values=values,
        mean=float(array.mean()),
        interval=bootstrap(array) if len(array) >= MIN_VALUES else None,
        ratio=float(array.mean() / np.mean([own[name] for name in values])),
    )
