"""Numbers from arrays: divergences between two models' logits, intervals. Pure functions, nothing else known."""

import math

import numpy as np
import numpy.typing as npt

from edge_steer.errors import EdgeSteerError

Floats = npt.NDArray[np.float64]


def log_softmax(logits: npt.NDArray[np.floating]) -> Floats:
    """Log-probabilities over the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def kl_divergence(reference: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> Floats:
    """KL(softmax(reference) || softmax(other)) in nats for each row of logits (rows, vocabulary) -> (rows,)."""
    p, q = log_softmax(reference), log_softmax(other)
    divergence: Floats = (np.exp(p) * (p - q)).sum(axis=-1)
    return np.maximum(divergence, 0.0)


def cosine(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    """Cosine of the angle between two arrays taken as one long vector each. Errors: EdgeSteerError if one is zero."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    norm = np.linalg.norm(x) * np.linalg.norm(y)
    if norm == 0:
        raise EdgeSteerError("the cosine with a zero vector is undefined")
    return float(x @ y / norm)


def quantiles(values: Floats) -> dict[str, float]:
    """mean, median, p90, p99 and max. Errors: EdgeSteerError for no values."""
    if not values.size:
        raise EdgeSteerError("no values to summarise")
    p50, p90, p99 = np.quantile(values, (0.5, 0.9, 0.99))
    return {
        "mean": float(values.mean()),
        "median": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max": float(values.max()),
    }


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion (E. B. Wilson, 1927), 95% by default.

    Errors: EdgeSteerError for no trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise EdgeSteerError(f"{successes} of {trials} trials is no proportion")
    share, z2 = successes / trials, z * z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)
