"""A sweep: a vector at every layer and strength on the dev problems, one cell chosen there, that one tried on the test.

Takes a running model, a vector and a task, gives the figures of every cell, the choice and the tuned vector. In a
folder rows are kept, so that a stopped sweep goes on. It loads no model and draws nothing.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.vector import Phase, SteeringVector, check_phase, parse_layers
from edge_steer.evaluation.evaluate import task_of
from edge_steer.evaluation.figures import compare, summarise
from edge_steer.evaluation.sweep_cells import (
    RULES,
    UNSTEERED_CELL,
    Rule,
    SweepCell,
    choose,
    parse_strengths,
    rule_text,
    sweep_cells,
)
from edge_steer.evaluation.sweep_results import DEV, FORMAT, HeldOutResult, SweepResults, write_summary
from edge_steer.evaluation.units import Plan, PlanRows, Runner, in_process, make_rows
from edge_steer.storage.provenance import Provenance, RunningModel, versions
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.task import Task


def sweep(
    model: RunningModel,
    vector: SteeringVector,
    task: str | Path | Task,
    *,
    strengths: str | Iterable[float],
    layers: str | int | Iterable[int] | None = None,
    dev: int = 100,
    test: int = 200,
    split_seed: int = 0,
    phase: Phase = "all",
    rule: Rule = "accuracy",
    margin: float = 0.02,
    nll: bool = True,
    folder: str | Path | None = None,
    graders: Graders | None = None,
    progress: Progress = SILENT,
) -> SweepResults:
    """Every layer at every strength on `dev` problems; the chosen one and the unsteered model on `test` others.

    task: as `evaluate` takes it; dev and test are drawn from it by `split_seed`. strengths: "-20:20:2", "1,2.5" or
    numbers. layers: "8-24", numbers, or None for all of the vector's. rule, margin: as `choose` has them.
    folder: where the rows and summary.json are kept, so that a stopped sweep goes on; None writes nothing.
    `results.chosen` is the cell, `results.tuned_vector` the vector that says so. Errors: EdgeSteerError.
    """
    settings = SweepSettings.of(
        vector,
        task_of(task).split(dev, test, split_seed),
        strengths=strengths,
        layers=layers,
        phase=phase,
        rule=rule,
        margin=margin,
        nll=nll,
    )
    with contextlib.ExitStack() as stack:
        graders = graders or stack.enter_context(Graders())
        runner = in_process(model, graders)
        return run_sweep(settings, runner, model.provenance, folder=folder, progress=progress)


@dataclass(frozen=True)
class SweepSettings:
    """What is swept. dev, test: disjoint parts of one task. strengths: without 0, which is the unsteered cell.

    rule, margin: as `choose` has them. Errors: EdgeSteerError, VectorError for a layer that the vector has not.
    """

    dev: Task
    test: Task
    vector: SteeringVector
    layers: tuple[int, ...]
    strengths: tuple[float, ...]
    phase: Phase = "all"
    rule: Rule = "accuracy"
    margin: float = 0.02
    nll: bool = True

    def __post_init__(self) -> None:
        self.vector.check_layers(self.layers)
        check_phase(self.phase)
        if self.rule not in RULES:
            raise EdgeSteerError(f"no rule {self.rule!r}; allowed are {', '.join(RULES)}")
        if common := {sample.id for sample in self.dev.samples} & {sample.id for sample in self.test.samples}:
            raise EdgeSteerError(f"problem {min(common)} is in the dev and in the test split; they must be disjoint")

    @classmethod
    def of(
        cls,
        vector: SteeringVector,
        parts: tuple[Task, Task],
        *,
        strengths: str | Iterable[float],
        layers: str | int | Iterable[int] | None = None,
        phase: Phase = "all",
        rule: Rule = "accuracy",
        margin: float = 0.02,
        nll: bool = True,
    ) -> "SweepSettings":
        """From what `sweep` takes. parts: the dev and the test problems."""
        return cls(*parts, vector, _layers_of(vector, layers), parse_strengths(strengths), phase, rule, margin, nll)

    @property
    def cells(self) -> tuple[SweepCell, ...]:
        return sweep_cells(self.layers, self.strengths)

    def header(self, provenance: Provenance) -> dict[str, Any]:
        """What the rows of all splits depend on."""
        return {
            "format": FORMAT,
            "vector": self.vector.digest,
            "layers": list(self.layers),
            "strengths": list(self.strengths),
            "phase": self.phase,
            "nll": self.nll,
            "model": {**provenance.model},
            "backend": {**provenance.backend},
            "versions": {**provenance.versions, **versions("math-verify")},
        }

    def key_settings(self, provenance: Provenance) -> dict[str, Any]:
        """All that a folder's name follows from: the header and both splits."""
        return {**self.header(provenance), "dev": self.dev.described(), "test": self.test.described()}

    def plan(self, task: Task, cells: Sequence[SweepCell], parallel: int) -> Plan:
        """parallel: sequences of an engine, by which units are cut."""
        return Plan.of(task, [cell.method(self.vector, self.phase) for cell in cells], parallel, self.nll)


def run_sweep(
    settings: SweepSettings,
    runner: Runner,
    provenance: Provenance,
    *,
    folder: str | Path | None = None,
    progress: Progress = SILENT,
) -> SweepResults:
    """A sweep whose rows come from `runner`, in this process or elsewhere. provenance: of the model that runs there.

    folder: dev.jsonl, test-<cell>.jsonl and summary.json are kept there; None writes nothing. Errors: EdgeSteerError.
    """
    header = settings.header(provenance)
    parallel = provenance.backend.get("parallel", EngineOptions().parallel)

    def rows_of(split: str, task: Task, cells: Sequence[SweepCell], name: str) -> PlanRows:
        return make_rows(
            settings.plan(task, cells, parallel),
            runner,
            path=Path(folder) / name if folder else None,
            header={**header, "split": split, "task": task.described()},
            progress=progress,
            doing=split,
        )

    dev_rows = rows_of("dev", settings.dev, settings.cells, DEV)
    summaries = {cell: summarise(dev_rows.of(cell.name)) for cell in settings.cells}
    chosen = choose(summaries, settings.rule, settings.margin)

    finalists = [UNSTEERED_CELL] if chosen == UNSTEERED_CELL else [UNSTEERED_CELL, chosen]
    name = f"test-{chosen.name.replace(', ', '-').replace(' ', '-')}.jsonl"
    test_rows = rows_of("test", settings.test, finalists, name)
    before, after = test_rows.of(UNSTEERED_CELL.name), test_rows.of(chosen.name)
    results = SweepResults(
        header={**header, "split": "dev", "task": settings.dev.described()},
        problems=len(settings.dev.samples),
        cells=summaries,
        rule=rule_text(settings.rule, settings.margin),
        chosen=chosen,
        test=HeldOutResult(
            summarise(before), summarise(after), None if chosen == UNSTEERED_CELL else compare(before, after)
        ),
        vector=settings.vector,
        changed=dev_rows.changed + test_rows.changed,
    )
    if folder:
        write_summary(results, folder)
    return results


def _layers_of(vector: SteeringVector, layers: str | int | Iterable[int] | None) -> tuple[int, ...]:
    if layers is None:
        return vector.layers
    if isinstance(layers, str):
        layers = parse_layers(layers)
    return vector.check_layers([layers] if isinstance(layers, int) else layers)
