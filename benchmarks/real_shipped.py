"""A shipped vector in the file that anyone can have, on test problems that had no part in the experiment.

    python benchmarks/real_shipped.py benchmarks/settings/NAME.toml export/NAME/VECTOR \\
        --train gsm8k=FILE --test gsm8k=FILE --rewrites FILE

The vector is used as its recipe says, on the problems of the settings' draw behind those of the test. A stopped run
goes on; docs/real/NAME-shipped.json has the figures.
"""

from dataclasses import asdict, replace
from pathlib import Path

import click
from real_report import DOCS, result_table
from real_settings import read_problems, read_settings

from edge_steer.core.backend import EngineOptions
from edge_steer.evaluation.evaluate import evaluate
from edge_steer.evaluation.figures import compare, summarise
from edge_steer.models.load import load
from edge_steer.storage.files import write_json
from edge_steer.terminal.progress import progress_bar
from edge_steer.vectors.read import load as load_vector


@click.command(help=__doc__)
@click.argument("settings_file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("vector", type=click.Path(path_type=Path, exists=True))
@click.option("--train", default="gsm8k", show_default=True)
@click.option("--test", default="gsm8k", show_default=True)
@click.option("--rewrites", type=click.Path(path_type=Path, exists=True))
@click.option("--problems", default=32, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/real"), show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(
    settings_file: Path, vector: Path, train: str, test: str, rewrites: Path | None, problems: int, out: Path,
    threads: int,
) -> None:  # fmt: skip
    settings = read_settings(settings_file)
    task = read_problems(settings, train, test, rewrites).test
    first = settings.test.block * settings.test.blocks
    task = replace(task, samples=task.samples[first : first + problems])
    options = EngineOptions(context=1024, threads=threads, parallel=32)
    with progress_bar() as progress, load(settings.model, options=options, progress=progress) as model:
        methods = {"unsteered": None, vector.name: load_vector(vector)}
        rows = evaluate(
            model, task, methods, nll=False, folder=out / settings.name / "shipped", progress=progress
        )  # fmt: skip
        provenance = model.provenance
    before, after = rows["unsteered"], rows[vector.name]
    summary = {
        "model": provenance.model,
        "backend": provenance.backend,
        "figures": {name: asdict(summarise(of_method)) for name, of_method in rows.items()},
        "against unsteered": asdict(compare(before, after)),
    }
    write_json(DOCS / f"{settings.name}-shipped.json", summary)
    click.echo(result_table(rows))


if __name__ == "__main__":
    main()
