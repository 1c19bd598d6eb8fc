"""Dense rewriting: a model's own solutions in fewer, fuller steps by another model, and the pairs that gives.

Takes Solutions and a Rewriter: an Endpoint, or a Backend of our own. Every finished rewrite is on disk at once. It
sends the problem and the solution, never more. Whether a rewrite is a good one, `checks` says.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from edge_steer.core.backend import Completion, Request
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.pairs.endpoint import OnReply, Reply
from edge_steer.pairs.pair import ContrastPairs, Pair
from edge_steer.pairs.rules import DEFAULT_RULES, fill_rules, rules_digest
from edge_steer.pairs.solutions import Solution
from edge_steer.storage.provenance import RunningModel
from edge_steer.storage.records import Store

FORMAT = "edge-steer rewrites 1"
DEFAULT_REWRITER = "gpt-5.1"  # DenseSteer's
END_OF_THINKING = "</think>"  # of a reasoning model
CHARACTERS_PER_TOKEN = 4  # about, where no tokenizer is at hand


class Rewriter(Protocol):
    """What answers prompts: an `endpoint.Endpoint`, or a `ModelRewriter`."""

    @property
    def identity(self) -> Mapping[str, object]:
        """What its replies depend on."""

    def ask(self, prompts: Sequence[str], on_reply: OnReply) -> None:
        """Answer each prompt; on_reply gets the index of a prompt and its reply, in any order."""


@dataclass(frozen=True)
class ModelRewriter:
    """A rewriter that is a model on this machine, greedy. max_tokens: of a rewrite, thinking included."""

    backend: RunningModel
    max_tokens: int = 2048

    @property
    def identity(self) -> Mapping[str, object]:
        return self.backend.provenance.model

    def ask(self, prompts: Sequence[str], on_reply: OnReply) -> None:
        """See Rewriter.ask."""
        backend = self.backend
        requests = [Request(backend.chat([{"role": "user", "content": text}]), self.max_tokens) for text in prompts]

        def take(index: int, completion: Completion) -> None:
            on_reply(index, _reply(completion, len(requests[index].prompt), backend.model.name))

        if requests:
            backend.generate(requests, on_done=take)


@dataclass(frozen=True)
class Rewrite:
    """What became of one solution. key: Solution.digest; text: the rewrite; problem: why there is none, else "".

    The rest is as in endpoint.Reply.
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


@dataclass(frozen=True)
class Usage:
    """Tokens sent and received over `requests`; `uncounted` of them came without counts, and are not in the sums."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    uncounted: int = 0

    def __str__(self) -> str:
        text = f"{self.requests} requests, {self.prompt_tokens:,} tokens sent, {self.completion_tokens:,} received"
        return text + (f" ({self.uncounted} requests came without counts)" if self.uncounted else "")

    def cost(self, prompt_price: float, completion_price: float) -> float:
        """In the unit of the prices, which are for a million tokens."""
        return (self.prompt_tokens * prompt_price + self.completion_tokens * completion_price) / 1e6


@dataclass(frozen=True)
class Rewriting:
    """The last rewrite of each solution, in their order, and the tokens of this run and of all runs on the file."""

    rewrites: tuple[Rewrite, ...]
    usage: Usage
    total_usage: Usage


def rewrites_header(rewriter: Rewriter, rules: str = DEFAULT_RULES) -> dict[str, object]:
    """What rewrites depend on, but for the solutions: each rewrite names its own by digest."""
    return {"format": FORMAT, "rewriter": {**rewriter.identity}, "rules": rules_digest(rules)}


def prompt_of(solution: Solution, rules: str = DEFAULT_RULES) -> str:
    """All that is sent for a solution."""
    return fill_rules(rules, solution.question.strip(), solution.text.strip())


def estimate_usage(
    solutions: Sequence[Solution], rules: str = DEFAULT_RULES, count_tokens: Callable[[str], int] | None = None
) -> Usage:
    """What rewriting them would take, if a rewrite is about as long as its solution."""
    count = count_tokens or (lambda text: -(-len(text) // CHARACTERS_PER_TOKEN))
    prompts = sum(count(prompt_of(solution, rules)) for solution in solutions)
    return Usage(len(solutions), prompts, sum(count(solution.text) for solution in solutions))


def rewrite_solutions(
    solutions: Sequence[Solution],
    rewriter: Rewriter,
    path: str | Path,
    *,
    rules: str = DEFAULT_RULES,
    progress: Progress = SILENT,
) -> Rewriting:
    """Rewrite each solution that has no rewrite in the file `path` yet, by the rules.

    Each rewrite is in the file at once. Solutions that only met a problem are asked again by the next call.
    Errors: as of the rewriter, with what was finished before in the file; EdgeSteerError for the file of another
    rewriter or other rules.
    """
    with Store.open(Path(path), rewrites_header(rewriter, rules)) as store:
        records_before = len(store.records)
        unfinished = _unfinished(solutions, store)
        done = 0

        def keep(index: int, reply: Reply) -> None:
            nonlocal done
            store.append(asdict(_rewrite(unfinished[index], reply)))
            done += 1
            progress("rewriting", done, len(unfinished))

        progress("rewriting", 0, len(unfinished))
        rewriter.ask([prompt_of(solution, rules) for solution in unfinished], keep)
        rewrites = [Rewrite.of(record) for record in store.records]
    last = {rewrite.key: rewrite for rewrite in rewrites}
    return Rewriting(
        rewrites=tuple(last[solution.digest] for solution in solutions if solution.digest in last),
        usage=_usage(rewrites[records_before:]),
        total_usage=_usage(rewrites),
    )


def dense_pairs(solutions: Sequence[Solution], rewrites: Sequence[Rewrite]) -> ContrastPairs:
    """A pair for each solution with a rewrite, under the prompt that the solution answers."""
    by_key = {rewrite.key: rewrite for rewrite in rewrites}
    pairs, left_out = [], []
    for solution in solutions:
        name = f"{solution.id}, sample {solution.repeat}" if solution.repeat else solution.id
        rewrite = by_key.get(solution.digest)
        if rewrite is None or rewrite.problem:
            left_out.append(f"{name}: {rewrite.problem if rewrite else 'not rewritten yet'}")
            continue
        pairs.append(Pair(solution.prompt, rewrite.text, solution.text, solution.answer, name, solution.system))
    return ContrastPairs(tuple(pairs), tuple(left_out))


def _unfinished(solutions: Iterable[Solution], store: Store) -> list[Solution]:
    """Solutions that the store has no rewrite of, each once; those that only met a problem are among them."""
    finished = {rewrite.key for rewrite in map(Rewrite.of, store.records) if not rewrite.problem}
    return list({solution.digest: solution for solution in solutions if solution.digest not in finished}.values())


def _rewrite(solution: Solution, reply: Reply) -> Rewrite:
    text, problem = reply.text.rpartition(END_OF_THINKING)[2].strip(), reply.problem
    if not problem and not text:
        problem = "an empty answer"
    if text == solution.text.strip():
        problem = "the rewrite is the solution itself"
    return Rewrite(
        key=solution.digest,
        id=solution.id,
        text="" if problem else text,
        problem=problem,
        model=reply.model,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        attempts=reply.attempts,
    )


def _usage(rewrites: Sequence[Rewrite]) -> Usage:
    """Tokens over all requests, those that met a problem too."""
    counted = [r for r in rewrites if r.prompt_tokens is not None and r.completion_tokens is not None]
    return Usage(
        requests=len(rewrites),
        prompt_tokens=sum(r.prompt_tokens or 0 for r in counted),
        completion_tokens=sum(r.completion_tokens or 0 for r in counted),
        uncounted=len(rewrites) - len(counted),
    )


def _reply(completion: Completion, prompt_tokens: int, model: str) -> Reply:
    problems = {"length": "cut off at the most tokens; allow more", "error": completion.error}
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
