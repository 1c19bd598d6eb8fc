"""What a step of a build is: its name, the steps it follows, what it depends on, what it does and how long it takes.

Takes a Build, gives the state of a step. The steps themselves are values of this type in pair_steps.py,
vector_steps.py and parity_step.py.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edge_steer.core.backend import EngineOptions
from edge_steer.core.progress import Progress
from edge_steer.recipes.build import Build, StepRecord
from edge_steer.recipes.build_recipe import Asking
from edge_steer.storage.digests import digest
from edge_steer.tasks.load import load_task
from edge_steer.tasks.task import Task

SOLUTION_TOKENS = 300  # of a solution, where none is there to count
PROMPT_TOKENS = 150


@dataclass(frozen=True)
class StepContext:
    """What every step is run with. engine: how a model runs in llama.cpp."""

    engine: EngineOptions
    progress: Progress


@dataclass(frozen=True)
class StepOutput:
    """What a step leaves: its files, named from the build's folder, and figures for a reader."""

    files: tuple[Path, ...]
    findings: Mapping[str, object]


@dataclass(frozen=True)
class Work:
    """How much a step is: in words, in tokens that a model decodes, and in tokens that it reads."""

    text: str
    decoded: float = 0.0
    read: float = 0.0


@dataclass(frozen=True)
class State:
    """Of a step: "given" (the recipe leaves nothing to do), "done", or "to do" and why."""

    kind: Literal["given", "done", "to do"]
    why: str = ""


def never_given(_build: Build) -> bool:
    return False


@dataclass(frozen=True)
class Step:
    """One step of a build.

    after: the steps whose outputs it uses. inputs: what its output depends on, as JSON; the steps before it must be
    done. run: does it. work: how much it is. is_given: whether the recipe leaves nothing to do.
    """

    name: str
    after: tuple["Step", ...]
    inputs: Callable[[Build], Mapping[str, object]]
    run: Callable[[Build, StepContext], StepOutput]
    work: Callable[[Build], Work]
    is_given: Callable[[Build], bool] = never_given

    def state(self, build: Build) -> State:
        """Whether it is done, by what it was made from and what it made. Errors: EdgeSteerError for no pairs."""
        if self.is_given(build):
            return State("given")
        for earlier in self.after:
            if earlier.state(build).kind == "to do":
                return State("to do", f"after {earlier.name}")
        if self.name not in build.records:
            return State("to do", "not done yet")
        record, inputs = build.records[self.name], self.recorded_inputs(build)
        if changed := next((key for key in inputs if inputs[key] != record.inputs.get(key)), None):
            return State("to do", f"its {changed} changed")
        for name, recorded in record.outputs.items():
            if not (build.folder / name).is_file():
                return State("to do", f"{name} is missing")
            if digest(build.folder / name) != recorded:
                return State("to do", f"{name} changed")
        return State("done")

    def recorded_inputs(self, build: Build) -> dict[str, Any]:
        """Its inputs as build.json gives them back."""
        inputs: dict[str, Any] = json.loads(json.dumps(self.inputs(build)))
        return inputs

    def record(self, build: Build) -> StepRecord:
        """What build.json keeps of it. Errors: KeyError while it is not done."""
        return build.records[self.name]

    def output(self, build: Build) -> Path:
        """Its first file, once it is done."""
        return build.folder / next(iter(self.record(build).outputs))

    def output_digest(self, build: Build, file: Path | None = None) -> str:
        """The recorded SHA-256 of one of its files; None is the first."""
        outputs = self.record(build).outputs
        return outputs[file.as_posix()] if file else next(iter(outputs.values()))


def task_inputs(build: Build, task: str) -> object:
    """What a step depends on of a task: a published one by its name, for it is pinned; a user's own by its problems.

    And how it is asked, where that is not the usual way.
    """
    name = build.recipe.task_name(task)
    known = [task, load_task(name).digest] if name.endswith(".toml") or "=" in name else name
    asking = build.recipe.asking
    if asking == Asking(asking.protocol):
        return known if asking == Asking() else [known, asking.protocol]
    return [known, asdict(asking)]


def with_recipe_settings(build: Build, task: Task, max_tokens: int | None = None) -> Task:
    """The task as the recipe has it asked. max_tokens: None is as the task has it."""
    asking = build.recipe.asking
    return task.with_settings(prompt=asking.prompt, system=asking.system, stop=asking.stop, max_tokens=max_tokens)
