"""The step of a build that certifies."""

import shutil
from pathlib import Path

from edge_steer.certificates.behaviour import DOSES
from edge_steer.certificates.certificate import CERTIFICATE, ROWS
from edge_steer.certificates.files import SteeringFile
from edge_steer.certificates.make import certify
from edge_steer.core.steering import Steering
from edge_steer.recipes.build import Build
from edge_steer.recipes.pair_steps import CHECK
from edge_steer.recipes.step import (
    PROMPT_TOKENS,
    SOLUTION_TOKENS,
    Step,
    StepContext,
    StepOutput,
    Work,
    task_inputs,
    with_recipe_settings,
)
from edge_steer.recipes.vector_steps import EXPORT, pair_count, tuned_point
from edge_steer.storage.digests import digest
from edge_steer.tasks.load import load_task
from edge_steer.vectors.read import load


def failed_quants(build: Build) -> tuple[str, ...]:
    """The types whose parity is out of tolerance."""
    record = build.records.get(PARITY.name)
    verdicts = record.findings["verdicts"] if record else {}
    return tuple(quant for quant, verdict in verdicts.items() if verdict == "fail")


def _quants(build: Build) -> tuple[str, ...]:
    return tuple(quant.upper() for quant in build.recipe.parity.quants or build.model.quants)


def _inputs(build: Build) -> dict[str, object]:
    layer, strength = tuned_point(build)
    table = build.recipe.parity
    compared: dict[str, object] = {"pairs": digest(build.recipe.pairs_file)}
    if table.task:
        compared = {"task": task_inputs(build, table.task), "split": table.split, "problems": table.problems}
    return {
        "vector": EXPORT.record(build).findings["digest"],
        **compared,
        "model": build.model_inputs(None),
        "quants": _quants(build),
        "texts": table.texts,
        "layer": layer,
        "strength": strength,
        "phase": build.recipe.phase,
    }


def _certify(build: Build, context: StepContext) -> StepOutput:
    layer, strength = tuned_point(build)
    table, vector = build.recipe.parity, build.folder / build.recipe.vector
    _forget_other_rows(build)
    task = None
    if table.task:
        name, protocol = build.recipe.task_name(table.task), build.recipe.asking.protocol
        task = with_recipe_settings(build, load_task(name, protocol=protocol, split=table.split, limit=table.problems))
    certificate = certify(
        build.source,
        build.source,
        steer=[SteeringFile(Steering(load(vector), strength, (layer,), build.recipe.phase), vector)],
        texts=None if task else build.recipe.pairs_file,
        task=task,
        most_texts=table.texts,
        folder=build.folder,
        quants=_quants(build),
        revision=build.revision,
        options=context.engine,
        progress=context.progress,
    )
    verdicts = {file.quant: file.verdict for file in certificate.files}
    return StepOutput((Path(CERTIFICATE),), {"verdicts": verdicts})


def _forget_other_rows(build: Build) -> None:
    """Rows of a certificate with other inputs cannot be continued; those of a stopped step can."""
    record = build.records.get(PARITY.name)
    if record and record.inputs != PARITY.recorded_inputs(build):
        shutil.rmtree(build.folder / ROWS, ignore_errors=True)
        del build.records[PARITY.name]
        build.save()


def _work(build: Build) -> Work:
    table, sides = build.recipe.parity, 1 + len(_quants(build))
    count = min(table.problems if table.task else pair_count(build), table.texts)
    read = sides * 4 * count * (SOLUTION_TOKENS + PROMPT_TOKENS)
    text = f"{', '.join(_quants(build))} against PyTorch on {count} texts"
    if not table.task:
        return Work(text, read=read)
    rows = sides * len(DOSES) * table.problems
    tokens = rows * SOLUTION_TOKENS
    return Work(f"{text}; {rows:,} rows on {table.task}", decoded=tokens, read=read + tokens)


PARITY = Step("parity", (CHECK, EXPORT), _inputs, _certify, _work)
