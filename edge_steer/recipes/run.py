"""The door to a build: every step that is to do, in order; solutions, rewrites, pairs, a vector, its export, parity.

Takes the folder of a vector's recipe, leaves vector.gguf and its certificate beside the recipe, what led there in
build/. A stopped build goes on where it was. What a step does is in the module of the step.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from edge_steer.core.backend import EngineOptions, available_cores
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.vector import Tuning
from edge_steer.models.quantize import quantize
from edge_steer.recipes.build import Build, StepRecord
from edge_steer.recipes.pair_steps import check_endpoint, pairs_are_given
from edge_steer.recipes.parity_step import failed_quants
from edge_steer.recipes.plan import STEPS, duration_text, forget_from, plan_steps
from edge_steer.recipes.step import Step, StepContext
from edge_steer.recipes.vector_steps import tuned_point
from edge_steer.storage import hub
from edge_steer.storage.digests import digest
from edge_steer.storage.provenance import versions

DEFAULTS = EngineOptions()
MINUTE = 60.0  # shorter estimates are not worth a word


@dataclass(frozen=True)
class BuildOutcome:
    """What a build made: the vector's file, how it is meant to be used, and the types out of tolerance."""

    build: Build
    vector: Path
    tuning: Tuning
    failed_quants: tuple[str, ...]


def run_build(
    folder: str | Path,
    model: str | Path | None = None,
    *,
    first: str | None = None,
    options: EngineOptions = DEFAULTS,
    progress: Progress = SILENT,
) -> BuildOutcome:
    """Build the vector of folder/recipe.toml: do what is to do, and skip steps whose inputs and outputs are unchanged.

    model: the model's folder; None is models/<model> beside the export folder. first: do this step and those behind
    it again. Errors: EdgeSteerError, from the step that cannot be done; what was done before it stays done.
    """
    build = Build.load(folder, model)
    forget_from(build, first)
    (build.folder / "build").mkdir(exist_ok=True)
    if build.recipe.from_index and not build.source.is_file():
        quantize(build.model.folder, "F32", build.source, threads=options.threads, progress=progress)
    if build.repo and not build.revision:
        build.commit = hub.list_files(build.repo).commit
        build.save()
    if not pairs_are_given(build):
        check_endpoint(build)  # a missing key is reported before hours of solving
    template = build.recipe.template or options.template
    engine = replace(options, threads=options.threads or available_cores(), template=template)
    context = StepContext(engine, progress)
    seconds = {planned.step: planned.seconds or 0.0 for planned in plan_steps(build, context.engine.threads).steps}
    for step in STEPS:
        state = step.state(build)
        if state.kind == "to do":
            estimate = f"; about {duration_text(seconds[step.name])}" if seconds[step.name] >= MINUTE else ""
            progress.note(f"{step.name}: {state.why}{estimate}")
            _do(build, step, context)
    layer, strength = tuned_point(build)
    tuning = Tuning((layer,), strength, build.recipe.phase)
    return BuildOutcome(build, build.folder / build.recipe.vector, tuning, failed_quants(build))


def _do(build: Build, step: Step, context: StepContext) -> None:
    inputs, began = step.recorded_inputs(build), time.monotonic()
    try:
        output = step.run(build, context)
    except KeyboardInterrupt:
        context.progress.note(f"stopped at {step.name}; build {build.folder} again to go on from there")
        raise
    build.records[step.name] = StepRecord(
        inputs=inputs,
        outputs={file.as_posix(): digest(build.folder / file) for file in output.files},
        findings=output.findings,
        seconds=round(time.monotonic() - began, 1),
        versions=versions("edge-steer", "llama-cpp-python"),
    )
    build.save()
