"""A vector trained by RLOO on a real model and GSM8K: its reward curve, and what it gains on test problems.

    python benchmarks/training_real.py benchmarks/settings/NAME.toml --train FILE --test FILE

trains in results/real/NAME on problems of few calculations; where the settings have a pool, on those that the untrained
model answers both rightly and wrongly. There is one training a seed and, if the settings ask for controls, one with
shuffled rewards, and a random vector of the first one's norms. Then it asks test problems of each vector under the
prompt of its training and of the untrained model under every prompt. The first vector and the untrained model are asked
problems of train too, which were chosen alike and not trained on. "vote" is the commonest of a problem's answers: more
samples without training, of which the untrained model makes as many as the settings say. Writes docs/real/NAME.json and
NAME.png and prints tables. A stopped run goes on; --steps makes another number of them.
"""

from dataclasses import asdict, replace
from pathlib import Path

import click
from training import over_seeds
from training_experiment import EXPORTED, UNTRAINED, Experiment
from training_report import cost, figures, show, show_log, vote_figures
from training_settings import easy_problems, read_settings, unseen_problems

from edge_steer.core.backend import EngineOptions
from edge_steer.storage.files import write_json
from edge_steer.terminal.progress import progress_bar
from edge_steer.training.plots import plot_training
from edge_steer.training.records import TrainingLog

DOCS = Path("docs/real")


@click.command(help=__doc__)
@click.argument("path", metavar="SETTINGS", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--train", required=True, type=click.Path(path_type=Path), help="GSM8K's file of training problems.")
@click.option("--test", required=True, type=click.Path(path_type=Path), help="Its file of test problems.")
@click.option("--steps", type=click.IntRange(1), help="In place of the settings'.")
@click.option("--threads", default=1, show_default=True)
def main(path: Path, train: Path, test: Path, steps: int | None, threads: int) -> None:
    settings, folder = read_settings(path), Path("results/real") / path.stem
    if steps:
        settings = replace(settings, rloo=replace(settings.rloo, steps=steps))
    options = EngineOptions(
        threads=threads, parallel=settings.rloo.prompts * settings.rloo.generations, template=settings.template
    )
    with progress_bar() as progress:
        experiment = Experiment(settings, folder, options, progress)
        problems, dev = experiment.problems(easy_problems(train, folder, settings))
        asked = unseen_problems(easy_problems(test, folder, settings), settings.test)
        vectors = experiment.vectors(problems)
        parts = {"test": experiment.on_test(asked, vectors)}
        parts |= {name: experiment.on_test_by(name, asked, vectors) for name in settings.test.also}
        if dev:
            parts["dev"] = experiment.on_dev(dev, vectors)
        voters = experiment.voters(asked)
    first, *others = settings.trainings()
    seeds = [first, *(training for training in others if not training.rloo.shuffle_rewards)]
    logs = {training.name: TrainingLog.read(folder / training.folder) for training in (first, *others)}
    summary = {
        "settings": asdict(settings),
        "problems": len(problems.samples),
        "trainings": {name: cost(log) for name, log in logs.items()},
    }
    test_cells = parts["test"]
    test_cells |= over_seeds({f"vector, seed {training.rloo.seed}": test_cells[training.name] for training in seeds})
    for part, cells in parts.items():
        before, vector = cells[UNTRAINED], cells.get(first.name) or cells[EXPORTED]
        summary[part] = {name: figures(rows, before, vector) for name, rows in cells.items()}
        show(part, cells, before, vector)
    if settings.vote:
        summary["vote"] = vote_figures(voters, test_cells[first.name], settings.vote.samples)
    for name, log in logs.items():
        show_log(name, log)
    write_json(DOCS / f"{path.stem}.json", summary)
    plot_training(logs[first.name], DOCS / f"{path.stem}.png")


if __name__ == "__main__":
    main()
