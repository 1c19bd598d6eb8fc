"""How a file counts layers, and what was found in it before its numbers are read as layers.

Two countings are in use. "block": index N is the output of the 0-based decoder block N, which is the layer law of
vector.py. "block+1": block N's output has index N+1, as in the `hidden_states` of transformers. Takes what an importer
found, gives a SteeringVector. It knows nothing of file formats, and never guesses.
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
class Found:
    """What a file of another tool holds. convention: None where nothing in the file tells it.

    origin: whose file it is and by what mark that is known. architecture: llama.cpp's name or Hugging Face's.
    """

    directions: Mapping[int, Array]
    origin: str
    convention: Convention | None = None
    architecture: str | None = None
    method: str = "unknown"


@dataclass(frozen=True)
class Imported:
    """A vector by our layer law, and how it became one. `left_out` is True where index 0 was the embeddings'."""

    vector: SteeringVector
    origin: str
    convention: Convention
    left_out: bool = False


def settle(
    found: Found, path: Path, digest: str, convention: Convention | None, model: str | None, architecture: str | None
) -> Imported:
    """`found` by the layer law. convention: None is what the file tells. model, architecture: its model, if known.

    Index 0 of "block+1" is the embeddings' output, which no block gives; it is left out. Errors: VectorError where
    the file does not tell its convention and none is given, or nothing is left.
    """
    if (counted := convention or found.convention) is None:
        raise VectorError(
            f"{path} does not say how it counts layers ({found.origin}): --convention block is '{MEANINGS['block']}', "
            f'--convention block+1 is "{MEANINGS["block+1"]}"; run: edge-steer import {path} -o vector.safetensors '
            "--convention ..."
        )
    shift = CONVENTIONS.index(counted)
    directions = {index - shift: direction for index, direction in found.directions.items() if index >= shift}
    if not directions:
        raise VectorError(f"{path} holds only index 0, the embeddings' output by {counted!r}; no block gives that")
    hint = architecture or found.architecture
    identity = ModelIdentity(
        model or UNKNOWN,
        gguf_name(hint) if hint and hint != UNKNOWN else None,
        hidden_size=len(next(iter(directions.values()))),
        block_count=0,
    )
    step = f"imported from {digest[:12]} ({found.origin}), convention {counted}"
    vector = SteeringVector(directions, identity, method=found.method, provenance=(step,))
    return Imported(vector, found.origin, counted, left_out=len(directions) < len(found.directions))
