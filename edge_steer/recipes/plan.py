"""What a build would do: which steps, what is fetched, sent and computed, and about how long it takes.

Takes the folder of a vector's recipe, gives values to print. Nothing is fetched, sent or run; the hub is asked how
large its files are. Times are guesses from the size of the model and of the work, for the rates below.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_steer.core.backend import available_cores
from edge_steer.core.errors import EdgeSteerError
from edge_steer.models import convert
from edge_steer.recipes.build import Build
from edge_steer.recipes.pair_steps import CHECK, GENERATE, REWRITE
from edge_steer.recipes.parity_step import PARITY
from edge_steer.recipes.step import Step
from edge_steer.recipes.vector_steps import EXPORT, EXTRACT, SWEEP
from edge_steer.storage import hub
from edge_steer.storage.files import size_in_words
from edge_steer.storage.gguf_header import read_header

STEPS = (GENERATE, REWRITE, CHECK, EXTRACT, SWEEP, EXPORT, PARITY)
FETCH = "fetch"  # the model's files, and llama.cpp's converter: not a step, for the cache knows whether they are there
# Parameters times tokens, a second and core: eight sequences of Qwen2.5-0.5B in Q4_K_M (docs/benchmarks.md), rounded.
DECODED, READ = 2e10, 7e10


@dataclass(frozen=True)
class PlannedStep:
    """A step: its state as step.State has it, how much work it is in words, and about how many seconds, if known."""

    step: str
    state: Literal["given", "done", "to do"]
    why: str = ""
    work: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class BuildPlan:
    """Every step of a build in order, the fetching of the model first."""

    build: Build
    steps: tuple[PlannedStep, ...]
    threads: int

    @property
    def to_do(self) -> tuple[PlannedStep, ...]:
        return tuple(step for step in self.steps if step.state == "to do")

    @property
    def seconds(self) -> float | None:
        """Of all that is to be computed; None if one step's time is not known."""
        times = [step.seconds for step in self.to_do if step.step != FETCH]
        return None if None in times else sum(seconds for seconds in times if seconds)


def plan_build(
    folder: str | Path, model: str | Path | None = None, *, first: str | None = None, threads: int | None = None
) -> BuildPlan:
    """What `run_build` with the same arguments would do. threads: None is the cores that this process may use.

    Errors: EdgeSteerError for recipes that do not fit together, an unknown step, or pairs that are not there.
    """
    build = Build.load(folder, model)
    forget_from(build, first)
    return plan_steps(build, threads)


def forget_from(build: Build, first: str | None) -> None:
    """Take the step `first` and all behind it as not done; None is no step. Errors: EdgeSteerError for no such step."""
    names = [step.name for step in STEPS]
    if first is None:
        return
    if first not in names:
        raise EdgeSteerError(f"a build has no step {first!r}; its steps are {', '.join(names)}")
    for name in names[names.index(first) :]:
        build.records.pop(name, None)


def plan_steps(build: Build, threads: int | None = None) -> BuildPlan:
    """What is to do of a build. Errors: EdgeSteerError for pairs that are not there."""
    threads = threads or available_cores()
    fetch, parameters = _fetching(build)
    return BuildPlan(build, (fetch, *(_planned(build, step, parameters, threads) for step in STEPS)), threads)


def duration_text(seconds: float) -> str:
    """A time as a person says it, and no more exact than it is known."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return "seconds"


def _planned(build: Build, step: Step, parameters: float | None, threads: int) -> PlannedStep:
    state = step.state(build)
    if state.kind != "to do":
        return PlannedStep(step.name, state.kind, state.why)
    work = step.work(build)
    seconds = parameters * (work.decoded / DECODED + work.read / READ) / threads if parameters else None
    return PlannedStep(step.name, state.kind, state.why, work.text, seconds)


def _fetching(build: Build) -> tuple[PlannedStep, float | None]:
    """The fetching of the model and of the converter, and the number of parameters."""
    if build.recipe.from_index:
        if build.source.is_file():
            return PlannedStep(FETCH, "done"), read_header(build.source).parameters
        return PlannedStep(FETCH, "to do", "not there", f"{build.model.name} of the package index"), None
    if build.repo is None:
        parameters = read_header(build.model.gguf).parameters if build.model.gguf else None
        return PlannedStep(FETCH, "given"), parameters or _local_size(build) / 2
    missing = [] if convert.converter_folder().is_dir() else ["llama.cpp's converter (from the package index)"]
    cached = hub.cached_listing(build.repo, build.revision)
    if cached and cached.weights:
        return PlannedStep(FETCH, "to do" if missing else "done", "", ", ".join(missing)), _hub_size(cached) / 2
    try:
        listing = hub.list_files(build.repo, build.revision)
    except EdgeSteerError as error:
        work = f"{build.repo}, of unknown size: {error}"
        return PlannedStep(FETCH, "to do", "not in the cache", ", ".join([work, *missing])), None
    size = _hub_size(listing)
    work = f"{size_in_words(size)} of {build.repo} at {listing.commit[:10]}"
    return PlannedStep(FETCH, "to do", "not in the cache", ", ".join([work, *missing])), size / 2


def _local_size(build: Build) -> float:
    """Bytes of the weights, two for a parameter."""
    return sum(file.stat().st_size for file in Path(build.model.source).glob("*.safetensors"))


def _hub_size(listing: hub.Listing) -> float:
    """Bytes of the weights and of what comes with them."""
    return sum(listing.files[name] or 0 for name in listing.weights_and_settings)
