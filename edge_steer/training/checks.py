"""What is refused before a training starts: too little memory, runtimes that disagree, rewards that teach nothing.

Takes a policy, both runtimes, a batch; raises an error that says why. It trains nothing.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
from torch import Tensor

from edge_steer.core.backend import Backend, Tokens
from edge_steer.core.errors import EdgeSteerError, ModelError, OutOfMemory
from edge_steer.core.stats import cosine
from edge_steer.core.steering import Steering
from edge_steer.core.vector import Array, SteeringVector
from edge_steer.storage.files import size_in_words
from edge_steer.training.advantages import rewarded_alike
from edge_steer.training.policy import GradientOptions, Policy
from edge_steer.training.rollouts import Batch, Rollout

if TYPE_CHECKING:
    from edge_steer.reference.model import Reference

PROBE_TOKENS = 32
LOGIT_COPIES = 2  # beside the one that is saved: as the network gave them, and their gradient
PROBE_STRENGTH = 0.1  # of the residual stream
LEAST_AGREEMENT = 0.5  # cosine of two effects; 0.99 and more for one file, 0.9 for a coarse quant


def check_agreement(engine: Backend, reference: "Reference", layers: Sequence[int], prompt: Tokens) -> None:
    """Errors: ModelError where a vector does not do in llama.cpp what it does in PyTorch, or llama.cpp cannot steer.

    A random vector is added in both; how it changes the log-probability of each token of a prompt must agree.
    """
    random = np.random.default_rng(0)
    states = reference.record(prompt, layers)
    directions: dict[int, Array] = {}
    for layer, rows in states.items():
        direction = random.standard_normal(rows.shape[1])
        size = PROBE_STRENGTH * np.linalg.norm(rows[-1]) / np.linalg.norm(direction)
        directions[layer] = np.asarray(size * direction, dtype=np.float32)
    steering = (Steering(SteeringVector(directions, reference.model)),)
    engine.check_steering(steering)
    effects = [model.nll(prompt, 1, steering) - model.nll(prompt, 1) for model in (engine, reference)]
    if (agreement := cosine(*effects)) < LEAST_AGREEMENT:
        raise ModelError(
            f"a vector changes {engine.model.name} otherwise in llama.cpp than {reference.model.name} in PyTorch "
            f"(cosine {agreement:.2f}); these are not the weights of one model, or its blocks give something else"
        )


def check_variance(batch: Batch) -> None:
    """Errors: EdgeSteerError where no problem of a batch has both right and wrong answers."""
    if rewarded_alike(batch.rewards) < 1:
        return
    boxed = sum(rollout.boxed for rollout in batch.rollouts)
    raise EdgeSteerError(
        f"the rewards of the first batch have no variance: {batch.rewards.mean():.0%} of {len(batch.rollouts)} answers "
        f"are right and {boxed} have a box, alike for each problem; take other problems, or more of them or of answers"
    )


def check_memory(policy: Policy, prompts: Sequence[Tokens], max_tokens: int, options: GradientOptions) -> None:
    """Errors: OutOfMemory where answers of `max_tokens` to these prompts need more than is free."""
    positions = max(options.batch_tokens, max(map(len, prompts)) + max_tokens)
    needed = bytes_per_position(policy, prompts[0]) * positions
    free = _free_bytes(policy.device)
    if needed > free:
        raise OutOfMemory(
            f"a gradient over {positions} positions needs about {size_in_words(needed)}, and {size_in_words(free)} are "
            "free; take fewer tokens at once, shorter answers, or checkpointing"
        )


def bytes_per_position(policy: Policy, prompt: Tokens) -> float:
    """What is kept of each position from the forward pass to the backward pass, and its logits meanwhile."""
    tokens = (prompt * PROBE_TOKENS)[:PROBE_TOKENS]
    row = Rollout("", prompt[:1], tokens, (0.0,) * len(tokens), "", finished=True)
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    frozen = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.token_logprobs([row])
    activations = sum(size for pointer, size in saved.items() if pointer not in frozen)
    return activations / row.length + LOGIT_COPIES * 4 * policy.vocab_size


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)
