"""Rewards to advantages, and what a batch's loss is divided by (RLOO, Ahmadian et al., 2024; Bias-Only, appendix C).

Arrays in, arrays out.
"""

from collections.abc import Sequence

import numpy as np

from edge_steer.core.stats import Floats
from edge_steer.training.settings import Baseline, Loss


def advantages(rewards: Floats, baseline: Baseline = "leave-one-out") -> Floats:
    """Reward less baseline: float64 (prompts, generations), of rewards of that shape.

    "mean": the baseline is the mean reward of the problem's answers. "leave-one-out": the mean of the others, which is
    N/(N-1) times as far away. A problem whose answers are rewarded alike gives zeros.
    """
    from_mean: Floats = rewards - rewards.mean(axis=1, keepdims=True)
    if baseline == "mean":
        return from_mean
    count = rewards.shape[1]
    scaled: Floats = from_mean * count / (count - 1)
    return scaled


def normaliser(lengths: Sequence[int], loss: Loss) -> int:
    """What the sum over a batch's tokens is divided by: all its tokens, or its answers. lengths: tokens of each."""
    return sum(lengths) if loss == "token" else len(lengths)


def rewarded_alike(rewards: Floats) -> float:
    """The share of problems whose answers are all rewarded alike, and so teach nothing."""
    return float((rewards == rewards[:, :1]).all(axis=1).mean())


def shuffled(rewards: Floats, seed: int) -> Floats:
    """The same rewards, dealt out anew over the whole batch."""
    return np.random.default_rng(seed).permutation(rewards.ravel()).reshape(rewards.shape)
