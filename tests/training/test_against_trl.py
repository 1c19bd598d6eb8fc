"""One step of TRL's trainers, and the gradient of the same answers here.

TRL draws answers with Hugging Face's generate and makes a step of plain gradient descent on biases of down_proj, which
on this architecture are the vector; what the biases then are is the gradient. RLOOTrainer has the sequence form with
the leave-one-out baseline, GRPOTrainer as the paper's authors set it the token form with the mean.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers

from edge_steer.reference.model import Reference
from edge_steer.training.advantages import advantages
from edge_steer.training.policy import Policy
from edge_steer.training.rollouts import Rollout
from edge_steer.training.settings import Baseline, Loss, RlooSettings
from edge_steer.training.trainables import TrainedVector

PROMPTS, GENERATIONS, RATE = ("Ava has 3 cups.", "Tom loses 12 pears."), 4, 100.0


pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def biased(folder: Path) -> tuple[Any, list[torch.nn.Parameter]]:
    """The network with a zero bias on each down_proj, and these alone to be trained."""
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    biases = []
    for block in network.model.layers:
        bias = torch.nn.Parameter(torch.zeros(network.config.hidden_size))
        block.mlp.down_proj.bias = bias
        biases.append(bias)
    return network, biases


@pytest.mark.parametrize(
    ("algorithm", "loss", "baseline", "settings"),
    [
        ("RLOO", "sequence", "leave-one-out", {}),
        ("GRPO", "token", "mean", {"scale_rewards": "none", "loss_type": "dapo"}),
    ],
)
def test_one_step_is_trls(
    algorithm: str, loss: Loss, baseline: Baseline, settings: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    import trl

    network, biases = biased(tiny_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    drawn: list[tuple[str, list[int]]] = []

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        drawn.extend(zip(prompts, completion_ids, strict=True))
        return [float(sum(tokens) % 3 == 0) for tokens in completion_ids]

    config = getattr(trl, f"{algorithm}Config")(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False, per_device_train_batch_size=len(PROMPTS) * GENERATIONS,
        num_generations=GENERATIONS, max_completion_length=24, temperature=1.0, beta=0.0, max_steps=1, seed=3,
        max_grad_norm=0.0, lr_scheduler_type="constant", **settings,
    )  # fmt: skip
    trainer = getattr(trl, f"{algorithm}Trainer")(
        network, reward, config, datasets.Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        processing_class=tokenizer, optimizers=(torch.optim.SGD(biases, lr=RATE), None),
    )  # fmt: skip
    trainer.train()
    theirs = -torch.stack([bias.detach() for bias in biases]) / RATE

    rollouts = [
        Rollout("", tuple(tokenizer(prompt).input_ids), tuple(tokens), (0.0,) * len(tokens), "", finished=True)
        for prompt, tokens in drawn
    ]
    rewards = np.array([float(sum(row.tokens) % 3 == 0) for row in rollouts]).reshape(-1, GENERATIONS)
    assert len(rollouts) == len(PROMPTS) * GENERATIONS
    assert 0 < rewards.mean() < 1
    reference = Reference.load(tiny_folder)
    adapter = TrainedVector(reference)
    ours = RlooSettings(importance_cap=0.0, loss=loss, baseline=baseline)
    Policy(reference, adapter).gradient(rollouts, advantages(rewards, baseline).ravel(), ours)
    assert adapter.values.grad is not None
    assert float((adapter.values.grad - theirs).norm() / theirs.norm()) < 1e-5
