"""What a build would do: which steps, what is fetched, sent and computed, and about how long it takes.

Takes a Build, gives lines to print. Nothing is fetched, sent or run; the hub is asked how large its files are. Times
are guesses from the size of the model and of the work, for the rates below.
"""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_steer.certificates.behaviour import DOSES
from edge_steer.core.errors import EdgeSteerError
from edge_steer.evaluation.sweep import cells, parse_strengths
from edge_steer.models import convert
from edge_steer.pairs import pair, rewrite, solutions
from edge_steer.pairs.endpoint import PUBLIC
from edge_steer.recipes.build import STEPS, Build
from edge_steer.recipes.build_recipe import MadePairs
from edge_steer.storage import hub
from edge_steer.storage.gguf_header import read_header

SOLUTION_TOKENS = 300  # of a solution, where none is there to count
PROMPT_TOKENS = 150
DENSER = 0.8  # length of a rewrite over that of its solution, about
# Parameters times tokens, a second and core: eight sequences of Qwen2.5-0.5B in Q4_K_M (docs/benchmarks.md), rounded.
DECODED, READ = 2e10, 7e10


@dataclass(frozen=True)
class Planned:
    """A step: its state as build.State has it, how much work it is in words, and about how many seconds, if known."""

    step: str
    state: str
    why: str
    work: str
    seconds: float | None


def plan(build: Build, threads: int) -> list[Planned]:
    """Every step in order, the fetching of the model first. Errors: EdgeSteerError for pairs that are not there."""
    model, parameters = _model(build)
    planned = [model]
    for step in STEPS:
        state = build.state(step)
        work, decoded, read = _work(build, step) if state.kind == "to do" else ("", 0.0, 0.0)
        seconds = None
        if parameters and state.kind == "to do":
            seconds = parameters * (decoded / DECODED + read / READ) / threads
        planned.append(Planned(step, state.kind, state.why, work, seconds))
    return planned


def total(planned: Sequence[Planned]) -> float | None:
    """Seconds of all that is to do; None if one of them is not known."""
    known = [step.seconds for step in planned if step.state == "to do" and step.step != "fetch"]
    return None if None in known else sum(seconds for seconds in known if seconds)


def shown(seconds: float) -> str:
    """A time as a person says it, and no more exact than it is known."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return "seconds"


def _model(build: Build) -> tuple[Planned, float | None]:
    """The fetching of the model and of the converter, and the number of parameters."""
    if build.repo is None:
        parameters = read_header(build.model.gguf).parameters if build.model.gguf else None
        return Planned("fetch", "given", "", "", None), parameters or _size(build, None) / 2
    missing = [] if convert.converter_folder().is_dir() else ["llama.cpp's converter (from the package index)"]
    kept = hub.cached(build.repo, build.revision)
    if kept and kept.weights:
        state = Planned("fetch", "to do" if missing else "done", "", ", ".join(missing), None)
        return state, _size(build, kept) / 2
    try:
        held = hub.listing(build.repo, build.revision)
    except EdgeSteerError as error:
        work = f"{build.repo}, of unknown size: {error}"
        return Planned("fetch", "to do", "not in the cache", ", ".join([work, *missing]), None), None
    size = _size(build, held)
    work = f"{_bytes(size)} of {build.repo} at {held.commit[:10]}"
    return Planned("fetch", "to do", "not in the cache", ", ".join([work, *missing]), None), size / 2


def _size(build: Build, held: hub.Listing | None) -> float:
    """Bytes of the weights, which have two for a parameter, and of what comes with them."""
    if held is None:
        return sum(file.stat().st_size for file in Path(build.model.source).glob("*.safetensors"))
    wanted = (n for n in held.files if "/" not in n and any(fnmatch.fnmatch(n, pattern) for pattern in hub.FILES))
    return sum(held.files[name] or 0 for name in wanted)


def _bytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _work(build: Build, step: str) -> tuple[str, float, float]:
    """How much a step is, in words, in tokens decoded and in tokens read."""
    recipe, made, search = build.recipe, build.recipe.pairs, build.recipe.search
    if isinstance(made, MadePairs):
        count, tokens = made.count, float(made.count * SOLUTION_TOKENS)
        if build.state("generate").kind == "done":
            found = build.steps["generate"]["found"]
            count, tokens = found["solutions"], float(found["tokens"])
        if step == "generate":
            return f"{count} right solutions to {made.task} by {made.quant}, about {tokens:,.0f} tokens", tokens, 0
        if step == "rewrite":
            return _rewriting(build, made, count, tokens)
        if step == "check":
            return f"{count} pairs, their NLL under {made.quant}", 0, tokens * (1 + DENSER) + 2 * count * PROMPT_TOKENS
    else:
        count = len(pair.read(made))
    texts = 2 * count * (SOLUTION_TOKENS + PROMPT_TOKENS)
    if step == "extract":
        where = f"from {recipe.extraction.quant.upper()}" if recipe.extraction.quant else "in PyTorch"
        return f"{count} pairs {where}", 0, texts
    if step == "sweep" and search:
        per_problem = len(cells(build.swept_layers, parse_strengths(search.strengths)))
        rows = per_problem * search.dev + 2 * search.test
        work = (
            f"{rows:,} rows by {build.swept_quant}: {per_problem} cells on {search.dev} dev problems of {search.task}, "
            f"two on {search.test} others"
        )
        return work, rows * SOLUTION_TOKENS, rows * SOLUTION_TOKENS * search.nll
    if step == "export":
        return recipe.vector, 0, 0
    compared, sides = recipe.comparison, 1 + len(build.quants)
    number = min(compared.problems if compared.task else count, compared.texts)
    read = sides * 4 * number * (SOLUTION_TOKENS + PROMPT_TOKENS)
    work = f"{', '.join(build.quants)} against PyTorch on {number} texts"
    if not compared.task:
        return work, 0, read
    rows = sides * len(DOSES) * compared.problems
    return f"{work}; {rows:,} rows on {compared.task}", rows * SOLUTION_TOKENS, read + rows * SOLUTION_TOKENS


def _rewriting(build: Build, made: MadePairs, count: int, tokens: float) -> tuple[str, float, float]:
    if build.state("generate").kind == "done":
        told = solutions.load_chosen(build.folder / next(iter(build.steps["generate"]["outputs"])))
        used = rewrite.estimate(told)
        sent, received = used.prompt_tokens, used.completion_tokens
    else:
        rules = len(rewrite.RULES) / rewrite.CHARACTERS
        sent, received = round(count * (rules + PROMPT_TOKENS) + tokens), round(tokens)
    amount = f"{count} requests, about {sent:,} tokens sent and {received:,} received"
    if local := build.rewriter_file:
        return f"{amount}, by {local.name} here", received, sent
    return f"{amount}, by {made.rewriter or rewrite.MODEL} of {made.base_url or f'$OPENAI_BASE_URL or {PUBLIC}'}", 0, 0
