"""Pairs to a steering vector: record each answer's residual stream at every layer, then reduce over the pairs.

Takes a Recorder (PyTorch or llama.cpp) and pairs, gives a SteeringVector. It knows nothing of files, of how a model
runs, or of what steers later.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edge_steer.core.backend import Fork, Recorder
from edge_steer.core.errors import EdgeSteerError, RequestError, VectorError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.vector import Array, ModelIdentity, SteeringVector
from edge_steer.extraction.methods import method_named
from edge_steer.extraction.pooling import pooling_named
from edge_steer.pairs.pair import Pair, digest

HELD_BYTES = 2**30  # more states than this lie in a temporary file, not in memory


@dataclass(frozen=True, eq=False)
class PairStates:
    """The states of pairs: float32 (layers, pairs, hidden) each, a layer's in one piece of memory or file."""

    positive: Array
    negative: Array
    layers: tuple[int, ...]
    model: ModelIdentity
    pooling: str
    pairs_digest: str

    @property
    def pairs(self) -> int:
        return len(self.positive[0])


def extract(
    recorder: Recorder,
    pairs: Sequence[Pair],
    *,
    layers: Sequence[int] | None = None,
    method: str = "mean_difference",
    pooling: str = "last",
    normalise: bool = False,
    batch_tokens: int = 1024,
    progress: Progress = SILENT,
) -> SteeringVector:
    """The vector that leads from the negative answers to the positive ones: `record`, then `reduce`."""
    method_named(method)
    states = record(recorder, pairs, layers=layers, pooling=pooling, batch_tokens=batch_tokens, progress=progress)
    return reduce(states, method, normalise=normalise)


def record(
    recorder: Recorder,
    pairs: Sequence[Pair],
    *,
    layers: Sequence[int] | None = None,
    pooling: str = "last",
    batch_tokens: int = 1024,
    progress: Progress = SILENT,
) -> PairStates:
    """The state of every answer at `layers` (None: every block), pooled over its tokens as `methods.pooling_named`.

    Each answer follows its prompt (in the model's chat template, unless the pair is raw) without an end token, so
    pooling "last" takes the token before it. batch_tokens: tokens run at once, about. The states take 8 bytes for
    each pair, layer and hidden dimension; more than HELD_BYTES of them are kept in a temporary file.
    Errors: VectorError for no pairs, a layer that is not there or an unknown pooling; RequestError for answers of
    equal tokens, too short for the pooling or too long for the context; EdgeSteerError for a disk that is too full.
    """
    if not pairs:
        raise VectorError("no pairs; at least one is needed")
    wanted = tuple(sorted(set(range(recorder.model.block_count) if layers is None else layers)))
    recorder.model.check_layers(wanted)
    span = pooling_named(pooling)
    forks = [_fork(recorder, pair, pair.id or f"pair {number}", span) for number, pair in enumerate(pairs, 1)]
    states = _room((2, len(wanted), len(pairs), recorder.model.hidden_size))
    done = 0

    def take(index: int, found: Array) -> None:
        nonlocal done
        states[:, :, index] = found.swapaxes(0, 1)
        done += 1
        progress("recording states", done, len(pairs))

    recorder.answer_states(forks, wanted, take, batch_tokens=batch_tokens)
    return PairStates(states[0], states[1], wanted, recorder.model, pooling, digest(pairs))


def reduce(states: PairStates, method: str = "mean_difference", *, normalise: bool = False) -> SteeringVector:
    """The vector of recorded states by one of METHODS. normalise: scale each direction to norm 1.

    Errors: VectorError for an unknown method, or a direction of norm 0 to normalise.
    """
    direct = method_named(method)
    directions: dict[int, Array] = {}
    for row, layer in enumerate(states.layers):
        direction = direct(states.positive[row], states.negative[row])
        if normalise:
            if not (norm := np.linalg.norm(direction)):
                raise VectorError(f"the direction of layer {layer} is zero; it cannot be normalised")
            direction = direction / norm
        directions[layer] = direction.astype(np.float32)
    return SteeringVector(
        directions,
        states.model,
        method=method,
        pooling=states.pooling,
        pairs=states.pairs,
        pairs_digest=states.pairs_digest,
        normalised=normalise,
    )


def _fork(recorder: Recorder, pair: Pair, name: str, span: Callable[[int], tuple[int, int]]) -> Fork:
    """Positive and negative behind what their prompts have in common, each as far as the last token averaged."""
    (prompt, answer), (other, other_answer) = (side.tokens(recorder) for side in pair.sides)
    if (*prompt, *answer) == (*other, *other_answer):
        raise RequestError(f"{name}: both sides are the same tokens; a pair needs two different ones")
    longest = max(len(prompt) + len(answer), len(other) + len(other_answer))
    if longest > recorder.context:
        raise RequestError(
            f"{name} has {longest} tokens with its question; the context holds {recorder.context}; shorten it"
        )
    common = 0
    while common < min(len(prompt), len(other)) and prompt[common] == other[common]:
        common += 1
    try:
        spans = [span(len(tokens)) for tokens in (answer, other_answer)]
    except RequestError as error:
        raise RequestError(f"{name}: {error}; use another pooling or leave the pair out") from None
    branches = ((*prompt[common:], *answer[: spans[0][1]]), (*other[common:], *other_answer[: spans[1][1]]))
    return Fork(prompt[:common], branches, tuple(end - first for first, end in spans))


def _room(shape: tuple[int, ...]) -> Array:
    """An array of this shape, in a temporary file that is gone with it if it is large."""
    size = 4 * int(np.prod(shape))
    if size <= HELD_BYTES:
        return np.empty(shape, dtype=np.float32)
    if size > (free := shutil.disk_usage(tempfile.gettempdir()).free):
        raise EdgeSteerError(
            f"the states of {shape[2]} pairs at {shape[1]} layers take {size / 1e9:.1f} GB; {tempfile.gettempdir()} "
            f"has {free / 1e9:.1f} GB free; give fewer pairs or layers, or another folder as TMPDIR"
        )
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
