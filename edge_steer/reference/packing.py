"""Answers that share a prompt, in one row of a PyTorch network: the prompt is computed once, no answer sees another.

Takes a network that averages the states of a batch, and prompts with their answers; gives the states of the answers.
Where the network does not give in packed rows what it gives alone, each answer is run alone. It knows no torch and
nothing of pairs.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_steer.core.backend import OnStates, SharedPrompt, Tokens
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.vector import Array, ModelIdentity

Span = tuple[int, int, int]  # row, first column, column after the last
PROBE_TOKENS = 8
PROBE_TOLERANCE = 0.02
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputRows:
    """What a network is run on: int64 ids (rows, columns).

    Two arrays say what differs from plain causal rows: positions (rows, columns), and visible (rows, columns, columns),
    True where the first column attends to the second.
    """

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64] | None = None
    visible: npt.NDArray[np.bool_] | None = None


class Network(Protocol):
    """What is needed of `reference.Reference`."""

    window: int  # positions that a token can attend to
    batchable: bool  # whether rows of a batch are independent of each other

    @property
    def model(self) -> ModelIdentity: ...

    def pooled(self, rows: InputRows, targets: Sequence[Span], layers: Sequence[int]) -> Array: ...


def packed_states(
    network: Network, prompts: Sequence[SharedPrompt], layers: Sequence[int], take: OnStates, batch_tokens: int
) -> None:
    """See backend.Recorder.answer_states; at least one prompt is run at once.

    Where an architecture cannot share the prompt, the log says so.
    """
    sharing = _sharing_holds(network, prompts[0], layers)
    for batch in _batches(prompts, batch_tokens):
        packed = [index for index in batch if sharing and prompts[index].longest <= network.window]
        if packed:
            states = _pool_packed(network, [prompts[index] for index in packed], layers)
            first = 0
            for index in packed:
                count = len(prompts[index].answers)
                take(index, states[:, first : first + count])
                first += count
        for index in batch:
            if index not in packed:
                take(index, _pool_alone(network, prompts[index], layers))


def _batches(prompts: Sequence[SharedPrompt], batch_tokens: int) -> Iterator[list[int]]:
    """Prompts of like length, the longest first, so that too little memory shows at once."""
    batch: list[int] = []
    for index in sorted(range(len(prompts)), key=lambda index: prompts[index].total, reverse=True):
        if batch and (len(batch) + 1) * prompts[batch[0]].total > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    yield batch


def pack(prompts: Sequence[tuple[Tokens, Sequence[Tokens]]]) -> InputRows:
    """A row for each prompt, it and then its answers, of which none sees another; filled up on the right."""
    columns = max(len(prompt) + sum(map(len, answers)) for prompt, answers in prompts)
    ids = np.zeros((len(prompts), columns), dtype=np.int64)
    positions = np.zeros_like(ids)
    visible = np.tril(np.ones((columns, columns), dtype=np.bool_))[None].repeat(len(prompts), axis=0)
    for row, (prompt, answers) in enumerate(prompts):
        start = end = len(prompt)
        ids[row, :start], positions[row, :start] = prompt, np.arange(start)
        for answer in answers:
            first, end = end, end + len(answer)
            ids[row, first:end], positions[row, first:end] = answer, np.arange(start, start + len(answer))
            visible[row, first:, start:first] = False
    return InputRows(ids, positions, visible)


def _pool_packed(network: Network, prompts: Sequence[SharedPrompt], layers: Sequence[int]) -> Array:
    """Of packed rows: (layers, answers of all prompts, hidden)."""
    targets: list[Span] = []
    for row, shared in enumerate(prompts):
        end = len(shared.prompt)
        for answer, count in zip(shared.answers, shared.averaged, strict=True):
            end += len(answer)
            targets.append((row, end - count, end))
    return network.pooled(pack([(shared.prompt, shared.answers) for shared in prompts]), targets, layers)


def _pool_alone(network: Network, shared: SharedPrompt, layers: Sequence[int]) -> Array:
    """Each answer in a row of its own behind its prompt, the plain way: (layers, answers, hidden)."""
    states = []
    for answer, count in zip(shared.answers, shared.averaged, strict=True):
        ids = np.array([(*shared.prompt, *answer)], dtype=np.int64)
        states.append(network.pooled(InputRows(ids), [(0, ids.shape[1] - count, ids.shape[1])], layers))
    return np.concatenate(states, axis=1)


def _sharing_holds(network: Network, shared: SharedPrompt, layers: Sequence[int]) -> bool:
    """Whether the model gives in packed rows what it gives alone, tried on the first tokens of a prompt."""
    reason = "its rows depend on each other"
    if network.batchable:
        answers = tuple(answer[:PROBE_TOKENS] for answer in shared.answers)
        probe = SharedPrompt(shared.prompt[:PROBE_TOKENS], answers, (1,) * len(answers))
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
