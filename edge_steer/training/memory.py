"""What a gradient needs of memory, measured on a few tokens, against what there is.

Takes a policy and the prompts of a batch. It trains nothing.
"""

from collections.abc import Sequence

import psutil
import torch
from torch import Tensor

from edge_steer.core.backend import Tokens
from edge_steer.core.errors import OutOfMemory
from edge_steer.storage.files import size_in_words
from edge_steer.training.policy import GradientOptions, Policy
from edge_steer.training.rollouts import Rollout

PROBE_TOKENS = 32
LOGIT_COPIES = 2  # beside the one that is saved: as the network gave them, and their gradient


def check_memory(policy: Policy, prompts: Sequence[Tokens], max_tokens: int, options: GradientOptions) -> None:
    """Errors: OutOfMemory where answers of `max_tokens` to these prompts need more than is free."""
    longest = max(map(len, prompts)) + max_tokens
    needed = bytes_per_position(policy, prompts[0]) * max(options.batch_tokens, longest)
    free = _free_bytes(policy.device)
    if needed > free:
        raise OutOfMemory(
            f"a gradient over {max(options.batch_tokens, longest)} positions needs about {size_in_words(needed)}, and "
            f"{size_in_words(free)} are free; take fewer tokens at once, shorter answers, or checkpointing"
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
