"""How the states of pairs become one direction, and which tokens of an answer make its state.

Takes arrays, gives arrays; METHODS and POOLINGS hold plain functions of one signature each. It knows nothing of models.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edge_steer.core.errors import VectorError

Floats = npt.NDArray[np.float64]
States = npt.NDArray[np.floating]
Method = Callable[[States, States], Floats]  # states of positive and negative answers (pairs, hidden) -> (hidden,)
LOSS_WEIGHT = 1.0  # of each state's loss against half the squared norm of the weights
NEWTON_STEPS = 100
GRADIENT = 1e-10  # of the weights' norm: where Newton's method ends


def mean_difference(positive: States, negative: States) -> Floats:
    """v = 1/N sum(h(x+) - h(x-)), summed in float64 (DenseSteer, the steering vector of a layer)."""
    mean: Floats = np.subtract(positive, negative, dtype=np.float64).mean(axis=0)
    return mean


def pca(positive: States, negative: States) -> Floats:
    """The first principal axis of the differences, taken about zero.

    That is the axis of steering-vectors' pca_aggregator and of repeng's "pca_center".
    """
    return _principal(np.subtract(positive, negative, dtype=np.float64), positive, negative)


def pca_centred(positive: States, negative: States) -> Floats:
    """The first principal axis of the differences about their mean: along which pairs differ most from each other.

    That is the axis of repeng's "pca_diff", whose PCA subtracts the mean. It can be far from the mean difference.
    """
    differences = np.subtract(positive, negative, dtype=np.float64)
    return _principal(differences - differences.mean(axis=0), positive, negative)


def logistic(positive: States, negative: States) -> Floats:
    """The weights w of an L2-regularised logistic regression that tells positive from negative states.

    States are taken about their common mean and scaled to a mean squared norm of 1; w minimises
    |w|^2 / 2 + LOSS_WEIGHT * sum log(1 + exp(-y w.x)), by Newton's method, to rounding. There is no intercept.
    """
    states = np.concatenate((positive, negative), dtype=np.float64)
    states -= states.mean(axis=0)
    states /= np.sqrt((states**2).sum(axis=1).mean()) or 1.0
    signed = states * np.repeat((1.0, -1.0), len(positive))[:, None]
    rows = coordinates(signed)
    weights = np.zeros(rows.shape[1])
    for _ in range(NEWTON_STEPS):
        missed = np.exp(-np.logaddexp(0, rows @ weights))  # the probability given to the wrong side
        gradient = weights - LOSS_WEIGHT * rows.T @ missed
        if np.linalg.norm(gradient) <= GRADIENT * np.linalg.norm(weights):
            break
        curvature = np.eye(len(weights)) + LOSS_WEIGHT * (rows.T * (missed * (1 - missed))) @ rows
        step = np.linalg.solve(curvature, gradient)
        while _loss(rows, weights - step) > _loss(rows, weights) + 1e-12:
            step /= 2
        weights = weights - step
    return _along(signed.T @ missed, positive, negative)  # the gradient is zero, so this is w up to LOSS_WEIGHT


def class_means(positive: States, negative: States) -> Floats:
    """The mean of the positive states minus that of the negative ones, of which there may be more or fewer (SEAL)."""
    difference: Floats = positive.mean(axis=0, dtype=np.float64) - negative.mean(axis=0, dtype=np.float64)
    return difference


METHODS: dict[str, Method] = {
    "mean_difference": mean_difference,
    "pca": pca,
    "pca_centred": pca_centred,
    "logistic": logistic,
    "class_means": class_means,
}


def coordinates(states: Floats) -> Floats:
    """The rows in an orthonormal basis of the space they span: the same inner products in fewer numbers.

    Every method gives the same direction there, since each follows any rotation of the states.
    """
    triangle: Floats = np.linalg.qr(states.T, mode="r")  # type: ignore[assignment]
    return triangle.T


def method_named(name: str) -> Method:
    """Errors: VectorError for an unknown method."""
    if name not in METHODS:
        raise VectorError(f"no method {name!r}; methods are {', '.join(METHODS)}")
    return METHODS[name]


def _principal(rows: Floats, positive: States, negative: States) -> Floats:
    axis: Floats = np.linalg.svd(rows, full_matrices=False)[2][0]
    return _along(axis, positive, negative)


def _along(axis: Floats, positive: States, negative: States) -> Floats:
    """The part of the mean difference along the axis: so pairs fix its sign, and strength 1 covers their gap."""
    norm = np.linalg.norm(axis)
    unit = axis / norm if norm else axis
    part: Floats = unit * (unit @ mean_difference(positive, negative))
    return part


def _loss(rows: Floats, weights: Floats) -> float:
    return float(weights @ weights / 2 + LOSS_WEIGHT * np.logaddexp(0, -rows @ weights).sum())
