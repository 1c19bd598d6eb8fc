"""Pairs to a steering vector: pool each answer's residual stream at every layer, reduce over the pairs.

Takes a Reference and pairs, gives a SteeringVector. The question a pair's two answers share is computed once: both
answers stand behind it in one row and do not see each other. It knows nothing of files, or of what steers later.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_steer.backend import Tokens
from edge_steer.errors import EdgeSteerError, RequestError, VectorError
from edge_steer.pairs import Pair, digest
from edge_steer.reference import Pool, Reference, Span
from edge_steer.vector import Array, SteeringVector

Reduce = Callable[[Array, Array], npt.NDArray[np.float64]]  # positive, negative (pairs, hidden) -> (hidden,)
Progress = Callable[[int, int], None]  # pairs done, pairs in all

PROBE_TOKENS = 8
PROBE_TOLERANCE = 0.02

_log = logging.getLogger(__name__)


def mean_difference(positive: Array, negative: Array) -> npt.NDArray[np.float64]:
    """v = 1/N sum(h(x+) - h(x-)), summed in float64 (DenseSteer, the steering vector of a layer)."""
    mean: npt.NDArray[np.float64] = np.subtract(positive, negative, dtype=np.float64).mean(axis=0)
    return mean


METHODS: dict[str, Reduce] = {"mean_difference": mean_difference}
POOLINGS: dict[str, Pool] = {"last": lambda answer: answer[-1]}


def extract(
    reference: Reference,
    pairs: Sequence[Pair],
    *,
    layers: Sequence[int] | None = None,
    method: str = "mean_difference",
    pooling: str = "last",
    normalise: bool = False,
    batch_tokens: int = 1024,
    progress: Progress | None = None,
) -> SteeringVector:
    """The vector that leads from the negative answers to the positive ones, at `layers` (None: every block).

    Each answer follows the question in the model's chat template, without an end token, so pooling "last" takes
    the token before it. batch_tokens: tokens run at once, at least one pair. normalise: scale to norm 1.
    Where an architecture cannot share the question, each answer is run alone with it, and the log says so.
    Errors: VectorError for no pairs, a layer that is not there, an unknown method or pooling, or a direction of
    norm 0 to normalise; RequestError for answers of equal tokens, or too long for the context.
    """
    if not pairs:
        raise VectorError("no pairs; at least one is needed")
    if method not in METHODS or pooling not in POOLINGS:
        raise VectorError(
            f"no method {method!r} with pooling {pooling!r}; "
            f"methods are {', '.join(METHODS)}, poolings {', '.join(POOLINGS)}"
        )
    wanted = tuple(sorted(set(range(reference.model.block_count) if layers is None else layers)))
    reference.check_layers(wanted)
    items = [_item(reference, pair, index) for index, pair in enumerate(pairs)]
    pool = POOLINGS[pooling]
    shared = _sharing_holds(reference, items[0], wanted)

    states = np.empty((2, len(wanted), len(pairs), reference.model.hidden_size), dtype=np.float32)
    done = 0
    for batch in _batches(items, batch_tokens):
        packed = [item for item in batch if shared and item.longest <= reference.window]
        if packed:
            found = _pool_packed(reference, packed, wanted, pool)
            for column, item in enumerate(packed):
                states[:, :, item.index] = found[:, 2 * column : 2 * column + 2].swapaxes(0, 1)
        for item in batch:
            if not shared or item.longest > reference.window:
                states[:, :, item.index] = _pool_alone(reference, item, wanted, pool).swapaxes(0, 1)
        done += len(batch)
        if progress:
            progress(done, len(pairs))

    directions: dict[int, Array] = {}
    for row, layer in enumerate(wanted):
        direction = METHODS[method](states[0, row], states[1, row])
        if normalise:
            if not (norm := np.linalg.norm(direction)):
                raise VectorError(f"the direction of layer {layer} is zero; it cannot be normalised")
            direction = direction / norm
        directions[layer] = direction.astype(np.float32)
    return SteeringVector(
        directions,
        reference.model,
        method=method,
        pooling=pooling,
        pairs=len(pairs),
        pairs_digest=digest(pairs),
        normalised=normalise,
    )


@dataclass(frozen=True)
class _Item:
    """A pair as token ids."""

    index: int
    prompt: Tokens
    positive: Tokens
    negative: Tokens

    @property
    def members(self) -> tuple[Tokens, Tokens]:
        return self.positive, self.negative

    @property
    def longest(self) -> int:
        return len(self.prompt) + max(map(len, self.members))

    @property
    def total(self) -> int:
        return len(self.prompt) + sum(map(len, self.members))


def _item(reference: Reference, pair: Pair, index: int) -> _Item:
    item = _Item(
        index,
        reference.chat([{"role": "user", "content": pair.question}]),
        reference.encode(pair.positive, start=False),
        reference.encode(pair.negative, start=False),
    )
    name = pair.id or f"pair {index + 1}"
    if item.positive == item.negative:
        raise RequestError(f"{name}: both answers are the same tokens; a pair needs two different answers")
    if item.longest > reference.context:
        raise RequestError(
            f"{name} has {item.longest} tokens with its question; the context holds {reference.context}; shorten it"
        )
    return item


def _batches(items: Sequence[_Item], batch_tokens: int) -> Iterator[list[_Item]]:
    """Items of like length, the longest first, so that too little memory shows at once."""
    batch: list[_Item] = []
    for item in sorted(items, key=lambda item: item.total, reverse=True):
        if batch and (len(batch) + 1) * batch[0].total > batch_tokens:
            yield batch
            batch = []
        batch.append(item)
    yield batch


def _pool_packed(reference: Reference, items: Sequence[_Item], layers: Sequence[int], pool: Pool) -> Array:
    """Rows of prompt, positive, negative, where negative does not see positive: (layers, 2 * items, hidden)."""
    columns = max(item.total for item in items)
    ids = np.zeros((len(items), columns), dtype=np.int64)
    positions = np.zeros_like(ids)
    visible = np.tril(np.ones((columns, columns), dtype=np.bool_))[None].repeat(len(items), axis=0)
    targets: list[Span] = []
    for row, item in enumerate(items):
        first, second = len(item.prompt), len(item.prompt) + len(item.positive)
        ids[row, : item.total] = (*item.prompt, *item.positive, *item.negative)
        positions[row, :second] = np.arange(second)
        positions[row, second : item.total] = np.arange(first, first + len(item.negative))
        visible[row, second:, first:second] = False
        targets += [(row, first, second), (row, second, item.total)]
    return reference.pooled(ids, targets, layers, pool, positions=positions, visible=visible)


def _pool_alone(reference: Reference, item: _Item, layers: Sequence[int], pool: Pool) -> Array:
    """Each answer in a row of its own behind its prompt, the plain way: (layers, 2, hidden)."""
    found = []
    for member in item.members:
        ids = np.array([(*item.prompt, *member)], dtype=np.int64)
        found.append(reference.pooled(ids, [(0, len(item.prompt), ids.shape[1])], layers, pool))
    return np.concatenate(found, axis=1)


def _sharing_holds(reference: Reference, item: _Item, layers: Sequence[int]) -> bool:
    """Whether the model gives in packed rows what it gives alone, tried on the first tokens of a pair."""
    reason = "its rows depend on each other"
    if reference.batchable:
        probe = _Item(0, item.prompt[:PROBE_TOKENS], item.positive[:PROBE_TOKENS], item.negative[:PROBE_TOKENS])
        try:
            packed = _pool_packed(reference, [probe], layers, POOLINGS["last"])
            alone = _pool_alone(reference, probe, layers, POOLINGS["last"])
            error = np.linalg.norm(packed - alone, axis=-1) / np.linalg.norm(alone, axis=-1)
            if error.max() <= PROBE_TOLERANCE:
                return True
            reason = f"a packed row is off by {error.max():.1%}"
        except EdgeSteerError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError) as failure:
            reason = f"it does not take a mask of its own: {failure}"
    _log.warning("%s cannot share a question between two answers (%s); each is run alone", reference.model.name, reason)
    return False
