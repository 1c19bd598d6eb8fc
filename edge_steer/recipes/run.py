"""The steps of a build: solutions, rewrites, checked pairs, a vector, a sweep, its export, parity.

Takes a Build, does what is to do, leaves vector.gguf and its certificate beside the recipe, what led there in build/. A
stopped step goes on where it was. What a step does is the business of the modules it calls; each is asked here once.
"""

import time
from collections.abc import Callable

from edge_steer.recipes.build import STEPS, Build, Step
from edge_steer.recipes.pair_steps import check_step, endpoint_of, generate_step, rewrite_step, settings_of_pairs
from edge_steer.recipes.parity_step import parity_step
from edge_steer.recipes.step import Made, Means, step_versions
from edge_steer.recipes.vector_steps import export_step, extract_step, sweep_step
from edge_steer.storage import hub
from edge_steer.storage.files import digest


def run(build: Build, means: Means) -> None:
    """Do every step that is to do, in order; each is in build.json when it is done.

    Errors: EdgeSteerError, from the step that cannot be done.
    """
    (build.folder / "build").mkdir(exist_ok=True)
    if build.repo and not build.revision:
        build.lock["revision"] = hub.listing(build.repo).commit
        build.save()
    if build.state("rewrite").kind == "to do" and not build.rewriter_file:
        endpoint_of(settings_of_pairs(build))  # a missing key is said before hours of solving
    for step in STEPS:
        state = build.state(step)
        if state.kind != "to do":
            continue
        means.progress.note(f"{step}: {state.why}")
        inputs, began = build.inputs(step), time.monotonic()
        made = _STEPS[step](build, means)
        build.steps[step] = {
            "inputs": inputs,
            "outputs": {file.as_posix(): digest(build.folder / file) for file in made.files},
            "found": dict(made.found),
            "seconds": round(time.monotonic() - began, 1),
            "versions": step_versions(),
        }
        build.save()


_STEPS: dict[Step, Callable[[Build, Means], Made]] = {
    "generate": generate_step,
    "rewrite": rewrite_step,
    "check": check_step,
    "extract": extract_step,
    "sweep": sweep_step,
    "export": export_step,
    "parity": parity_step,
}
