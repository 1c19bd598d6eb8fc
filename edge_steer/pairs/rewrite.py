"""Dense rewriting: a model's own solutions told in fewer, fuller steps by another model, and the pairs that gives.

Takes Solutions and a rewriter: an endpoint, or a Backend of our own. Every finished rewrite is on disk at once. It
sends the problem and the solution, never more. Whether a rewrite is a good one, `checks` says.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edge_steer.core.backend import Backend, Completion, Request
from edge_steer.core.errors import EdgeSteerError
from edge_steer.pairs.endpoint import OnReply, Reply
from edge_steer.pairs.pair import Pair
from edge_steer.pairs.solutions import Solution
from edge_steer.storage.records import Store

FORMAT = "edge-steer rewrites 1"
MODEL = "gpt-5.1"  # DenseSteer's
THOUGHT = "</think>"  # ends what a reasoning model says to itself
CHARACTERS = 4  # of a token, about, where no tokenizer is at hand
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
Rewriter = Callable[[Sequence[str], OnReply], None]  # prompts, what to do with each reply


@dataclass(frozen=True)
class Rewrite:
    """What became of one solution. key: Solution.digest; text: the rewrite; problem: why there is none, else "".

    The rest is as in chat_api.Reply.
    """

    key: str
    id: str
    text: str
    problem: str
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None
    attempts: int

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Rewrite":
        """From a record of the store. Errors: EdgeSteerError for anything else."""
        try:
            return cls(**record)
        except TypeError:
            raise EdgeSteerError(f"{str(dict(record))[:80]} is no rewrite") from None


OnRewrite = Callable[[Rewrite], None]


@dataclass(frozen=True)
class Usage:
    """Tokens sent and received over `requests`; `uncounted` of them came without counts, and are not in the sums."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    uncounted: int = 0

    def cost(self, prompt_price: float, completion_price: float) -> float:
        """In the unit of the prices, which are for a million tokens."""
        return (self.prompt_tokens * prompt_price + self.completion_tokens * completion_price) / 1e6


def prompt_of(solution: Solution) -> str:
    """All that is sent for a solution."""
    return f"{RULES}\n\nProblem:\n{solution.question.strip()}\n\nSolution:\n{solution.text.strip()}"


def header_of(rewriter: Mapping[str, object]) -> dict[str, object]:
    """What rewrites depend on, but for the solutions: each rewrite names its own by digest."""
    return {"format": FORMAT, "rewriter": {**rewriter}, "rules": hashlib.sha256(RULES.encode()).hexdigest()}


def unfinished(solutions: Iterable[Solution], store: Store) -> list[Solution]:
    """Solutions that the store has no rewrite of; those that only met a problem are among them, each once."""
    done = {rewrite.key for rewrite in map(Rewrite.of, store.records) if not rewrite.problem}
    return list({s.digest: s for s in solutions if s.digest not in done}.values())


def estimate(solutions: Sequence[Solution], count: Callable[[str], int] | None = None) -> Usage:
    """What rewriting them would take, the rewrites being about as long as the solutions. count: of a text's tokens."""
    count = count or (lambda text: -(-len(text) // CHARACTERS))
    sent = sum(count(prompt_of(solution)) for solution in solutions)
    return Usage(len(solutions), sent, sum(count(solution.text) for solution in solutions))


def rewrite(
    solutions: Sequence[Solution], rewriter: Rewriter, store: Store, on_rewrite: OnRewrite | None = None
) -> list[Rewrite]:
    """Rewrite each solution that is not in the store yet; the last word on each, in the order of the solutions.

    Errors: as of the rewriter; what was finished before is kept.
    """
    asked = unfinished(solutions, store)

    def keep(index: int, reply: Reply) -> None:
        solution = asked[index]
        text, problem = _bare(reply.text), reply.problem
        if not problem and not text:
            problem = "an empty answer"
        if text == solution.text.strip():
            problem = "the rewrite is the solution itself"
        record = Rewrite(
            key=solution.digest,
            id=solution.id,
            text="" if problem else text,
            problem=problem,
            model=reply.model,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            attempts=reply.attempts,
        )
        store.append(asdict(record))
        if on_rewrite:
            on_rewrite(record)

    rewriter([prompt_of(solution) for solution in asked], keep)
    last = {found.key: found for found in map(Rewrite.of, store.records)}
    return [last[solution.digest] for solution in solutions if solution.digest in last]


def by_model(backend: Backend, max_tokens: int) -> Rewriter:
    """A rewriter that is a model on this machine, greedy."""

    def ask(prompts: Sequence[str], on_reply: OnReply) -> None:
        requests = [Request(backend.chat([{"role": "user", "content": text}]), max_tokens) for text in prompts]

        def done(index: int, completion: Completion) -> None:
            on_reply(index, _reply(completion, len(requests[index].prompt), backend.model.name))

        if requests:
            backend.generate(requests, on_done=done)

    return ask


def usage(records: Iterable[Mapping[str, Any]]) -> Usage:
    """Tokens over all requests of a store, those that met a problem too."""
    found = [Rewrite.of(record) for record in records]
    counted = [r for r in found if r.prompt_tokens is not None and r.completion_tokens is not None]
    return Usage(
        requests=len(found),
        prompt_tokens=sum(r.prompt_tokens or 0 for r in counted),
        completion_tokens=sum(r.completion_tokens or 0 for r in counted),
        uncounted=len(found) - len(counted),
    )


def pairs_of(solutions: Sequence[Solution], rewrites: Sequence[Rewrite]) -> tuple[list[Pair], list[tuple[str, str]]]:
    """A pair for each solution with a rewrite, under the prompt that made it; and the others: name and reason."""
    by_key = {rewrite.key: rewrite for rewrite in rewrites}
    pairs, left_out = [], []
    for solution in solutions:
        name = f"{solution.id}, sample {solution.repeat}" if solution.repeat else solution.id
        found = by_key.get(solution.digest)
        if found is None or found.problem:
            left_out.append((name, found.problem if found else "not rewritten yet"))
            continue
        pairs.append(Pair(solution.prompt, found.text, solution.text, solution.answer, name, solution.system))
    return pairs, left_out


def _bare(text: str) -> str:
    """The text without what a reasoning model thought before it."""
    return text.rpartition(THOUGHT)[2].strip()


def _reply(completion: Completion, prompt_tokens: int, model: str) -> Reply:
    problems = {"length": "cut off at the most tokens; raise --max-tokens", "error": completion.error}
    problem = problems.get(completion.finish, "")
    if not problem and not completion.text.strip():
        problem = "an empty answer"
    return Reply(
        text="" if problem else completion.text,
        problem=problem,
        model=model,
        prompt_tokens=prompt_tokens,
        completion_tokens=len(completion.tokens),
    )
