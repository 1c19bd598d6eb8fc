"""How often an interval of few texts holds the figure of many, on a model's own answers.

A quantised file's greedy steered answers to --problems of --task are the whole population: of each, how far its
next-token probabilities are from the reference's, and what steering does to the logits of both. All is kept in --rows
once it is measured, so that a stopped run goes on. Texts are drawn from them as often as asked, and an interval of each
draw is taken as parity takes it; 0.95 of them ought to hold the figure of all texts. "mean KL, bootstrap" is an
interval that knows nothing but the positions it has met.

    python benchmarks/intervals.py models/abacus export/abacus/dense/vector.gguf:0.325 --rows abacus.jsonl
    python benchmarks/intervals.py SmolLM2-F32.gguf vector.gguf --task gsm8k --problems 90 -n 160 --rows smol.jsonl
"""

import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import click
import numpy as np

from edge_steer.core.backend import EngineOptions, Request, available_cores
from edge_steer.core.progress import Progress
from edge_steer.core.stats import Floats, Interval, bootstrap_groups
from edge_steer.models.load import load
from edge_steer.models.quantize import gguf_for
from edge_steer.parity import baseline, measure
from edge_steer.parity.divergence import Divergence, Positions, over_texts, summarise
from edge_steer.parity.texts import TokenisedText
from edge_steer.storage.digests import digest
from edge_steer.storage.records import Record, Store
from edge_steer.tasks.load import load_task
from edge_steer.terminal.progress import progress_bar
from edge_steer.terminal.tables import print_table
from edge_steer.vectors.steer import steering_of_file

COUNTS = (8, 16, 40)
OF_DIVERGENCE: dict[str, Callable[[Divergence], tuple[float, Interval | None]]] = {
    "mean KL": lambda d: (d.kl["mean"], d.kl_interval),
    "same top-1": lambda d: (d.top1, d.top1_interval),
    "RMS delta p": lambda d: (d.delta_p["rms"], d.delta_p_interval),
    "PPL ratio": lambda d: (d.perplexity_ratio, d.ratio_interval),
}
OF_EFFECT: dict[str, Callable[[Floats], Floats]] = {
    "effect: cosine": lambda s: s[..., 0] / np.sqrt(s[..., 1] * s[..., 2]),
    "effect: length": lambda s: np.sqrt(s[..., 2] / s[..., 1]),
}
Texts = list[Record]  # of one side, as measure_texts keeps them


@click.command(help=__doc__)
@click.argument("model")
@click.argument("vector")
@click.option("--quant", default="Q4_K_M", show_default=True)
@click.option("--task", default="wordproblems", show_default=True)
@click.option("--problems", default=400, show_default=True)
@click.option("-n", "--max-tokens", default=400, show_default=True)
@click.option("--rows", type=click.Path(path_type=Path), required=True, help="Where what is measured is kept (.jsonl).")
@click.option("--draws", default=300, show_default=True)
@click.option("--threads", type=int, default=available_cores, show_default="the cores there are")
@click.option("--json", "as_json", is_flag=True)
def main(
    model: str, vector: str, quant: str, task: str, problems: int, max_tokens: int, rows: Path, draws: int,
    threads: int, as_json: bool,
) -> None:  # fmt: skip
    header = {
        "model": model,
        "vector": vector,
        "quant": quant,
        "task": task,
        "problems": problems,
        "tokens": max_tokens,
    }
    with progress_bar() as progress:
        records = measure_all(header, rows, EngineOptions(threads=threads, parallel=16), progress)
        tables = {
            side: coverage([r for r in records if r["steered"] == (side == "steered")], draws, progress)
            for side in ("unsteered", "steered")
        }
    if as_json:
        click.echo(json.dumps({"texts": COUNTS, **tables}))
        return
    for side, shares in tables.items():
        title = f"{quant} {side}: half of the KL is of {half(records, side)} texts of {len(records) // 2}"
        print_table(
            ["", *(f"{count} texts" for count in COUNTS)],
            ([name, *(f"{share:.2f}" for share in of_name)] for name, of_name in shares.items()),
            title,
        )


def measure_all(header: Record, rows: Path, options: EngineOptions, progress: Progress) -> Texts:
    """Every text, unsteered and steered, with the effect on each."""
    steering = (steering_of_file(header["vector"]),)
    file = gguf_for(header["model"], header["quant"], threads=options.threads, progress=progress)
    problems = load_task(header["task"], limit=header["problems"])
    with Store.open(rows, {**header, "file": digest(file)}) as store, load(file, options=options) as engine:
        if not store.records:
            prompts = [engine.chat(problems.messages(sample)) for sample in problems.samples]
            progress("answering")
            answers = engine.generate([Request(prompt, header["tokens"], steering) for prompt in prompts])
            texts = [[prompt + answer.tokens, len(prompt)] for prompt, answer in zip(prompts, answers, strict=True)]
            store.append({"texts": [text for text in texts if len(text[0]) > text[1]]})
        texts = [TokenisedText(tuple(tokens), prompt) for tokens, prompt in store.records[0]["texts"]]
        if len(store.records) <= 2 * len(texts):
            with (
                load(header["model"], runtime="torch", options=options, progress=progress) as reference,
                mock.patch.object(baseline, "EFFECT_TEXTS", len(texts)),
                mock.patch.object(measure, "EFFECT_TEXTS", len(texts)),
            ):
                live = baseline.LiveReference(reference, texts, texts, steering)
                measure.measure_texts(live, engine, steering, store=store, progress=progress)
        return store.records[1:]


def coverage(texts: Texts, draws: int, progress: Progress) -> dict[str, list[float]]:
    """How often the interval of a draw holds the figure of all texts: figure -> share by number of texts."""
    measured = [Positions.of(text["positions"]) for text in texts]
    whole, rng = summarise(measured), np.random.default_rng(0)
    kl = np.array([(len(text), text.kl.sum()) for text in measured])
    effects = np.array([text["effect"][:3] for text in texts]) if "effect" in texts[0] else None
    shares: dict[str, list[float]] = {}
    for count in COUNTS:
        hits: dict[str, int] = {}
        for seed in progress.counted(f"drawing {count} texts", range(draws)):
            drawn = rng.integers(0, len(texts), count)
            figures = summarise([measured[index] for index in drawn], seed=seed)
            intervals = {name: (of(whole)[0], of(figures)[1]) for name, of in OF_DIVERGENCE.items()}
            mean = kl[:, 1].sum() / kl[:, 0].sum()
            intervals["mean KL, bootstrap"] = mean, bootstrap_groups(kl[drawn], lambda s: s[..., 1] / s[..., 0])
            for name, of_sums in OF_EFFECT.items() if effects is not None else ():
                intervals[name] = float(of_sums(effects.sum(axis=0))), over_texts(effects[drawn], of_sums, seed)
            for name, (truth, interval) in intervals.items():
                hits[name] = hits.get(name, 0) + (interval is not None and interval[0] <= truth <= interval[1])
        for name, number in hits.items():
            shares.setdefault(name, []).append(number / draws)
    return shares


def half(records: Texts, side: str) -> int:
    """How many texts, those of the largest KL first, have half of it."""
    by_text = np.sort([sum(r["positions"]["kl"]) for r in records if r["steered"] == (side == "steered")])[::-1]
    return int(np.searchsorted(by_text.cumsum(), by_text.sum() / 2)) + 1


if __name__ == "__main__":
    main()
