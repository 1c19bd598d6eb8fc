"""How often an interval of few texts holds the figure of many, on the bundled model's own answers.

Its greedy steered answers to --texts word problems are the whole population: of each, how far a file's next-token
probabilities are from the reference's, and what steering does to the logits of both. Texts are drawn from them as often
as asked, and an interval of each draw is taken as parity takes it; 0.95 of them ought to hold the figure of all texts.
"""

import json
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from edge_steer.core.backend import EngineOptions, Request, available_cores
from edge_steer.core.stats import Floats, bootstrap_groups
from edge_steer.core.steering import Steering
from edge_steer.llama.engine import Engine
from edge_steer.models import quantize
from edge_steer.parity.baseline import LiveReference, first_block, steering_effect
from edge_steer.parity.compare import positions
from edge_steer.parity.texts import TokenisedText
from edge_steer.recipes.recipe import VectorRecipe
from edge_steer.reference.model import Reference
from edge_steer.tasks.load import load_task
from edge_steer.vectors import read

ROOT = Path(__file__).parents[1]
ABACUS = ROOT / "models" / "abacus"
DENSE = ROOT / "export" / "abacus" / "dense" / "vector.gguf"
COUNTS = (8, 16, 40, 200)
STATISTICS: dict[str, tuple[str, Callable[[Floats], Floats]]] = {
    "mean KL": ("divergence", lambda s: s[..., 1] / s[..., 0]),
    "same top-1": ("divergence", lambda s: s[..., 2] / s[..., 0]),
    "RMS delta p": ("divergence", lambda s: np.sqrt(s[..., 3] / s[..., 0])),
    "PPL ratio": ("divergence", lambda s: np.exp(s[..., 4] / s[..., 0])),
    "effect: cosine": ("effect", lambda s: s[..., 0] / np.sqrt(s[..., 1] * s[..., 2])),
    "effect: length": ("effect", lambda s: np.sqrt(s[..., 2] / s[..., 1])),
}


@click.command(help=__doc__)
@click.option("--quant", default="Q4_K_M", show_default=True)
@click.option("--texts", "many", default=400, show_default=True)
@click.option("--draws", default=300, show_default=True)
@click.option("--threads", type=int, default=available_cores, show_default="the cores there are")
@click.option("--json", "as_json", is_flag=True)
def main(quant: str, many: int, draws: int, threads: int, as_json: bool) -> None:
    recipe = VectorRecipe.load(DENSE.parent)
    steering = [Steering(read.load(DENSE), recipe.strength, (recipe.layer,))]
    reference = Reference.load(ABACUS, threads=threads)
    task = load_task("wordproblems", limit=many)
    with Engine.load(quantize.gguf_for(ABACUS, "F32"), EngineOptions(threads=threads)) as exact:
        prompts = [exact.chat(task.messages(sample)) for sample in task.samples]
        told = exact.generate([Request(p, task.settings.max_tokens, steering=tuple(steering)) for p in prompts])
    texts = [TokenisedText(p + done.tokens, len(p)) for p, done in zip(prompts, told, strict=True) if done.tokens]
    live = LiveReference(reference, texts, texts, steering)
    with Engine.load(
        quantize.gguf_for(ABACUS, quant), EngineOptions(kv_type="f32", flash_attention="off", threads=threads)
    ) as engine:
        found = positions(live, engine, steering, steered=True)
        effects = [
            (live.effect(index).logits, steering_effect(engine, text, steering, first_block(live.steering)).logits)
            for index, text in enumerate(texts)
        ]
    sums = {
        "divergence": [
            (len(t), t.kl.sum(), t.same.sum(), (t.delta_p**2).sum(), (t.nll - t.reference_nll).sum()) for t in found
        ],
        "effect": [((a * b).sum(), (a * a).sum(), (b * b).sum()) for a, b in effects],
    }
    rng = np.random.default_rng(0)
    rows: dict[str, list[float]] = {}
    for name, (kind, statistic) in STATISTICS.items():
        every = np.array(sums[kind], dtype=np.float64)
        truth, rows[name] = statistic(every.sum(axis=0)), []
        for count in COUNTS:
            held = 0
            for seed in range(draws):
                low, high = bootstrap_groups(every[rng.integers(0, len(every), count)], statistic, seed=seed)
                held += low <= truth <= high
            rows[name].append(held / draws)
    by_text = np.sort([text.kl.sum() for text in found])[::-1]
    half = int(np.searchsorted(by_text.cumsum(), by_text.sum() / 2)) + 1
    if as_json:
        click.echo(json.dumps({"texts": COUNTS, "held": rows, "half of the KL is of": half, "of": len(found)}))
        return
    table = Table("", *(f"{count} texts" for count in COUNTS), title=f"{quant}: half of the KL is of {half} texts")
    for name, shares in rows.items():
        table.add_row(name, *(f"{share:.2f}" for share in shares))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
