"""Does steering move both sides alike? Cosine and relative length of what steering changes.

Takes what steering changes on both sides, text by text, gives an Effect. It holds nothing against a tolerance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.stats import Floats, Interval
from edge_steer.core.vector import Array
from edge_steer.parity.baseline import SteeringEffect
from edge_steer.parity.divergence import over_texts
from edge_steer.parity.texts import TokenisedText


@dataclass(frozen=True)
class Effect:
    """What steering changes (steered minus unsteered), in the other backend against the reference.

    cosine; norm, the relative length; both with intervals over texts: of the logits, and of the residual stream after
    the last block (residual_*), at some positions of some texts. placed_*: of the residual stream after the first
    steered block. That is what was added there, so it is the same in a quantised model.
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


def effect_products(ours: SteeringEffect, theirs: SteeringEffect) -> list[float]:
    """What one text adds to an Effect: ours . theirs, ours . ours, theirs . theirs of each of the three parts."""
    return [
        *_products(ours.logits, theirs.logits),
        *_products(ours.states, theirs.states),
        *_products(ours.at_first_block, theirs.at_first_block),
    ]


def summarise_effect(products: Sequence[Sequence[float]], texts: Sequence[TokenisedText]) -> Effect:
    """The effect on texts from the `effect_products` of each. Errors: EdgeSteerError where steering does nothing."""
    by_text = np.array(products)
    if not by_text.size or not (by_text.sum(axis=0)[[1, 4, 7]] > 0).all():
        raise EdgeSteerError("the steering does nothing in the reference; give a strength other than 0")
    logits, states, at_first_block = by_text[:, :3], by_text[:, 3:6], by_text[:, 6:].sum(axis=0)
    return Effect(
        texts=len(texts),
        positions=sum(len(text.effect_rows) for text in texts),
        cosine=float(_cosine(logits.sum(axis=0))),
        cosine_interval=over_texts(logits, _cosine),
        norm=float(_norm(logits.sum(axis=0))),
        norm_interval=over_texts(logits, _norm),
        placed_cosine=float(_cosine(at_first_block)),
        placed_norm=float(_norm(at_first_block)),
        residual_cosine=float(_cosine(states.sum(axis=0))),
        residual_cosine_interval=over_texts(states, _cosine),
        residual_norm=float(_norm(states.sum(axis=0))),
        residual_norm_interval=over_texts(states, _norm),
    )


def _products(ours: Array, theirs: Array) -> list[float]:
    a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    return [float(a @ b), float(a @ a), float(b @ b)]


def _cosine(products: Floats) -> Floats:
    cosine: Floats = products[..., 0] / np.sqrt(np.maximum(products[..., 1] * products[..., 2], np.finfo(float).tiny))
    return cosine


def _norm(products: Floats) -> Floats:
    norm: Floats = np.sqrt(products[..., 2] / products[..., 1])
    return norm
