"""The gradient of a vector in bfloat16 beside float32: seconds, direction, log-probabilities.

The answers are the ends of a text file, cut into pieces of the lengths that answers have; advantages are drawn. Seconds
are those of the processor, on one thread, so that what else the machine does has little part in them.

    python benchmarks/training_dtype.py MODEL TEXT
"""

import time
from pathlib import Path

import click
import numpy as np
import torch

import edge_steer as es
from edge_steer.core.backend import EngineOptions, Tokens
from edge_steer.terminal.tables import print_table
from edge_steer.training.policy import DTYPES, GradientOptions, Policy
from edge_steer.training.rollouts import Rollout
from edge_steer.training.settings import Adapter, RlooSettings
from edge_steer.training.trainables import TrainedVector
from edge_steer.training.trainee import prepare

PROMPT = 140  # tokens


@click.command(help=__doc__)
@click.argument("model")
@click.argument("text", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--answers", default=8, show_default=True)
@click.option("--longest", default=220, show_default=True, help="Tokens of the longest answer; the shortest has half.")
@click.option("--batch-tokens", default=1024, show_default=True)
def main(model: str, text: Path, answers: int, longest: int, batch_tokens: int) -> None:
    table = []
    with es.load(model, runtime="torch", options=EngineOptions(threads=1)) as reference:
        rows = pieces(reference.encode(text.read_text("utf-8")[: 10 * answers * (PROMPT + longest)]), answers, longest)
        advantages = np.random.default_rng(0).standard_normal(answers)
        exact: tuple[torch.Tensor, np.ndarray] | None = None
        for dtype in DTYPES:
            options = GradientOptions(batch_tokens, dtype=dtype)
            prepare(reference, Adapter(), options)
            trained = TrainedVector(reference)
            policy = Policy(reference, trained, options)
            began = time.process_time()
            policy.gradient(rows, advantages, RlooSettings(importance_cap=0.0))
            seconds = time.process_time() - began
            assert trained.values.grad is not None
            gradient, logprobs = trained.values.grad, np.concatenate(policy.logprobs(rows))
            exact = exact or (gradient, logprobs)
            cosines = torch.cosine_similarity(gradient, exact[0], dim=1)
            whole = torch.cosine_similarity(gradient.flatten(), exact[0].flatten(), dim=0)
            apart = np.abs(logprobs - exact[1])
            norm = float(gradient.norm() / exact[0].norm())
            directions = [f"{float(value):.4f}" for value in (whole, cosines.min())]
            table.append([dtype, f"{seconds:.1f}", *directions, f"{norm:.3f}", f"{apart.mean():.3f}"])
    print_table(
        ["", "seconds", "cosine", "at the worst layer", "norm", "nats a token"], table,
        f"gradient of {answers} answers, {sum(row.length for row in rows)} positions; against float32",
    )  # fmt: skip


def pieces(tokens: Tokens, answers: int, longest: int) -> list[Rollout]:
    """A prompt and an answer behind it, one after the other."""
    rows, width = [], PROMPT + longest
    for index in range(answers):
        piece = tokens[index * width : index * width + PROMPT + longest // 2 + index * longest // (2 * answers)]
        answer = piece[PROMPT:]
        rows.append(Rollout("", piece[:PROMPT], answer, (0.0,) * len(answer), "", finished=True))
    return rows


if __name__ == "__main__":
    main()
