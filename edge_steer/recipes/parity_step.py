"""The step of a build that certifies."""

import shutil
from contextlib import ExitStack
from pathlib import Path

from edge_steer.certificates import page
from edge_steer.certificates.behaviour import DOSES
from edge_steer.certificates.files import check_files, file_of
from edge_steer.certificates.make import Behaviour, ask, certify
from edge_steer.certificates.read import CERTIFICATE, ROWS
from edge_steer.core.steering import Steering
from edge_steer.parity import texts
from edge_steer.recipes.build import Build
from edge_steer.recipes.step import Made, Means, open_reference
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.load import load_task
from edge_steer.vectors import gguf_writer


def parity_step(build: Build, means: Means) -> Made:
    layer, strength = build.at
    compared = build.recipe.comparison
    vector = build.folder / build.recipe.vector
    steering = [Steering(gguf_writer.load(vector), strength, (layer,), build.recipe.phase)]
    if (kept := build.steps.get("parity")) and kept["inputs"] != build.inputs("parity"):
        shutil.rmtree(build.folder / ROWS, ignore_errors=True)
        build.forget("parity")
        build.save()
    files = [
        file_of(build.model.folder, quant, build.folder, means.engine, revision=build.revision, progress=means.progress)
        for quant in build.quants
    ]
    check_files(files, steered=True)
    reference = open_reference(build, means)
    with ExitStack() as stack:
        asked = None
        if compared.task:
            task = load_task(build.task_name(compared.task), split=compared.split, limit=compared.problems)
            asked = Behaviour(task, DOSES, stack.enter_context(Graders()))
        said = ask(
            reference,
            build.folder,
            steering,
            asked or texts.read_texts(build.pairs_file, reference),
            named=str(build.model.folder),
            limit=compared.texts,
            threads=means.engine.threads,
            progress=means.progress,
        )
        told = certify(
            build.folder, said, files, steering, asked, vectors=[str(vector)], changes={}, progress=means.progress
        )
        page.write(build.folder, told, said.answers, asked.task.samples if asked else ())
    return Made((Path(CERTIFICATE),), {"verdicts": {entry["quant"]: entry["verdict"] for entry in told["files"]}})
