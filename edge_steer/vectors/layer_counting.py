"""How a file counts layers: another tool's directions by their index, and the same by our layer law.

Two countings are in use. "block": index N is the output of the 0-based decoder block N, which is the layer law of
vector.py. "block+1": block N's output has index N+1, as in the `hidden_states` of transformers. Takes what an importer
read, gives a SteeringVector. It knows nothing of file formats, and never guesses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from edge_steer.core.architectures import gguf_name
from edge_steer.core.errors import VectorError
from edge_steer.core.vector import UNKNOWN, Array, ModelIdentity, SteeringVector

Convention = Literal["block", "block+1"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
MEANINGS: dict[Convention, str] = {
    "block": "index N is the output of the 0-based block N",
    "block+1": "block N's output has index N+1, as in hidden_states",
}


@dataclass(frozen=True)
class UncountedVector:
    """Another tool's directions by their index in the file. convention: None where nothing in the file tells it.

    origin: whose file it is and by what mark that is known. architecture: llama.cpp's name or Hugging Face's.
    """

    directions: Mapping[int, Array]
    origin: str
    convention: Convention | None = None
    architecture: str | None = None
    method: str = "unknown"


@dataclass(frozen=True)
class VectorFile:
    """What a file holds: a vector by our layer law, and how it became one.

    origin: whose file it is and by what mark that is known. left_out: whether index 0 was the embeddings'.
    """

    vector: SteeringVector
    origin: str
    convention: Convention
    left_out: bool = False


def count_layers(
    uncounted: UncountedVector,
    path: Path,
    digest: str,
    convention: Convention | None,
    model: str | None,
    architecture: str | None,
) -> VectorFile:
    """The vector by the layer law. convention: None is what the file tells. model, architecture: its model, if known.

    Index 0 of "block+1" is the embeddings' output, which no block gives; it is left out. Errors: VectorError where
    the file does not tell its convention and none is given, or nothing is left.
    """
    if (counted := convention or uncounted.convention) is None:
        raise VectorError(
            f"{path} does not say how it counts layers ({uncounted.origin}); import it with the convention "
            f"""'block' ({MEANINGS["block"]}) or 'block+1' ({MEANINGS["block+1"]})"""
        )
    shift = CONVENTIONS.index(counted)
    directions = {index - shift: direction for index, direction in uncounted.directions.items() if index >= shift}
    if not directions:
        raise VectorError(f"{path} holds only index 0, the embeddings' output by {counted!r}; no block gives that")
    hint = architecture or uncounted.architecture
    identity = ModelIdentity(
        model or UNKNOWN,
        gguf_name(hint) if hint and hint != UNKNOWN else None,
        hidden_size=len(next(iter(directions.values()))),
        block_count=0,
    )
    step = f"imported from {digest[:12]} ({uncounted.origin}), convention {counted}"
    vector = SteeringVector(directions, identity, method=uncounted.method, provenance=(step,))
    return VectorFile(vector, uncounted.origin, counted, left_out=len(directions) < len(uncounted.directions))
