"""How likely the unsteered model holds each text alone, without its prompt: the measure of DenseSteer's figure 6.

Takes a running model and a folder of results or of a sweep, gives the log of the mean perplexity of each method. It
loads no model.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_steer.core.backend import Backend
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.evaluation.plots import Grid, Point, plot_strengths
from edge_steer.evaluation.results import Cells, load_results, model_of
from edge_steer.evaluation.sweep_cells import UNSTEERED_CELL, sweep_cells
from edge_steer.evaluation.sweep_results import DEV, FORMAT
from edge_steer.evaluation.units import read_rows
from edge_steer.storage.files import write_json
from edge_steer.storage.provenance import RunningModel
from edge_steer.storage.records import Record

RESULT, PLOT = "perplexity.json", "perplexity.png"


@dataclass(frozen=True)
class Perplexity:
    """Of one method on one task. log_mean: ln of the mean over texts of exp(mean NLL of the text's tokens).

    texts: how many were scored; those of fewer than 2 tokens are not.
    """

    task: str
    method: str
    log_mean: float
    texts: int


def text_perplexity(model: Backend, text: str) -> float | None:
    """exp of the mean NLL of a text's tokens, without a prompt; None for a text of fewer than 2.

    The first token is scored only behind a BOS, where the model wants one.
    """
    tokens = model.encode(text)
    return math.exp(float(model.nll(tokens, 1).mean())) if len(tokens) > 1 else None


def folder_perplexities(model: RunningModel, folder: str | Path, *, progress: Progress = SILENT) -> list[Perplexity]:
    """Every task and method of a folder of `evaluate`, or every cell of a sweep's dev split, also as perplexity.json.

    model: the one that made the texts. Errors: EdgeSteerError for another folder, another model, or no text to score.
    """
    header, cells = _load(Path(folder))
    if header["model"] != dict(model.provenance.model):
        raise EdgeSteerError(f"the rows of {folder} are of {model_of(header)}; score them with the same file")
    results = []
    for (task, method), rows in cells.items():
        values = []
        for row in progress.counted(f"{task}, {method}", rows):
            if row.answered and (value := text_perplexity(model, row.text)):
                values.append(value)
        if not values:
            raise EdgeSteerError(f"{folder}: {task}, {method} has no text of 2 tokens or more")
        results.append(Perplexity(task, method, math.log(statistics.fmean(values)), len(values)))
    write_json(Path(folder) / RESULT, [asdict(result) for result in results])
    return results


def draw_perplexities(folder: str | Path, results: Sequence[Perplexity]) -> Path:
    """perplexity.png of a sweep's folder: the log of the mean perplexity over strength, one line a layer.

    Errors: EdgeSteerError for a folder that holds no sweep, or without matplotlib.
    """
    header, _ = read_rows(Path(folder) / DEV, FORMAT)
    by_method = {result.method: Point(*[result.log_mean] * 3) for result in results}
    cells = [cell for cell in sweep_cells(header["layers"], header["strengths"]) if cell.name in by_method]
    steered = {(cell.layer, cell.strength): by_method[cell.name] for cell in cells if cell.layer is not None}
    name = "log of the mean perplexity of the text alone"
    grid = Grid(name, "number", steered, by_method.get(UNSTEERED_CELL.name))
    path = Path(folder) / PLOT
    plot_strengths([grid], f"{model_of(header)}, {header['task']['name']}", path)
    return path


def is_sweep(folder: str | Path) -> bool:
    """Whether a folder holds a sweep."""
    return (Path(folder) / DEV).is_file()


def _load(folder: Path) -> tuple[Record, Cells]:
    if not is_sweep(folder):
        return load_results(folder)
    header, rows = read_rows(folder / DEV, FORMAT)
    cells: Cells = {}
    for row in rows:
        cells.setdefault((row.task, row.method), []).append(row)
    return header, cells
