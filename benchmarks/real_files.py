"""Other files of a model against the twin that real_experiment.py asked, problem by problem.

    python benchmarks/real_files.py benchmarks/settings/NAME.toml --train gsm8k=FILE --test gsm8k=FILE --rewrites FILE

asks the first test problems of each of the settings' files, under the methods that they name, with the vectors that
the experiment chose. Rows lie in results/real/NAME, and a stopped run goes on; docs/real/NAME-files.json has the
figures: what steering changes in each file, and how often its answers are the twin's.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from real_experiment import FORMAT, Experiment
from real_report import DOCS, markdown, result_table, test_rows
from real_settings import FileSettings, read_problems, read_settings

from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.stats import bootstrap
from edge_steer.evaluation.figures import compare, summarise
from edge_steer.evaluation.units import Plan, in_process, make_rows
from edge_steer.llama.engine import Engine
from edge_steer.models.load import load
from edge_steer.models.quantize import quantize
from edge_steer.storage.files import write_json
from edge_steer.storage.provenance import versions
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.rows import UNSTEERED, Method, Row
from edge_steer.terminal.progress import progress_bar
from edge_steer.vectors.read import load as load_vector

Rows = dict[str, list[Row]]  # by method


def ask(experiment: Experiment, files: FileSettings, quant: str, model: Engine) -> Rows:
    """The rows of one file under every method; file-QUANT.jsonl keeps them."""
    task = experiment.problems.test.limit(files.problems)
    plan = Plan.of(task, [method_of(experiment, name) for name in files.methods], model.parallel, nll=False)
    header = {
        "format": FORMAT,
        "model": {**model.provenance.model},
        "backend": {**model.provenance.backend},
        "task": task.described(),
        "methods": {method.name: method.described() for method in plan.methods},
        "versions": {**model.provenance.versions, **versions("math-verify")},
    }
    path = experiment.file(f"file-{quant}.jsonl")
    with Graders() as graders:
        runner = in_process(model, graders)
        rows = make_rows(plan, runner, path=path, header=header, progress=experiment.progress, doing=quant)
    return {name: rows.of(name) for name in files.methods}


def method_of(experiment: Experiment, name: str) -> Method:
    """The unsteered model, or a vector as the experiment's dev chose it."""
    if name == "unsteered":
        return UNSTEERED
    return Method.of(name, load_vector(experiment.file(f"chosen-{name}.gguf")))


def open_file(experiment: Experiment, quant: str, options: EngineOptions) -> Engine:
    """The model's own file where it is of that type, else one made of its dequantised twin."""
    model, progress = experiment.settings.model, experiment.progress
    own = load(model, options=options, progress=progress)
    if own.provenance.model["quant"] == quant:
        return own
    own.close()
    f32 = quantize(model, "F32", threads=options.threads, progress=progress)
    return load(quantize(f32, quant, threads=options.threads, progress=progress), options=options, progress=progress)


def figures_of(rows: Rows, twin: Rows) -> dict[str, Any]:
    """Of each method: its figures, against the unsteered one of the same file, and against the twin's answers."""
    return {
        name: {
            "figures": asdict(summarise(some)),
            "against unsteered": None if name == "unsteered" else asdict(compare(rows["unsteered"], some)),
            "against the twin": asdict(compare(twin[name], some)),
            "same text as the twin": sum(one.text == other.text for one, other in zip(some, twin[name], strict=True)),
        }
        for name, some in rows.items()
    }


def difference(rows: Rows, twin: Rows, name: str) -> dict[str, Any]:
    """Tokens: what a method changes in a file minus what it changes in the twin, over problems."""
    changes = [
        (after.tokens - before.tokens) - (of_twin.tokens - before_twin.tokens)
        for before, after, before_twin, of_twin in zip(
            rows["unsteered"], rows[name], twin["unsteered"], twin[name], strict=True
        )
    ]
    values = np.array(changes, dtype=float)
    return {"mean": float(values.mean()), "interval": bootstrap(values)}


def select(rows: Sequence[Row], like: Sequence[Row]) -> list[Row]:
    """The rows of the same problems, in the same order."""
    by_id = {row.id: row for row in rows}
    return [by_id[row.id] for row in like]


def table(summary: dict[str, Any]) -> str:
    """A row a file and steered method: what steering changes there, and that minus what it changes in the twin."""
    rows = []
    for quant, of_file in summary.items():
        for name, change in of_file["minus the twin's change in tokens"].items():
            low, high = change["interval"]
            rows.append([quant, name, f"{change['mean']:+.1f} ({low:+.1f} to {high:+.1f})",
                         str(of_file["methods"][name]["same text as the twin"])])  # fmt: skip
    return markdown(["file", "method", "tokens: change minus the twin's", "answers that are the twin's"], rows)


@click.command(help=__doc__)
@click.argument("settings_file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--train", default="gsm8k", show_default=True)
@click.option("--test", default="gsm8k", show_default=True)
@click.option("--rewrites", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/real"), show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(settings_file: Path, train: str, test: str, rewrites: Path | None, out: Path, threads: int) -> None:
    settings = read_settings(settings_file)
    if not settings.files:
        raise EdgeSteerError(f"{settings_file} has no table [files]")
    options = EngineOptions(context=1024, threads=threads, parallel=32)
    twin, _ = test_rows(out / settings.name)
    summary = {}
    with progress_bar() as progress:
        experiment = Experiment(settings, read_problems(settings, train, test, rewrites), out / settings.name, progress)
        for quant in settings.files.quants:
            with open_file(experiment, quant, options) as model:
                rows = ask(experiment, settings.files, quant, model)
                provenance = model.provenance
            same = {name: select(twin[name], some) for name, some in rows.items()}
            steered = [name for name in rows if name != "unsteered"]
            summary[quant] = {
                "model": provenance.model,
                "backend": provenance.backend,
                "methods": figures_of(rows, same),
                "minus the twin's change in tokens": {name: difference(rows, same, name) for name in steered},
            }
            click.echo(f"{quant}:\n\n{result_table(rows)}\n")
    write_json(DOCS / f"{settings.name}-files.json", summary)
    click.echo(table(summary))


if __name__ == "__main__":
    main()
