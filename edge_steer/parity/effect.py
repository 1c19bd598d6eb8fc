"""Does steering move both sides alike? Cosine and relative length of what steering adds to the logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_steer.core.backend import Backend
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.stats import Floats, Interval
from edge_steer.core.steering import Steering, first_layer
from edge_steer.core.vector import Array
from edge_steer.parity.baseline import EFFECT_TEXTS, Baseline, shift
from edge_steer.parity.divergence import over_texts


@dataclass(frozen=True)
class Effect:
    """What steering does, (steered - unsteered), in the other backend against the reference.

    cosine and norm, its relative length, with intervals over texts: of the logits and of the residual stream after
    the last block, at some positions of some texts. placed_*: of the residual stream after the first steered block,
    which is what was added there, and so is the same in a quantised model.
    """

    texts: int
    positions: int
    cosine: float
    cosine_interval: Interval | None
    norm: float
    norm_interval: Interval | None
    placed_cosine: float
    placed_norm: float
    residual_cosine: float
    residual_cosine_interval: Interval | None
    residual_norm: float
    residual_norm_interval: Interval | None


def effect_of(baseline: Baseline, other: Backend, steering: Sequence[Steering], progress: Progress = SILENT) -> Effect:
    """The effect of steering on the first EFFECT_TEXTS steered texts. Errors: EdgeSteerError if it has none."""
    count, first = min(EFFECT_TEXTS, len(baseline.steered)), first_layer(baseline.steering)
    sums, rows = [], 0
    for index in range(count):
        progress("comparing the effect of steering", index, count)
        ours, theirs = baseline.shift(index), shift(other, baseline.steered[index], steering, first)
        sums.append(
            [
                *_products(ours.logits, theirs.logits),
                *_products(ours.states, theirs.states),
                *_products(ours.placed, theirs.placed),
            ]
        )
        rows += len(ours.logits)
    added = np.array(sums)
    if not added.size or not (added.sum(axis=0)[[1, 4, 7]] > 0).all():
        raise EdgeSteerError("the steering does nothing in the reference; give a strength other than 0")
    logits, states, placed = added[:, :3], added[:, 3:6], added[:, 6:].sum(axis=0)
    return Effect(
        texts=count,
        positions=rows,
        cosine=float(_cosine(logits.sum(axis=0))),
        cosine_interval=over_texts(logits, _cosine),
        norm=float(_norm(logits.sum(axis=0))),
        norm_interval=over_texts(logits, _norm),
        placed_cosine=float(_cosine(placed)),
        placed_norm=float(_norm(placed)),
        residual_cosine=float(_cosine(states.sum(axis=0))),
        residual_cosine_interval=over_texts(states, _cosine),
        residual_norm=float(_norm(states.sum(axis=0))),
        residual_norm_interval=over_texts(states, _norm),
    )


def _products(ours: Array, theirs: Array) -> list[float]:
    """ours . theirs, ours . ours, theirs . theirs."""
    a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    return [float(a @ b), float(a @ a), float(b @ b)]


def _cosine(products: Floats) -> Floats:
    found: Floats = products[..., 0] / np.sqrt(np.maximum(products[..., 1] * products[..., 2], np.finfo(float).tiny))
    return found


def _norm(products: Floats) -> Floats:
    found: Floats = np.sqrt(products[..., 2] / products[..., 1])
    return found
