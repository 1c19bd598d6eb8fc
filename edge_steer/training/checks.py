"""What is refused before a training starts: too little memory, runtimes that disagree, rewards that teach nothing.

Takes a policy, both runtimes, a batch; raises an error that says why. It trains nothing.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import psutil
import torch
from torch import Tensor

from edge_steer.core.backend import Tokens
from edge_steer.core.errors import EdgeSteerError, ModelError, OutOfMemory
from edge_steer.core.stats import Floats, cosine
from edge_steer.storage.files import size_in_words
from edge_steer.training.advantages import rewarded_alike
from edge_steer.training.policy import GradientOptions, Policy
from edge_steer.training.rollouts import Batch, Rollout
from edge_steer.training.trainables import Trainable
from edge_steer.training.trainee import Trainee

PROBE_TOKENS = 32
UPDATE_BYTES = 12  # of a trained number: its gradient and Adam's two moments
LOGIT_COPIES = 2  # beside the one that is saved: as the network gave them, and their gradient
LEAST_PROBE, PROBE_SIZES = 1e-3, 20  # standard deviation of the smallest random change, and how often it is doubled
PROBE_EFFECT = 0.5  # nats a token
LEAST_AGREEMENT = 0.5  # cosine of two effects; 0.99 and more for one file, 0.9 for a coarse quant


def check_agreement(trainee: Trainee, trained: Trainable, policy: Policy, prompt: Tokens) -> None:
    """Errors: ModelError where a change does not do in llama.cpp what it does in PyTorch, or llama.cpp cannot make it;
    EdgeSteerError for a prompt of one token.

    What is trained is changed at random for the moment; how that changes the log-probability of each token of a prompt
    must agree.
    """
    if len(prompt) < 2:
        raise EdgeSteerError("no prompt has more than one token; a training needs prompts that ask something")
    row = Rollout("", prompt[:1], prompt[1:], (0.0,) * (len(prompt) - 1), "", finished=True)

    def both() -> tuple[Floats, Floats]:
        engine, steering = trainee.answering(trained.change())
        engine.check_steering(steering)
        return -engine.nll(prompt, 1, steering), policy.logprobs([row])[0]

    before = both()
    with disturbed(trained, lambda: float(np.abs(policy.logprobs([row])[0] - before[1]).mean()) > PROBE_EFFECT):
        after = both()
    effects = [late - early for late, early in zip(after, before, strict=True)]
    if (agreement := cosine(*effects)) < LEAST_AGREEMENT:
        name, reference = trainee.engine.model.name, trainee.reference.model.name
        raise ModelError(
            f"what is trained changes {name} otherwise in llama.cpp than {reference} in PyTorch "
            f"(cosine {agreement:.2f}); these are not the weights of one model, or its blocks give something else"
        )


@contextlib.contextmanager
def disturbed(trained: Trainable, enough: Callable[[], bool]) -> Iterator[None]:
    """Inside, random numbers are added to the parameters, larger ones until it is `enough`."""
    values = [parameter.detach().clone() for parameter in trained.parameters]
    try:
        for power in range(PROBE_SIZES):
            generator = torch.Generator().manual_seed(0)
            for parameter, value in zip(trained.parameters, values, strict=True):
                noise = torch.randn(value.shape, generator=generator).to(value.device)
                parameter.data.copy_(value + LEAST_PROBE * 2**power * noise)
            if enough():
                break
        yield
    finally:
        for parameter, value in zip(trained.parameters, values, strict=True):
            parameter.data.copy_(value)


def check_variance(batch: Batch) -> None:
    """Errors: EdgeSteerError where no problem of a batch has both right and wrong answers."""
    if rewarded_alike(batch.rewards) < 1:
        return
    boxed = sum(rollout.boxed for rollout in batch.rollouts)
    raise EdgeSteerError(
        f"the rewards of the first batch have no variance: {batch.rewards.mean():.0%} of {len(batch.rollouts)} answers "
        f"are right and {boxed} have a box, alike for each problem; take other problems, or more of them or of answers"
    )


def check_memory(
    policy: Policy, trained: Trainable, prompts: Sequence[Tokens], max_tokens: int, options: GradientOptions
) -> None:
    """Errors: OutOfMemory where answers of `max_tokens` to these prompts need more than is free."""
    positions = max(options.batch_tokens, max(map(len, prompts)) + max_tokens)
    needed = bytes_per_position(policy, prompts[0]) * positions
    needed += UPDATE_BYTES * sum(parameter.numel() for parameter in trained.parameters)
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
