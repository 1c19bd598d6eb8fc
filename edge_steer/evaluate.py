"""A backend on a list of samples: rows first, then accuracy, steps, tokens and density of them.

Takes a Backend, samples and a steering, gives rows. With a path every row is on disk before the next is counted,
and a run that was stopped goes on where it ended. It knows no model format and no plot.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_steer.backend import GREEDY, Backend, Completion, Request, Sampling
from edge_steer.errors import EdgeSteerError
from edge_steer.stats import wilson
from edge_steer.tasks import Sample, count_steps, density, grade
from edge_steer.vector import Steering


@dataclass(frozen=True)
class Row:
    """One answered sample. `steps` and `tokens` are N_steps and N_tokens of the text."""

    id: str
    text: str
    tokens: int
    steps: int
    correct: bool
    finish: str


@dataclass(frozen=True)
class Summary:
    """Means over samples; `accuracy_interval` is Wilson's at 95%, `density` the mean of N_tokens / N_steps."""

    samples: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    steps: float
    tokens: float
    density: float


def evaluate(
    backend: Backend,
    samples: Sequence[Sample],
    steering: Sequence[Steering] = (),
    *,
    max_tokens: int = 400,
    sampling: Sampling = GREEDY,
    path: Path | None = None,
    key: str = "",
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Answer every sample; rows in the order of the samples.

    path: a JSONL file that keeps each row as it comes. `key` says what the rows depend on (model file, vector,
    settings); rows found under another key are made anew, rows under the same key are not made twice.
    """
    kept = _resume(path, key) if path else {}
    missing = [sample for sample in samples if sample.id not in kept]
    requests = [Request(backend.chat(sample.messages), max_tokens, tuple(steering), sampling) for sample in missing]

    def take(index: int, completion: Completion) -> None:
        sample = missing[index]
        row = Row(
            id=sample.id,
            text=completion.text,
            tokens=len(completion.tokens),
            steps=count_steps(completion.text),
            correct=grade(completion.text, sample.answer),
            finish=completion.finish,
        )
        if path:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")
        kept[row.id] = row
        if on_row:
            on_row(row)

    backend.generate(requests, on_done=take)
    return [kept[sample.id] for sample in samples]


def summarise(rows: Sequence[Row]) -> Summary:
    """Errors: EdgeSteerError for no rows."""
    if not rows:
        raise EdgeSteerError("no rows to summarise")
    correct = sum(row.correct for row in rows)
    return Summary(
        samples=len(rows),
        accuracy=correct / len(rows),
        accuracy_interval=wilson(correct, len(rows)),
        steps=statistics.fmean(row.steps for row in rows),
        tokens=statistics.fmean(row.tokens for row in rows),
        density=statistics.fmean(density(row.tokens, max(row.steps, 1)) for row in rows),
    )


def _resume(path: Path, key: str) -> dict[str, Row]:
    """The whole rows of a file that begins with this key; any other file is begun anew."""
    header = json.dumps({"key": key}) + "\n"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if not whole or whole[0] != header:
        whole = [header]
    if whole != lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(whole), encoding="utf-8")
    return {row.id: row for row in (Row(**json.loads(line)) for line in whole[1:])}
