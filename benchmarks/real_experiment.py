"""DenseSteer on a real model and GSM8K, from its own solutions to figures on test problems, with controls.

    python benchmarks/real_experiment.py benchmarks/settings/NAME.toml \\
        --train gsm8k=FILE --test gsm8k=FILE --rewrites FILE

makes, in results/real/NAME, what is not there yet: solutions, pairs, vectors, the dev sweep, the test. A stopped run
goes on. The vectors, all in units of the residual norm:

    dense         own samples under a dense instruction, denser and right, against the own solutions (no teacher)
    opposites     CAA: the same samples against solutions under the opposite instruction
    line-breaks   control: the own solutions on one line against themselves
    compressions  control: the own solutions without some sentences against themselves
    paraphrases   control: own samples at the same temperature without an instruction, against the own solutions
    teacher       the published rewrites of another model's solutions against those solutions (--rewrites)
    terse         short solutions of the twelve problems in real.py, written by hand, against the own ones; mean over
                  an answer's tokens

The dev problems choose one layer and strength for "dense" and one for "terse", by the rule in the settings, after a
coarse sweep of more layers on others where the settings have one; a cell of "terse" that they name is taken as it is.
Every other vector is tested where "dense" is, at the same norm. real_report.py makes docs/real/NAME.json and the
figures of it; real_files.py asks other files of the model the same.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click
from real import PROBLEMS
from real_settings import CoarseSettings, Problems, Settings, read_problems, read_settings

from edge_steer.core.backend import EngineOptions, Request
from edge_steer.core.progress import Progress
from edge_steer.core.sampling import Sampling
from edge_steer.core.steering import Steering
from edge_steer.core.vector import Phase, SteeringVector
from edge_steer.evaluation.evaluate import DENSE_PROMPT
from edge_steer.evaluation.figures import Summary
from edge_steer.evaluation.sweep import sweep
from edge_steer.evaluation.sweep_cells import EQUAL, UNSTEERED_CELL, SweepCell
from edge_steer.evaluation.units import Plan, in_process, make_rows
from edge_steer.extraction.extract import record, reduce
from edge_steer.extraction.quality import measure_layers
from edge_steer.llama.engine import Engine
from edge_steer.models.load import load
from edge_steer.models.quantize import quantize
from edge_steer.pairs.checks import check_pairs
from edge_steer.pairs.contrasts import Sources, own_samples, trace_pairs
from edge_steer.pairs.controls import with_sentences_dropped, without_line_breaks
from edge_steer.pairs.criteria import Criteria
from edge_steer.pairs.likelihood import mean_nll
from edge_steer.pairs.pair import Pair, read_pairs, write_pairs
from edge_steer.pairs.rules import instruction, read_rules
from edge_steer.pairs.solutions import Solution, generate_solutions, read_chosen_solutions, usable_solutions
from edge_steer.storage.files import write_json
from edge_steer.storage.provenance import versions
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.rows import UNSTEERED, Method
from edge_steer.tasks.task import Task
from edge_steer.terminal.progress import progress_bar
from edge_steer.vectors.read import load as load_vector
from edge_steer.vectors.write import save

SPARSE_PROMPT = (
    "Reason in many small steps. Let each step do one thing alone, write each step as one paragraph, with a blank line "
    "between steps, and say again what is known before you use it."
)
MINIMAL_RULES = "conservative"  # DenseSteer's prompt row
COARSE = 1000  # dev problems that coarse sweeps draw from; the others choose the cell
SCORED = 12  # pairs of which both sides are scored
POOLING = {"terse": "mean"}  # of the others the last token, as DenseSteer
LATER = ("paraphrases", "minus-line-breaks")  # not in the test's first block, but in the controls'
PHASE: Phase = "generated"
FORMAT = "edge-steer real experiment 1"  # of the test's rows


@dataclass(frozen=True)
class Experiment:
    """Settings, problems, and the folder in which everything lies."""

    settings: Settings
    problems: Problems
    folder: Path
    progress: Progress

    def file(self, name: str) -> Path:
        return self.folder / name

    def vector(self, kind: str) -> SteeringVector:
        return load_vector(self.file(f"{kind}.safetensors"))


def make_pairs(experiment: Experiment, model: Engine) -> dict[str, list[Pair]]:
    """Pairs of every kind, each in a file; pairs.json says how many solutions gave how many."""
    if experiment.file("pairs.json").is_file():
        files = experiment.folder.glob("pairs-*.jsonl")
        return {path.stem.removeprefix("pairs-"): [*read_pairs(path)] for path in files}
    settings, task, progress = experiment.settings.pairs, experiment.problems.pairs, experiment.progress
    own = generate_solutions(
        model, task, experiment.file("own.jsonl"),
        count=settings.solutions, at_once=len(task.samples), wrong=settings.wrong, progress=progress,
    )  # fmt: skip
    samples = draw_samples(experiment, model, own, "dense.jsonl", system=DENSE_PROMPT)
    sparse = generate_solutions(
        model, solved_problems(task, own).with_settings(system=SPARSE_PROMPT), experiment.file("sparse.jsonl"),
        count=len(own), at_once=len(own), wrong=True, progress=progress,
    )  # fmt: skip
    if settings.wrong:
        candidates = trace_pairs(samples, own, wrong=True).pairs
    else:
        candidates = own_samples(Sources((experiment.file("dense.jsonl"), experiment.file("own.jsonl")))).pairs
    criteria = Criteria(numbers=False, right=not settings.wrong, best_candidate=True)
    checked = check_pairs(candidates, backend=model, criteria=criteria, progress=progress)
    kinds = {
        "dense": list(checked.passing),
        "opposites": [replace(pair, system=None) for pair in trace_pairs(samples, sparse, wrong=True).pairs],
        "line-breaks": list(without_line_breaks(own).pairs),
        "compressions": list(with_sentences_dropped(own).pairs),
        "teacher": list(experiment.problems.rewrites),
        "terse": terse_pairs(model, settings.max_tokens),
    }
    some = {"dense": checked.passing, "teacher": experiment.problems.rewrites}
    nll = {
        kind: [[mean_nll(model, side) for side in pair.sides] for pair in progress.counted("NLL", pairs[:SCORED])]
        for kind, pairs in some.items()
    }
    for kind, pairs in kinds.items():
        if pairs:
            write_pairs(pairs, experiment.file(f"pairs-{kind}.jsonl"))
    write_json(
        experiment.file("pairs.json"),
        {
            "own solutions": len(own),
            "usable dense samples": len(usable_solutions(samples, per_problem=settings.samples, wrong=settings.wrong)),
            "dense candidates": len(candidates),
            "dense, before and after": checked.means,
            "pairs": {kind: len(pairs) for kind, pairs in kinds.items()},
            "nll, positive and negative": nll,
            "dropped": checked.dropped,
        },
    )
    return {kind: pairs for kind, pairs in kinds.items() if pairs}


def make_paraphrases(experiment: Experiment, model: Engine) -> list[Pair]:
    """Samples drawn as the dense ones, but asked for nothing, against the own solutions; kept as the others are."""
    path = experiment.file("pairs-paraphrases.jsonl")
    if path.is_file():
        return [*read_pairs(path)]
    own = read_chosen_solutions(experiment.file("own.jsonl"))
    samples = draw_samples(experiment, model, own, "samples.jsonl", system=None)
    pairs = [*trace_pairs(samples, own, wrong=True).pairs]
    counts = json.loads(experiment.file("pairs.json").read_text("utf-8"))
    counts["usable samples"] = len(samples)
    counts["pairs"]["paraphrases"] = len(pairs)
    write_pairs(pairs, path)
    write_json(experiment.file("pairs.json"), counts)
    return pairs


def draw_samples(
    experiment: Experiment, model: Engine, own: Sequence[Solution], file: str, *, system: str | None
) -> list[Solution]:
    """Several solutions of each solved problem under a system message, drawn at a temperature; in a file."""
    settings, task = experiment.settings.pairs, solved_problems(experiment.problems.pairs, own)
    sampling = Sampling(temperature=settings.temperature)
    return generate_solutions(
        model, task.with_settings(system=system, samples=settings.samples, sampling=sampling), experiment.file(file),
        count=len(own) * settings.samples, at_once=len(own),
        per_problem=settings.samples, wrong=settings.wrong, progress=experiment.progress,
    )  # fmt: skip


def solved_problems(task: Task, own: Sequence[Solution]) -> Task:
    solved = {solution.id for solution in own}
    return replace(task, samples=tuple(sample for sample in task.samples if sample.id in solved))


def terse_pairs(model: Engine, max_tokens: int) -> list[Pair]:
    """Solutions written by hand against the model's own, whatever these say."""
    prompts = [model.chat([{"role": "user", "content": question}]) for question in PROBLEMS]
    own = model.generate([Request(prompt, max_tokens) for prompt in prompts])
    return [Pair(*texts, answer.text.strip()) for texts, answer in zip(PROBLEMS.items(), own, strict=True)]


def make_vectors(experiment: Experiment, model: Engine, kinds: Mapping[str, Sequence[Pair]]) -> None:
    """A vector of each kind in residual units; vectors.json: the figures of its layers."""
    path = experiment.file("vectors.json")
    figures = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    for kind in (kind for kind in kinds if kind not in figures):
        states = record(model, kinds[kind], pooling=POOLING.get(kind, "last"), progress=experiment.progress)
        save(reduce(states, normalise="residual"), experiment.file(f"{kind}.safetensors"))
        figures[kind] = [
            {"layer": q.layer, "relative norm": q.relative, "auc": q.separation, "expected cosine": q.expected}
            for q in measure_layers(states)
        ]
        write_json(path, figures)


def sweep_dev(experiment: Experiment, model: Engine, kind: str) -> SteeringVector | None:
    """The vector, tuned to the cell that the dev problems choose; None where that is the unsteered model.

    The terse one is tuned to the settings' own cell where they have one.
    """
    dev, vector, task = experiment.settings.dev, experiment.vector(kind), experiment.problems.dev
    if kind == "terse" and dev.terse:
        return vector.tuned(dev.terse.layer, dev.terse.strength, PHASE)
    run = partial(sweep, model, vector, phase=PHASE, rule=dev.choose, margin=dev.margin, nll=False,
                  progress=experiment.progress)  # fmt: skip
    layers: str | Sequence[int] = dev.layers
    if coarse := dev.coarse:
        first, task = (replace(task, samples=part) for part in (task.samples[:COARSE], task.samples[COARSE:]))
        strengths = coarse.terse_strengths if kind == "terse" else coarse.strengths
        results = run(
            first, layers=coarse.layers, strengths=strengths, dev=coarse.problems, test=1,
            folder=experiment.file(f"coarse-{kind}"),
        )  # fmt: skip
        layers = best_layers(results.cells, coarse)
    strengths = dev.terse_strengths if kind == "terse" else dev.strengths
    results = run(
        task, layers=layers, strengths=strengths, dev=dev.problems, test=dev.confirm,
        folder=experiment.file(f"dev-{kind}"),
    )  # fmt: skip
    return None if results.chosen is None or results.chosen.layer is None else results.tuned_vector


def best_layers(cells: Mapping[SweepCell, Summary], coarse: CoarseSettings) -> list[int]:
    """The layers of the shortest answers among the cells that lose at most the margin, as many as go on."""
    floor = cells[UNSTEERED_CELL].accuracy - coarse.margin - EQUAL
    candidates = [cell for cell, summary in cells.items() if cell != UNSTEERED_CELL and summary.accuracy >= floor]
    ranked = dict.fromkeys(cell.layer for cell in sorted(candidates, key=lambda cell: cells[cell].tokens))
    return sorted(layer for layer in [*ranked][: coarse.finalists] if layer is not None)


def methods_at(experiment: Experiment, dense: SteeringVector, terse: SteeringVector | None) -> dict[str, Method]:
    """What is tested, by name: every vector but "terse" at the layer, strength and phase of `dense`, at its norm."""
    assert dense.tuning
    [layer], strength, phase = dense.tuning.layers, dense.tuning.strength, dense.tuning.phase
    kinds = ("dense", "line-breaks", "compressions", "paraphrases", "opposites", "teacher")
    vectors = {kind: experiment.vector(kind) for kind in kinds if experiment.file(f"{kind}.safetensors").is_file()}
    vectors |= {f"minus-{kind}": vectors[kind] * -1 for kind in ("dense", "line-breaks")}
    for seed in range(experiment.settings.test.random):
        vectors[f"random-{seed}"] = vectors["dense"].random_like(seed)
    steered = {name: Method(name, (Steering(vector, strength, (layer,), phase),)) for name, vector in vectors.items()}
    if terse:
        steered["terse"] = Method.of("terse", terse)
        for seed in range(experiment.settings.test.random_terse):
            steered[f"terse-random-{seed}"] = Method.of(f"terse-random-{seed}", terse.random_like(seed))
    return {
        "unsteered": UNSTEERED,
        "dense-prompt": Method("dense-prompt", system=DENSE_PROMPT),
        "rewriting-prompt": Method("rewriting-prompt", system=instruction(read_rules(MINIMAL_RULES))),
        **steered,
    }


def run_test(experiment: Experiment, model: Engine, methods: Mapping[str, Method]) -> None:
    """Every method on the first block of test problems, and its NLL; the main ones on the other blocks; then what is
    left in the blocks of the controls."""
    test = experiment.settings.test
    at_first = [method for name, method in methods.items() if name not in LATER]
    main = [method for method in at_first if method.name in test.main]
    with Graders() as graders:
        for block in range(test.blocks):
            _ask(experiment, model, graders, "test", block, main if block else at_first)
        for block in range(test.controls):
            done = main if block else at_first
            _ask(experiment, model, graders, "controls", block, [m for m in methods.values() if m not in done])


def _ask(
    experiment: Experiment, model: Engine, graders: Graders, part: str, block: int, methods: Sequence[Method]
) -> None:
    """The methods on one block of test problems: rows in a file of the part."""
    test, task = experiment.settings.test, experiment.problems.test
    samples = task.samples[block * test.block : (block + 1) * test.block]
    plan = Plan.of(replace(task, samples=samples), methods, model.parallel, nll=block == 0)
    header = {
        "format": FORMAT,
        "model": {**model.provenance.model},
        "backend": {**model.provenance.backend},
        "task": plan.task.described(),
        "methods": {method.name: method.described() for method in methods},
        "nll": block == 0,
        "versions": {**model.provenance.versions, **versions("math-verify")},
    }
    make_rows(
        plan, in_process(model, graders), path=experiment.file(f"{part}-{block}.jsonl"), header=header,
        progress=experiment.progress, doing=f"{part}, block {block + 1}",
    )  # fmt: skip


@click.command(help=__doc__)
@click.argument("settings_file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--train", default="gsm8k", show_default=True, help="Task of the pairs and of dev.")
@click.option("--test", default="gsm8k", show_default=True, help="Task of the test.")
@click.option("--rewrites", type=click.Path(path_type=Path, exists=True), help="doc_id, negative, positive; JSONL.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("results/real"), show_default=True
)
@click.option("--threads", default=1, show_default=True)
@click.option("--parallel", default=32, show_default=True)
@click.option("--until", type=click.Choice(["vectors", "dev", "test"]), default="test", show_default=True)
def main(
    settings_file: Path,
    train: str,
    test: str,
    rewrites: Path | None,
    out: Path,
    threads: int,
    parallel: int,
    until: str,
) -> None:
    settings = read_settings(settings_file)
    problems = read_problems(settings, train, test, rewrites)
    with progress_bar() as progress:
        experiment = Experiment(settings, problems, out / settings.name, progress)
        experiment.folder.mkdir(parents=True, exist_ok=True)
        f32 = quantize(settings.model, "F32", threads=threads, progress=progress)
        twin = quantize(f32, settings.quant, threads=threads, progress=progress)
        options = EngineOptions(context=1024, parallel=parallel, threads=threads)
        with load(twin, options=options, progress=progress) as model:
            kinds = make_pairs(experiment, model)
            make_vectors(experiment, model, kinds | {"paraphrases": make_paraphrases(experiment, model)})
            if until == "vectors":
                return
            dense, terse = (sweep_dev(experiment, model, kind) for kind in ("dense", "terse"))
            for kind, tuned in (("dense", dense), ("terse", terse)):
                if tuned:
                    save(tuned, experiment.file(f"chosen-{kind}.gguf"))
            if until == "test":
                at = dense or experiment.vector("dense").tuned(settings.dev.otherwise, 0.1, PHASE)
                run_test(experiment, model, methods_at(experiment, at, terse))


if __name__ == "__main__":
    main()
