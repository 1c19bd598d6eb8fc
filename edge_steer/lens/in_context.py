"""What a steering changes at each layer and position of a prompt: the lens of the steered less the unsteered stream.

Takes a running model, its Unembedding, a prompt and a steering. The residual stream after a layer is read as if it were
the last: final norm, then unembedding. At the last layer that is the model's own logits. Random directions of the same
lengths at the same layers are read beside it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from edge_steer.core.backend import Backend
from edge_steer.core.errors import RequestError, VectorError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.stats import Floats, log_softmax
from edge_steer.core.steering import Offsets, Steering, described
from edge_steer.core.vector import Array, SteeringVector
from edge_steer.lens.reading import FORMAT, NULL, TokenScore, token_scores
from edge_steer.lens.scores import NullChoice, ranked
from edge_steer.lens.unembedding import Unembedding

TOP = 5  # tokens of each layer and position
VALUES_AT_ONCE = 2**25  # logits in memory


@dataclass(frozen=True)
class Cell:
    """One layer and position. kl: of the steered from the unsteered next token, in nats; null_kl: by random directions.

    unsteered, steered: the likeliest token's text. raised, lowered: the largest and smallest differences of logits;
    null_raised: the largest difference that random directions make.
    """

    kl: float
    null_kl: float
    null_raised: float
    unsteered: str
    steered: str
    raised: tuple[TokenScore, ...]
    lowered: tuple[TokenScore, ...]


@dataclass(frozen=True)
class ContextReading:
    """cells: by layer, then by position. tokens: texts of the prompt. steering: as `core.steering.described`."""

    model: str
    unembedding: str
    steering: tuple[dict[str, object], ...]
    null: NullChoice
    tokens: tuple[str, ...]
    layers: tuple[int, ...]
    cells: tuple[tuple[Cell, ...], ...]

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "score": "in-context", **asdict(self)}


def read_in_context(
    backend: Backend,
    unembedding: Unembedding,
    prompt: Sequence[int],
    steering: Sequence[Steering],
    *,
    layers: Sequence[int] | None = None,
    top: int = TOP,
    null: NullChoice = NULL,
    progress: Progress = SILENT,
) -> ContextReading:
    """The lens at each layer and position of a prompt, steered against unsteered.

    layers: to read; None is each from the first that is steered. top: how many tokens at either end.
    Errors: RequestError for an unembedding of another model; VectorError for a steering that does not fit or is zero;
    ModelError for a model that scales its logits.
    """
    if unembedding.model.hidden_size != backend.model.hidden_size:
        raise RequestError(f"the unembedding is of {unembedding.model}, not of {backend.model}")
    backend.check_steering(steering)
    offsets = Offsets.of(steering, backend.model)
    if offsets is None:
        raise VectorError("the steering is zero; there is nothing to read")
    wanted = tuple(range(min(offsets.by_layer), backend.model.block_count) if layers is None else sorted(set(layers)))
    matrix = unembedding.tensor.whole()
    runs: list[Sequence[Steering]] = [(), steering, *_random_steerings(offsets, backend, null)]
    states = [
        backend.record(prompt, wanted, prompt=len(prompt), steering=run) for run in progress.counted("reading", runs)
    ]
    lens = _Lens(unembedding, matrix, top, null.quantile)
    cells = [lens.cells([of_run[layer] for of_run in states]) for layer in progress.counted("reading layers", wanted)]
    return ContextReading(
        str(backend.model),
        f"{unembedding.name}, {unembedding.tensor.kind}",
        tuple(described(steering)),
        null,
        tuple(unembedding.vocabulary.texts[token] for token in prompt),
        wanted,
        tuple(map(tuple, cells)),
    )


def _random_steerings(offsets: Offsets, backend: Backend, null: NullChoice) -> Iterator[Sequence[Steering]]:
    """Random directions of the lengths that the offsets have, at the same layers and in the same phase."""
    layers = sorted(offsets.by_layer)
    choices = [replace(null, seed=null.seed + place) for place in range(len(layers))]
    draws = [choice.draw(backend.model.hidden_size) for choice in choices]
    for index in range(null.directions):
        directions = {
            layer: draw[index] * np.linalg.norm(offsets.by_layer[layer])
            for layer, draw in zip(layers, draws, strict=True)
        }
        yield (Steering(SteeringVector(directions, backend.model, method="random"), phase=offsets.phase),)


@dataclass(frozen=True)
class _Lens:
    unembedding: Unembedding
    matrix: Array
    top: int
    quantile: float

    def cells(self, runs: Sequence[Array]) -> list[Cell]:
        """The cells of one layer. runs: its residual streams (positions, hidden), unsteered, steered, then random."""
        step = max(1, VALUES_AT_ONCE // len(self.matrix))
        positions = len(runs[0])
        return [
            cell
            for first in range(0, positions, step)
            for cell in self._cells([run[first : first + step] for run in runs])
        ]

    def _cells(self, runs: Sequence[Array]) -> list[Cell]:
        before = self.unembedding.logits(runs[0], self.matrix)
        unsteered = log_softmax(before)
        after = self.unembedding.logits(runs[1], self.matrix)
        kl = _divergence(unsteered, after)
        random_kl, random_raised = [], []
        for run in runs[2:]:
            logits = self.unembedding.logits(run, self.matrix)
            random_kl.append(_divergence(unsteered, logits))
            random_raised.append((logits - before).max(axis=1))
        null_kl, null_raised = (np.quantile(values, self.quantile, axis=0) for values in (random_kl, random_raised))
        return [
            self._cell(before[i], after[i], float(kl[i]), float(null_kl[i]), float(null_raised[i]))
            for i in range(len(before))
        ]

    def _cell(self, before: Array, after: Array, kl: float, null_kl: float, null_raised: float) -> Cell:
        vocabulary, differences = self.unembedding.vocabulary, after - before
        raised, lowered = (token_scores(tokens, differences, vocabulary) for tokens in ranked(differences, self.top))
        likeliest = (vocabulary.texts[int(logits.argmax())] for logits in (before, after))
        unsteered, steered = likeliest
        return Cell(kl, null_kl, null_raised, unsteered, steered, raised, lowered)


def _divergence(unsteered: Floats, logits: Array) -> Floats:
    """KL(unsteered || steered) of each row, in nats."""
    divergence: Floats = (np.exp(unsteered) * (unsteered - log_softmax(logits))).sum(axis=1)
    return divergence
