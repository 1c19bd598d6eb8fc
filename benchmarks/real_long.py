"""Does the effect of steering drift over an answer of thousands of tokens?

    python benchmarks/real_long.py benchmarks/settings/NAME-long.toml

The model answers every question twice, unsteered and steered, as long as the settings say: end tokens are forbidden.
Over each answer, whoever wrote it, both the unsteered and the steered model are run, and compared window by window:

    KL       of the steered model's next token from the unsteered one's, nats, the mean over positions
    shift    length of what steering changes in the residual stream after the last block, over the stream's length
    along    cosine of that change with the change at its layer, which is the vector
    end      log-odds of an end token, steered minus unsteered

and, of the answer itself, the share of its sequences of four tokens that stood in it before the window.

Answers and windows lie in results/real/NAME-long.jsonl, and a stopped run goes on with the next answer; then
docs/real/NAME-long.json and a figure are written and a table printed. Intervals are over answers.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
import numpy as np
from real_report import DOCS, markdown

from edge_steer.core.backend import EngineOptions, Recording, Request, Tokens
from edge_steer.core.sampling import Sampling
from edge_steer.core.stats import Floats, bootstrap, log_softmax
from edge_steer.core.steering import Steering
from edge_steer.core.vector import Array
from edge_steer.llama.engine import Engine
from edge_steer.models.load import load
from edge_steer.models.quantize import quantize
from edge_steer.storage.files import write_json
from edge_steer.storage.records import Record, Store
from edge_steer.storage.toml import TomlTable
from edge_steer.terminal.progress import progress_bar
from edge_steer.vectors.read import load as load_vector

MEASURES = ("KL", "shift", "along", "end")


@dataclass(frozen=True)
class LongSettings:
    """What is asked; see the settings file. vector: where it lies."""

    model: str
    quant: str
    vector: str
    tokens: int
    window: int
    temperature: float
    ends: tuple[str, ...]
    questions: tuple[str, ...]


def read_long(path: Path) -> LongSettings:
    """Errors: EdgeSteerError for a key that is missing, unknown or of another type."""
    table = TomlTable(path, "settings of long answers")
    settings = LongSettings(
        table.text("model"),
        table.text("quant"),
        table.text("vector"),
        table.whole("tokens"),
        table.whole("window"),
        table.number("temperature"),
        table.texts("ends"),
        table.texts("questions"),
    )
    table.finish()
    return settings


def write_answers(model: Engine, settings: LongSettings, steering: Steering, store: Store) -> list[Record]:
    """Every question answered unsteered and steered; those in the store are not made again."""
    forbidden = tuple((token, float("-inf")) for token in end_tokens(model, settings))
    answers = {(r["question"], r["steered"]): r for r in store.records if "tokens" in r}
    wanted = [(question, steered) for question in settings.questions for steered in (False, True)]
    missing = [one for one in wanted if one not in answers]
    requests = [
        Request(
            model.chat([{"role": "user", "content": question}]),
            settings.tokens,
            (steering,) if steered else (),
            Sampling(temperature=settings.temperature, logit_bias=forbidden, seed=seed),
        )
        for seed, (question, steered) in enumerate(missing)
    ]
    for (question, steered), request, answer in zip(missing, requests, model.generate(requests), strict=True):
        store.append({"question": question, "steered": steered, "prompt": request.prompt, "tokens": answer.tokens})
        answers[question, steered] = store.records[-1]
    return [answers[one] for one in wanted]


def end_tokens(model: Engine, settings: LongSettings) -> list[int]:
    return [token for text in settings.ends for token in model.encode(text, start=False)]


def compare_windows(model: Engine, answer: Record, steering: Steering, settings: LongSettings) -> list[Record]:
    """The measures of every whole window of one answer."""
    prompt, tokens = answer["prompt"], (*answer["prompt"], *answer["tokens"])
    ends = end_tokens(model, settings)
    (plain, before), (steered, after) = (_run(model, tokens, len(prompt), one) for one in ((), (steering,)))
    change = after - before
    direction = steering.vector.directions[steering.layers[0]] if steering.layers else np.zeros(0)
    windows = []
    for first in range(0, len(plain) - settings.window, settings.window):
        part = slice(first, first + settings.window)
        p, q = log_softmax(plain[part]), log_softmax(steered[part])
        lengths = np.linalg.norm(change[part], axis=1)
        cosines = change[part] @ direction / (lengths * np.linalg.norm(direction))
        windows.append(
            {
                "KL": float((np.exp(p) * (p - q)).sum(axis=1).mean()),
                "shift": float((lengths / np.linalg.norm(before[part], axis=1)).mean()),
                "along": float(cosines.mean()),
                "end": float((_log_odds(q, ends) - _log_odds(p, ends)).mean()),
            }
        )
    return windows


def _run(model: Engine, tokens: Tokens, prompt: int, steering: Sequence[Steering]) -> tuple[Array, Array]:
    """Logits of all positions that choose a token of the answer, and the residual stream after the last block there."""
    last = model.model.block_count - 1
    recording = Recording([last], range(prompt - 1, len(tokens)))
    pieces = [piece.copy() for piece in model.logit_rows(tokens, prompt, steering, recording)]
    return np.concatenate(pieces), recording.states[last]


def _log_odds(log_probabilities: Floats, tokens: Sequence[int]) -> Floats:
    chance = np.exp(log_probabilities[:, tokens]).sum(axis=1)
    odds: Floats = np.log(chance) - np.log1p(-chance)
    return odds


def summarise_windows(answers: Sequence[Record], windows: Sequence[Sequence[Record]]) -> dict[str, Any]:
    """Each measure by window: its mean over answers with its interval, and how far the last is from the first."""
    values = {name: np.array([[one[name] for one in some] for some in windows]) for name in MEASURES}
    return {
        "answers": [{"question": answer["question"], "steered": answer["steered"]} for answer in answers],
        **{
            name: {
                "windows": [[float(of.mean()), bootstrap(of)] for of in table.T],
                "last minus first": [float((drift := table[:, -1] - table[:, 0]).mean()), bootstrap(drift)],
            }
            for name, table in values.items()
        },
    }


def repeated(tokens: Sequence[int], window: int) -> list[float]:
    """Of each window the share of its sequences of four tokens that stood in the answer before it."""
    fours = [tuple(tokens[first : first + 4]) for first in range(len(tokens) - 3)]
    parts = [fours[first : first + window - 3] for first in range(0, len(tokens), window)]
    before = [{*fours[: max(number * window - 3, 0)]} for number in range(len(parts))]
    return [float(np.mean([four in seen for four in part])) for part, seen in zip(parts, before, strict=True)]


def draw(summary: dict[str, Any], window: int, path: Path) -> None:
    """The four measures over the position."""
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(11, 2.8), layout="constrained")
    for axis, name in zip(axes, MEASURES, strict=True):
        means = np.array([mean for mean, _ in summary[name]["windows"]])
        low, high = np.array([ends for _, ends in summary[name]["windows"]]).T
        positions = (np.arange(len(means)) + 0.5) * window
        axis.errorbar(positions, means, [means - low, high - means], marker="o", capsize=3)
        axis.set(title=name, xlabel="token of the answer", ylim=(min(0, low.min() * 1.1), max(0, high.max() * 1.1)))
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=110)
    plt.close(figure)


@click.command(help=__doc__)
@click.argument("settings_file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/real"), show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(settings_file: Path, out: Path, threads: int) -> None:
    settings, name = read_long(settings_file), settings_file.stem
    steering = Steering.of(load_vector(settings.vector))
    options = EngineOptions(context=settings.tokens + 512, parallel=2 * len(settings.questions), threads=threads)
    with progress_bar() as progress:
        f32 = quantize(settings.model, "F32", threads=threads, progress=progress)
        twin = quantize(f32, settings.quant, threads=threads, progress=progress)
        header = {"format": "edge-steer long answers 1", **asdict(settings), "digest": steering.vector.digest}
        with (
            load(twin, options=options, progress=progress) as model,
            Store.open(out / f"{name}.jsonl", header) as store,
        ):
            progress.note("answering")
            answers = write_answers(model, settings, steering, store)
            measured = {record["of"]: record["windows"] for record in store.records if "windows" in record}
            for number, answer in enumerate(progress.counted("comparing answers", answers)):
                if number not in measured:
                    measured[number] = compare_windows(model, answer, steering, settings)
                    store.append({"of": number, "windows": measured[number]})
            ran: dict[str, Any] = {
                "model": model.provenance.model,
                "backend": model.provenance.backend,
                "window": settings.window,
            }
    summary = ran | summarise_windows(answers, [measured[number] for number in range(len(answers))])
    summary["repeated"] = [repeated(answer["tokens"], settings.window) for answer in answers]
    write_json(DOCS / f"{name}.json", summary)
    draw(summary, settings.window, DOCS / f"{name}.png")
    columns = [*(f"{n * settings.window}" for n in range(len(summary["KL"]["windows"]))), "last - first"]
    rows = [
        [name, *(f"{mean:.3f}" for mean, _ in summary[name]["windows"]), _signed(*summary[name]["last minus first"])]
        for name in MEASURES
    ]
    shares = np.mean(summary["repeated"], axis=0)
    click.echo(markdown(["from token", *columns], [*rows, ["repeated", *(f"{share:.2f}" for share in shares), ""]]))


def _signed(mean: float, ends: tuple[float, float]) -> str:
    return f"{mean:+.3f} ({ends[0]:+.3f} to {ends[1]:+.3f})"


if __name__ == "__main__":
    main()
