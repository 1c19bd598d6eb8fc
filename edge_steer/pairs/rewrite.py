"""Dense rewriting: a model's own solutions in fewer, fuller steps by another model, and the pairs that gives.

Takes Solutions and a Rewriter: an Endpoint, or a Backend of our own. Every finished rewrite is on disk at once. It
sends the problem and the solution, never more. Whether a rewrite is a good one, `checks` says.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

from edge_steer.core.backend import Completion, Request
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.sampling import Sampling
from edge_steer.pairs.endpoint import CANDIDATE_TEMPERATURE, OnReply, Reply
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

    def drawing(self, candidate: int) -> "Rewriter":
        """The same rewriter for the rewrite number `candidate` of each solution, above temperature 0."""


@dataclass(frozen=True)
class ModelRewriter:
    """A rewriter that is a model on this machine. max_tokens: of a rewrite, thinking included. seed: of the draws."""

    backend: RunningModel
    max_tokens: int = 2048
    temperature: float = 0.0
    seed: int = 0

    @property
    def identity(self) -> Mapping[str, object]:
        drawn = {"temperature": self.temperature} if self.temperature else {}
        return {**self.backend.provenance.model, **drawn}

    def ask(self, prompts: Sequence[str], on_reply: OnReply) -> None:
        """See Rewriter.ask."""
        backend = self.backend
        sampling = Sampling(temperature=self.temperature, seed=self.seed)
        requests = [
            Request(backend.chat([{"role": "user", "content": text}]), self.max_tokens, sampling=sampling)
            for text in prompts
        ]

        def take(index: int, completion: Completion) -> None:
            on_reply(index, _reply(completion, len(requests[index].prompt), backend.model.name))

        if requests:
            backend.generate(requests, on_done=take)

    def drawing(self, candidate: int) -> Self:
        """See Rewriter.drawing."""
        return replace(self, temperature=self.temperature or CANDIDATE_TEMPERATURE, seed=self.seed + candidate)


@dataclass(frozen=True)
class Rewrite:
    """What became of one solution. key: Solution.digest; text: the rewrite; problem: why there is none, else "".

    candidate: its number among the rewrites of the solution. The rest is as in endpoint.Reply.
    """

    key: str
    id: str
    text: str
    problem: str
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None
    attempts: int
    candidate: int = 0

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

    def text(self, prices: tuple[float, float] | None) -> str:
        """In words, with the cost where prices are given, as `cost` takes them."""
        return str(self) if prices is None else f"{self}, cost {self.cost(*prices):.4f}"

    def cost(self, prompt_price: float, completion_price: float) -> float:
        """In the unit of the prices, which are for a million tokens."""
        return (self.prompt_tokens * prompt_price + self.completion_tokens * completion_price) / 1e6


@dataclass(frozen=True)
class Rewriting:
    """The last rewrite of each candidate of each solution, in their order, and the tokens of this run and of all."""

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
    solutions: Sequence[Solution],
    rules: str = DEFAULT_RULES,
    count_tokens: Callable[[str], int] | None = None,
    *,
    candidates: int = 1,
) -> Usage:
    """What rewriting them would take, if a rewrite is about as long as its solution."""
    count = count_tokens or (lambda text: -(-len(text) // CHARACTERS_PER_TOKEN))
    prompts = sum(count(prompt_of(solution, rules)) for solution in solutions)
    texts = sum(count(solution.text) for solution in solutions)
    return Usage(candidates * len(solutions), candidates * prompts, candidates * texts)


def rewrite_solutions(
    solutions: Sequence[Solution],
    rewriter: Rewriter,
    path: str | Path,
    *,
    rules: str = DEFAULT_RULES,
    candidates: int = 1,
    progress: Progress = SILENT,
) -> Rewriting:
    """Rewrite each solution `candidates` times by the rules; what the file `path` has already is not asked for again.

    The first candidate is as the rewriter is set, the others are drawn (`Rewriter.drawing`). Each rewrite is in the
    file at once. Those that only met a problem are asked for again by the next call.
    Errors: as of the rewriter, with what was finished before in the file; EdgeSteerError for the file of another
    rewriter or other rules.
    """
    with Store.open(Path(path), rewrites_header(rewriter, rules)) as store:
        records_before = len(store.records)
        unfinished = _unfinished(solutions, store, candidates)
        total, done = sum(map(len, unfinished)), 0
        progress("rewriting", done, total)
        for candidate, missing in enumerate(unfinished):

            def keep(index: int, reply: Reply, candidate: int = candidate, missing: list[Solution] = missing) -> None:
                nonlocal done
                store.append(asdict(_rewrite(missing[index], reply, candidate)))
                done += 1
                progress("rewriting", done, total)

            asked = rewriter.drawing(candidate) if candidate else rewriter
            asked.ask([prompt_of(solution, rules) for solution in missing], keep)
        rewrites = [Rewrite.of(record) for record in store.records]
    last = {(rewrite.key, rewrite.candidate): rewrite for rewrite in rewrites}
    keys = [(solution.digest, candidate) for solution in solutions for candidate in range(candidates)]
    return Rewriting(
        rewrites=tuple(last[key] for key in keys if key in last),
        usage=_usage(rewrites[records_before:]),
        total_usage=_usage(rewrites),
    )


def dense_pairs(solutions: Sequence[Solution], rewrites: Sequence[Rewrite]) -> ContrastPairs:
    """A pair for each different rewrite of each solution, under the prompt that the solution answers.

    Pairs of several candidates have the same negative; `checks` can choose the likeliest of them.
    """
    by_key: dict[str, list[Rewrite]] = {}
    for rewrite in {(rewrite.key, rewrite.candidate): rewrite for rewrite in rewrites}.values():
        by_key.setdefault(rewrite.key, []).append(rewrite)
    pairs, left_out = [], []
    for solution in solutions:
        name = f"{solution.id}, sample {solution.repeat}" if solution.repeat else solution.id
        candidates = by_key.get(solution.digest, [])
        if not candidates:
            left_out.append(f"{name}: not rewritten yet")
        texts: set[str] = set()
        for rewrite in candidates:
            title = f"{name}, candidate {rewrite.candidate + 1}" if rewrite.candidate else name
            if rewrite.problem:
                left_out.append(f"{title}: {rewrite.problem}")
            elif rewrite.text not in texts:
                texts.add(rewrite.text)
                pairs.append(
                    Pair(solution.prompt, rewrite.text, solution.text, solution.answer, title, solution.system)
                )
    return ContrastPairs(tuple(pairs), tuple(left_out))


def _unfinished(solutions: Iterable[Solution], store: Store, candidates: int) -> list[list[Solution]]:
    """For each candidate the solutions that the store has no such rewrite of, each once; problems count as none."""
    rewrites = [rewrite for rewrite in map(Rewrite.of, store.records) if not rewrite.problem]
    finished = {(rewrite.key, rewrite.candidate) for rewrite in rewrites}
    once = {solution.digest: solution for solution in solutions}
    return [
        [solution for digest, solution in once.items() if (digest, candidate) not in finished]
        for candidate in range(candidates)
    ]


def _rewrite(solution: Solution, reply: Reply, candidate: int) -> Rewrite:
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
        candidate=candidate,
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
