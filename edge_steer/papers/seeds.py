"""One evaluation with several seeds, and accuracies of folders joined over their seeds.

Takes settings and seeds, or folders of results; gives accuracies as means and standard deviations over seeds. It knows
no paper and no plot.
"""

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.evaluation.evaluate import EvaluationSettings, evaluate_tasks
from edge_steer.evaluation.figures import by_problem
from edge_steer.evaluation.results import ROWS, load_results, model_of
from edge_steer.storage.provenance import RunningModel
from edge_steer.tasks.task import Task


@dataclass(frozen=True)
class Score:
    """An accuracy in percent. std: population standard deviation over evaluation seeds; None for one seed."""

    mean: float
    std: float | None = None

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.std is None else f" ± {self.std:.1f}")

    @classmethod
    def over(cls, accuracies: Sequence[float]) -> "Score":
        """From one accuracy a seed, each a share."""
        percent = [100 * accuracy for accuracy in accuracies]
        return cls(statistics.fmean(percent), statistics.pstdev(percent) if len(percent) > 1 else None)


@dataclass(frozen=True)
class MethodScores:
    """One method on one model. accuracies: task -> seed -> share of right answers. problems: of each task."""

    model: str
    method: str
    accuracies: dict[str, dict[int, float]] = field(default_factory=dict)
    problems: dict[str, int] = field(default_factory=dict)

    def score(self, task: str) -> Score | None:
        """The accuracy on a task; None where it was not asked."""
        by_seed = self.accuracies.get(task)
        return Score.over(list(by_seed.values())) if by_seed else None

    def average(self, tasks: Sequence[str], *, weighted: bool = False) -> Score | None:
        """The average over tasks, joined over seeds; None unless every task was asked with the same seeds.

        weighted: by the tasks' problems, as DenseSteer does; else all tasks count the same, as in Bias-Only.
        """
        seeds = [[*self.accuracies.get(task, ())] for task in tasks]
        if not seeds or not seeds[0] or any(of_task != seeds[0] for of_task in seeds):
            return None
        weights = [self.problems[task] if weighted else 1 for task in tasks]
        by_seed = [
            statistics.fmean([self.accuracies[task][seed] for task in tasks], weights=weights) for seed in seeds[0]
        ]
        return Score.over(by_seed)


def evaluate_seeds(
    model: RunningModel,
    settings: EvaluationSettings,
    seeds: Sequence[int],
    folder: str | Path,
    *,
    progress: Progress = SILENT,
) -> list[MethodScores]:
    """The same evaluation once a seed, each in a folder `seed-<n>` of its own, so that a stopped one goes on.

    Errors: EdgeSteerError for no seed or one that comes twice, or for several at temperature 0, whose texts are the
    same.
    """
    if not seeds or len({*seeds}) < len(seeds):
        raise EdgeSteerError(f"seeds {', '.join(map(str, seeds))}: at least one is needed, each once")
    greedy = [task.name for task in settings.tasks if not task.settings.sampling.temperature]
    if greedy and len(seeds) > 1:
        raise EdgeSteerError(f"{greedy[0]} is asked at temperature 0: every seed gives the same texts; use one seed")
    for seed in seeds:
        seeded = replace(settings, tasks=tuple(_with_seed(task, seed) for task in settings.tasks))
        evaluate_tasks(model, seeded, folder=Path(folder) / f"seed-{seed}", progress=progress)
    return load_scores([folder])


def load_scores(folders: Sequence[str | Path]) -> list[MethodScores]:
    """The accuracies of folders of results, joined by model and method; a folder may hold one folder a seed.

    Errors: EdgeSteerError for a folder without results, or the same task with the same seed in two of them.
    """
    joined: dict[tuple[str, str], MethodScores] = {}
    for folder in [of_seed for path in folders for of_seed in _seed_folders(Path(path))]:
        header, cells = load_results(folder)
        for (task, method), rows in cells.items():
            scores = joined.setdefault((model_of(header), method), MethodScores(model_of(header), method))
            seed = header["tasks"][task]["settings"]["sampling"]["seed"]
            by_seed = scores.accuracies.setdefault(task, {})
            if seed in by_seed:
                raise EdgeSteerError(
                    f"{folder}: {task} under {method} on {model_of(header)} with seed {seed} is in another folder too"
                )
            accuracies = by_problem(rows, lambda row: float(row.correct))
            by_seed[seed] = statistics.fmean(accuracies.values())
            scores.problems[task] = len(accuracies)
    return list(joined.values())


def tasks_of(scores: Sequence[MethodScores]) -> list[str]:
    """The tasks that any of them was asked, in their order."""
    return list(dict.fromkeys(task for method in scores for task in method.accuracies))


def _with_seed(task: Task, seed: int) -> Task:
    return task.with_settings(sampling=replace(task.settings.sampling, seed=seed))


def _seed_folders(folder: Path) -> list[Path]:
    if (folder / ROWS).is_file() or not folder.is_dir():
        return [folder]
    numbered = {int(match[1]): path for path in folder.iterdir() if (match := re.fullmatch(r"seed-(\d+)", path.name))}
    return [numbered[seed] for seed in sorted(numbered)] or [folder]
