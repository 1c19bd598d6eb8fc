"""Pairs to a steering vector: record each answer's residual stream at every layer, then reduce over the pairs.

Takes a running model (PyTorch or llama.cpp) and pairs, gives a SteeringVector. It knows nothing of vector files, of
how a model runs, or of what steers later.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal, Protocol

import numpy as np

from edge_steer.core.backend import Recorder, SharedPrompt
from edge_steer.core.errors import EdgeSteerError, RequestError, VectorError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.streaming import common_prefix
from edge_steer.core.vector import Array, ModelIdentity, SteeringVector
from edge_steer.extraction.methods import class_means, method_named
from edge_steer.extraction.pooling import pooling_named
from edge_steer.pairs.pair import Pair, digest_pairs
from edge_steer.storage.provenance import Provenance

Normalise = bool | Literal["residual"]
RESIDUAL_UNITS = "each direction has the mean norm of the states at its layer"
MAX_BYTES_IN_MEMORY = 2**30  # more states than this are kept in a temporary file
Span = Callable[[int], tuple[int, int]]  # as pooling_named gives


class RecordedModel(Recorder, Protocol):
    """A Recorder that says what its numbers depend on: an Engine, or a Reference."""

    @property
    def provenance(self) -> Provenance: ...


@dataclass(frozen=True, eq=False)
class PairStates:
    """The states of pairs: float32 (layers, pairs, hidden) each, a layer's in one piece of memory or file.

    different: of the positive and of the negative sides, where each one stands first, if it stands in several pairs.
    """

    positive: Array
    negative: Array
    different: tuple[tuple[int, ...], tuple[int, ...]]
    layers: tuple[int, ...]
    model: ModelIdentity
    pooling: str
    pairs_digest: str

    @property
    def pairs(self) -> int:
        return len(self.positive[0])


def extract(
    model: RecordedModel,
    pairs: Sequence[Pair],
    *,
    layers: Sequence[int] | None = None,
    pooling: str = "last",
    method: str = "mean_difference",
    normalise: Normalise = False,
    batch_tokens: int = 1024,
    progress: Progress = SILENT,
) -> SteeringVector:
    """The vector that leads from the negative answers to the positive ones: `record`, then `reduce`."""
    method_named(method)
    states = record(model, pairs, layers=layers, pooling=pooling, batch_tokens=batch_tokens, progress=progress)
    return reduce(states, method, normalise=normalise)


def record(
    model: RecordedModel,
    pairs: Sequence[Pair],
    *,
    layers: Sequence[int] | None = None,
    pooling: str = "last",
    batch_tokens: int = 1024,
    progress: Progress = SILENT,
) -> PairStates:
    """The state of every answer at `layers` (None: every block), pooled over its tokens as `pooling.pooling_named`.

    Each answer follows its prompt (in the model's chat template, unless the pair is raw) without an end token, so
    pooling "last" takes the token before it. batch_tokens: tokens run at once, about. The states take 8 bytes for
    each pair, layer and hidden dimension; more than MAX_BYTES_IN_MEMORY of them are kept in a temporary file.
    Errors: VectorError for no pairs, a layer that is not there or an unknown pooling; RequestError for answers of
    equal tokens, too short for the pooling or too long for the context; EdgeSteerError for values that are no pairs, or
    a disk that is too full.
    """
    if not pairs:
        raise VectorError("no pairs; at least one is needed")
    if wrong := next((pair for pair in pairs if not isinstance(pair, Pair)), None):
        raise EdgeSteerError(f"{type(wrong).__name__} is no Pair; read a file of pairs by read_pairs")
    identity = _identity(model)
    chosen = tuple(sorted(set(range(identity.block_count) if layers is None else layers)))
    identity.check_layers(chosen)
    span = pooling_named(pooling)
    prompts = [_shared_prompt(model, pair, pair.id or f"pair {n}", span) for n, pair in enumerate(pairs, 1)]
    states = _new_states((2, len(chosen), len(pairs), identity.hidden_size))
    done = count(1)

    def take(index: int, answer_states: Array) -> None:
        states[:, :, index] = answer_states.swapaxes(0, 1)
        progress("recording states", next(done), len(pairs))

    model.answer_states(prompts, chosen, take, batch_tokens=batch_tokens)
    return PairStates(states[0], states[1], _different(pairs), chosen, identity, pooling, digest_pairs(pairs))


def reduce(states: PairStates, method: str = "mean_difference", *, normalise: Normalise = False) -> SteeringVector:
    """The vector of recorded states by one of METHODS.

    normalise: scale each direction to norm 1, or, if "residual", to the mean norm of the states at its layer, so that a
    strength of 0.1 adds a tenth of the residual stream at every layer. "class_means" counts a side once, in however
    many pairs it stands. Errors: VectorError for an unknown method, or a direction of norm 0 to normalise.
    """
    direct = method_named(method)
    directions: dict[int, Array] = {}
    for row, layer in enumerate(states.layers):
        positive, negative = states.positive[row], states.negative[row]
        if direct is class_means:
            positive, negative = positive[list(states.different[0])], negative[list(states.different[1])]
        direction = direct(positive, negative)
        if normalise:
            if not (norm := np.linalg.norm(direction)):
                raise VectorError(f"the direction of layer {layer} is zero; it cannot be normalised")
            both = np.concatenate([positive, negative])
            wanted = np.linalg.norm(both, axis=1).mean() if normalise == "residual" else 1.0
            direction = direction * (wanted / norm)
        directions[layer] = direction.astype(np.float32)
    return SteeringVector(
        directions,
        states.model,
        method=method,
        pooling=states.pooling,
        pairs=states.pairs,
        pairs_digest=states.pairs_digest,
        normalised=normalise is True,
        provenance=(RESIDUAL_UNITS,) if normalise == "residual" else (),
    )


def _identity(model: RecordedModel) -> ModelIdentity:
    """The model's identity; the revision of a GGUF is the digest of its file."""
    if model.model.revision is not None:
        return model.model
    return replace(model.model, revision=model.provenance.model["digest"])


def _shared_prompt(model: Recorder, pair: Pair, name: str, span: Span) -> SharedPrompt:
    """Positive and negative behind what their prompts have in common, each as far as the last token averaged."""
    (prompt, answer), (other, other_answer) = (side.tokens(model) for side in pair.sides)
    if (*prompt, *answer) == (*other, *other_answer):
        raise RequestError(f"{name}: both sides are the same tokens; a pair needs two different ones")
    longest = max(len(prompt) + len(answer), len(other) + len(other_answer))
    if longest > model.context:
        raise RequestError(
            f"{name} has {longest} tokens with its question; the context holds {model.context}; shorten it"
        )
    try:
        spans = [span(len(tokens)) for tokens in (answer, other_answer)]
    except RequestError as error:
        raise RequestError(f"{name}: {error}; use another pooling or leave the pair out") from None
    common = common_prefix(prompt, other)
    branches = ((*prompt[common:], *answer[: spans[0][1]]), (*other[common:], *other_answer[: spans[1][1]]))
    return SharedPrompt(prompt[:common], branches, tuple(end - first for first, end in spans))


def _different(pairs: Sequence[Pair]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the positive and of the negative sides the indices of those that no earlier pair has."""
    positive, negative = (
        {repr(pair.sides[side]): index for index, pair in reversed(list(enumerate(pairs)))} for side in (0, 1)
    )
    return tuple(sorted(positive.values())), tuple(sorted(negative.values()))


def _new_states(shape: tuple[int, ...]) -> Array:
    """An array of this shape; a large one lies in a temporary file that goes away with it."""
    size = 4 * int(np.prod(shape))
    if size <= MAX_BYTES_IN_MEMORY:
        return np.empty(shape, dtype=np.float32)
    if size > (free := shutil.disk_usage(tempfile.gettempdir()).free):
        raise EdgeSteerError(
            f"the states of {shape[2]} pairs at {shape[1]} layers take {size / 1e9:.1f} GB; {tempfile.gettempdir()} "
            f"has {free / 1e9:.1f} GB free; give fewer pairs or layers, or another folder as TMPDIR"
        )
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
