"""How likely the texts of pairs are to the model they are for: DenseSteer's figure 3.

Takes a Backend, pairs and their checks, gives the checks with an NLL, and a mean for each source of texts.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edge_steer.core.backend import Backend
from edge_steer.core.errors import EdgeSteerError, RequestError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.stats import MIN_VALUES, Interval, bootstrap
from edge_steer.pairs.criteria import Check
from edge_steer.pairs.pair import Pair, Side
from edge_steer.pairs.solutions import Solution

OWN, REWRITE = "own solution", "dense rewrite"


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


def mean_nll(backend: Backend, side: Side) -> float:
    """Mean negative log-likelihood of an answer's tokens in nats; without a prompt the first token has none.

    Errors: RequestError if it does not fit, or has no token to score.
    """
    prompt, answer = side.tokens(backend)
    if not prompt:
        prompt, answer = answer[:1], answer[1:]
    if not answer:
        raise RequestError("a text of one token without a prompt has no NLL")
    return float(backend.nll((*prompt, *answer), len(prompt)).mean())


def score(backend: Backend, pairs: Sequence[Pair], checks: Sequence[Check], progress: Progress = SILENT) -> list[Check]:
    """The checks with the NLL of both sides under the unsteered model, each in answer to its own prompt.

    A side that does not fit the context leaves its pair unscored.
    """
    scored = []
    for pair, check in progress.counted("scoring", list(zip(pairs, checks, strict=True))):
        try:
            positive, negative = (mean_nll(backend, side) for side in pair.sides)
            scored.append(replace(check, positive_nll=positive, negative_nll=negative))
        except RequestError as error:
            scored.append(replace(check, unscored=str(error)))
    return scored


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
    scored = [(pair, check) for pair, check in zip(pairs, checks, strict=True) if check.nll_ratio is not None]
    if not scored:
        raise EdgeSteerError("no pair has an NLL; score them under the model they are for")
    own = {check.name: check.negative_nll or 0.0 for _, check in scored}
    values = {OWN: own, REWRITE: {check.name: check.positive_nll or 0.0 for _, check in scored}}
    for source, solutions in traces.items():
        first = {solution.prompt: solution.text for solution in reversed(solutions) if solution.whole}
        values[source] = {}
        for pair, check in progress.counted(f"scoring {source}", scored):
            if pair.question in first:
                side = replace(pair.sides[0], answer=first[pair.question])
                with contextlib.suppress(RequestError):
                    values[source][check.name] = mean_nll(backend, side)
        if not values[source]:
            raise EdgeSteerError(f"{source} has no solution to any question of the pairs; solve the same problems")
    return [_likelihood(source, nlls, own) for source, nlls in values.items()]


def _likelihood(source: str, values: Mapping[str, float], own: Mapping[str, float]) -> Likelihood:
    array = np.array(list(values.values()))
    return Likelihood(
        source=source,
        values=values,
        mean=float(array.mean()),
        interval=bootstrap(array) if len(array) >= MIN_VALUES else None,
        ratio=float(array.mean() / np.mean([own[name] for name in values])),
    )
