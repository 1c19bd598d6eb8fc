"""How the layers of a vector lie to each other: norms, cosines, singular values, stable rank.

Takes a SteeringVector, gives numbers. It knows no model and no token.
"""

from dataclasses import dataclass

import numpy as np

from edge_steer.core.vector import SteeringVector


@dataclass(frozen=True)
class Geometry:
    """Of the matrix S whose rows are the directions of `layers`.

    norms: of each. cosines: between each two; None where one is zero. singular_values: of S, largest first.
    """

    layers: tuple[int, ...]
    norms: tuple[float, ...]
    cosines: tuple[tuple[float | None, ...], ...]
    singular_values: tuple[float, ...]
    stable_rank: float


def geometry(vector: SteeringVector) -> Geometry:
    """The geometry of a vector's layers. stable_rank: |S|_F^2 / |S|_2^2, 1 if all are parallel, 0 if all are zero."""
    matrix = np.stack([vector.directions[layer] for layer in vector.layers]).astype(np.float64)
    norms = np.linalg.norm(matrix, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        units = matrix / norms[:, None]
    cosines = units @ units.T
    values = np.linalg.svd(matrix, compute_uv=False)
    return Geometry(
        vector.layers,
        tuple(norms.tolist()),
        tuple(tuple(None if np.isnan(cosine) else float(cosine) for cosine in row) for row in cosines),
        tuple(values.tolist()),
        float((values**2).sum() / values[0] ** 2) if values[0] else 0.0,
    )
