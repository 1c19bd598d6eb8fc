"""Answers that share a prompt, in one row of a PyTorch network: the prompt is computed once, no answer sees another.

Takes a network that averages the states of a batch, and forks; gives each fork's states. Where the network does not
give in packed rows what it gives alone, each answer is run alone. It knows no torch and nothing of pairs.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_steer.core.backend import Fork, OnStates
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.vector import Array, ModelIdentity

Span = tuple[int, int, int]  # row, first column, column after the last
PROBE_TOKENS = 8
PROBE_TOLERANCE = 0.02
_log = logging.getLogger(__name__)


class Network(Protocol):
    """What is needed of `reference.Reference`."""

    window: int  # positions that a token can attend to
    batchable: bool  # whether rows of a batch are independent of each other

    @property
    def model(self) -> ModelIdentity: ...

    def pooled(
        self,
        ids: npt.NDArray[np.int64],
        targets: Sequence[Span],
        layers: Sequence[int],
        *,
        positions: npt.NDArray[np.int64] | None = None,
        visible: npt.NDArray[np.bool_] | None = None,
    ) -> Array: ...


def packed_states(
    network: Network, forks: Sequence[Fork], layers: Sequence[int], take: OnStates, batch_tokens: int
) -> None:
    """See backend.Recorder.answer_states; at least one fork is run at once.

    Where an architecture cannot share the prompt, the log says so.
    """
    shared = _sharing_holds(network, forks[0], layers)
    for batch in _batches(forks, batch_tokens):
        packed = [index for index in batch if shared and forks[index].longest <= network.window]
        if packed:
            found = _pool_packed(network, [forks[index] for index in packed], layers)
            first = 0
            for index in packed:
                count = len(forks[index].answers)
                take(index, found[:, first : first + count])
                first += count
        for index in batch:
            if index not in packed:
                take(index, _pool_alone(network, forks[index], layers))


def _batches(forks: Sequence[Fork], batch_tokens: int) -> Iterator[list[int]]:
    """Forks of like length, the longest first, so that too little memory shows at once."""
    batch: list[int] = []
    for index in sorted(range(len(forks)), key=lambda index: forks[index].total, reverse=True):
        if batch and (len(batch) + 1) * forks[batch[0]].total > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    yield batch


def _pool_packed(network: Network, forks: Sequence[Fork], layers: Sequence[int]) -> Array:
    """A row for each fork, its prompt and then its answers: (layers, answers of all forks, hidden)."""
    columns = max(fork.total for fork in forks)
    ids = np.zeros((len(forks), columns), dtype=np.int64)
    positions = np.zeros_like(ids)
    visible = np.tril(np.ones((columns, columns), dtype=np.bool_))[None].repeat(len(forks), axis=0)
    targets: list[Span] = []
    for row, fork in enumerate(forks):
        prompt = end = len(fork.prompt)
        ids[row, : fork.total] = (*fork.prompt, *(token for answer in fork.answers for token in answer))
        positions[row, :prompt] = np.arange(prompt)
        for answer, count in zip(fork.answers, fork.averaged, strict=True):
            first, end = end, end + len(answer)
            positions[row, first:end] = np.arange(prompt, prompt + len(answer))
            visible[row, first:, prompt:first] = False
            targets.append((row, end - count, end))
    return network.pooled(ids, targets, layers, positions=positions, visible=visible)


def _pool_alone(network: Network, fork: Fork, layers: Sequence[int]) -> Array:
    """Each answer in a row of its own behind its prompt, the plain way: (layers, answers, hidden)."""
    found = []
    for answer, count in zip(fork.answers, fork.averaged, strict=True):
        ids = np.array([(*fork.prompt, *answer)], dtype=np.int64)
        found.append(network.pooled(ids, [(0, ids.shape[1] - count, ids.shape[1])], layers))
    return np.concatenate(found, axis=1)


def _sharing_holds(network: Network, fork: Fork, layers: Sequence[int]) -> bool:
    """Whether the model gives in packed rows what it gives alone, tried on the first tokens of a fork."""
    reason = "its rows depend on each other"
    if network.batchable:
        answers = tuple(answer[:PROBE_TOKENS] for answer in fork.answers)
        probe = Fork(fork.prompt[:PROBE_TOKENS], answers, (1,) * len(answers))
        try:
            packed = _pool_packed(network, [probe], layers)
            alone = _pool_alone(network, probe, layers)
            error = np.linalg.norm(packed - alone, axis=-1) / np.linalg.norm(alone, axis=-1)
            if error.max() <= PROBE_TOLERANCE:
                return True
            reason = f"a packed row is off by {error.max():.1%}"
        except EdgeSteerError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError) as failure:
            reason = f"it does not take a mask of its own: {failure}"
    _log.warning("%s cannot share a question between two answers (%s); each is run alone", network.model.name, reason)
    return False
