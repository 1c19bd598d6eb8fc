"""The value that travels the pipeline: a steering vector, and a steering made of it.

Layer law: layer N is the output of 0-based decoder block N, after its residual add. It is a forward hook on
block N in PyTorch, the tensor `direction.N` in a GGUF control vector and the node `l_out-N` in llama.cpp.

Takes and gives float32 numpy arrays and safetensors files. It knows nothing of torch, llama.cpp or GGUF.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from edge_steer.errors import VectorError
from edge_steer.files import readable, replacing

Array = npt.NDArray[np.float32]
Phase = Literal["all", "generated"]
PHASES: tuple[Phase, ...] = get_args(Phase)
StoredTensor = tuple[str, list[int], bytes]  # dtype as safetensors names it, shape, values
UNKNOWN = "unknown"  # name of a model that a vector's file does not tell
FORMAT = "edge-steer vector 1"
MAX_BYTES = 2**26  # of a file of vectors, and of what it unpacks to; the largest models' vectors take 2**23
MAX_HEADER = 2**20  # bytes of a safetensors header

_HEADER_TYPES: dict[str, Any] = {
    "model": dict,
    "method": str,
    "pooling": str,
    "pairs": int,
    "pairs_digest": str,
    "normalised": bool,
    "provenance": list,
}
_MODEL_TYPES: dict[str, Any] = {
    "name": str,
    "architecture": str | None,
    "hidden_size": int,
    "block_count": int,
    "revision": str | None,
}


@dataclass(frozen=True)
class ModelIdentity:
    """Which model a vector belongs to. `architecture` is llama.cpp's name for it; None or 0 is not known."""

    name: str
    architecture: str | None
    hidden_size: int
    block_count: int
    revision: str | None = None

    def __str__(self) -> str:
        shape = f"width {self.hidden_size}"
        if self.block_count:
            shape += f", blocks 0-{self.block_count - 1}"
        return f"{self.name} ({self.architecture or 'unknown architecture'}, {shape})"

    def joined(self, other: Self) -> Self:
        """This identity, with what is not known of it taken from `other`, which it fits."""
        named = other if self.name == UNKNOWN else self
        architecture = self.architecture or other.architecture
        blocks = self.block_count or other.block_count
        return replace(named, architecture=architecture, block_count=blocks)

    def check_layers(self, layers: Sequence[int]) -> None:
        """Errors: VectorError if no layer is asked or one is not a block of the model."""
        missing = [layer for layer in layers if not 0 <= layer < self.block_count]
        if missing or not layers:
            asked = f"layer {missing[0]}" if missing else "no layer"
            raise VectorError(f"{asked} asked; {self.name} has blocks {spans(range(self.block_count))}")


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """One direction per layer, with where it came from. Frozen; operations return new vectors.

    directions: layer -> float32 array (hidden_size,), read-only. model: the model it was made for.
    method, pooling, pairs, pairs_digest: how it was made; `normalised` is True if each direction has norm 1.
    Errors: VectorError for no layers, a negative layer or one past the model's last, a wrong width, NaN or Inf.
    """

    directions: Mapping[int, Array]
    model: ModelIdentity
    method: str = "unknown"
    pooling: str = "unknown"
    pairs: int = 0
    pairs_digest: str = ""
    normalised: bool = False
    provenance: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.directions:
            raise VectorError("the vector has no layers; at least one is needed")
        frozen: dict[int, Array] = {}
        for layer in sorted(self.directions):
            direction = np.array(self.directions[layer], dtype=np.float32)
            if direction.shape != (self.model.hidden_size,):
                raise VectorError(
                    f"layer {layer} has shape {direction.shape}; {self.model} needs ({self.model.hidden_size},)"
                )
            if not np.isfinite(direction).all():
                raise VectorError(f"layer {layer} holds NaN or Inf; every value must be finite")
            if layer < 0 or (self.model.block_count and layer >= self.model.block_count):
                raise VectorError(f"vector has layer {layer}; {self.model} has no such block")
            direction.flags.writeable = False
            frozen[layer] = direction
        object.__setattr__(self, "directions", frozen)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self.directions)

    @property
    def norms(self) -> dict[int, float]:
        """Euclidean norm of each direction."""
        return {layer: float(np.linalg.norm(direction)) for layer, direction in self.directions.items()}

    @property
    def digest(self) -> str:
        """SHA-256 of the header and the values, in hex: equal for equal vectors, however they are stored."""
        sha = hashlib.sha256(json.dumps(self._header(), sort_keys=True).encode())
        for layer, direction in self.directions.items():
            sha.update(layer.to_bytes(4, "little") + direction.astype("<f4").tobytes())
        return sha.hexdigest()

    def restrict(self, layers: Iterable[int]) -> Self:
        """The same vector with only these layers. Errors: VectorError if one is not there or none is asked."""
        return replace(self, directions={layer: self.directions[layer] for layer in self.check_layers(layers)})

    def check_layers(self, layers: Iterable[int]) -> tuple[int, ...]:
        """`layers`, sorted and distinct. Errors: VectorError if one is not in the vector or none is asked."""
        wanted = tuple(sorted(set(layers)))
        missing = [layer for layer in wanted if layer not in self.directions]
        if missing or not wanted:
            asked = f"layer {missing[0]}" if missing else "no layer"
            raise VectorError(f"vector has layers {spans(self.layers)}; {asked} asked; {self.model}")
        return wanted

    def check_fits(self, model: ModelIdentity) -> None:
        """Errors: VectorError if this vector is of a model with another architecture, width or depth."""
        mine = self.model
        same_kind = mine.architecture is None or model.architecture is None or mine.architecture == model.architecture
        same_depth = not mine.block_count or not model.block_count or mine.block_count == model.block_count
        in_range = not model.block_count or self.layers[-1] < model.block_count
        if not (same_kind and same_depth and in_range and mine.hidden_size == model.hidden_size):
            raise VectorError(
                f"vector with layers {spans(self.layers)} is of {mine}, not of {model}; "
                "use one extracted from that model"
            )

    def save(self, path: Path) -> None:
        """Write as safetensors: tensors `direction.N` and the header as metadata."""
        tensors = {f"direction.{layer}": np.asarray(direction) for layer, direction in self.directions.items()}
        with replacing(path) as temporary:
            safetensors.numpy.save_file(tensors, temporary, {"edge_steer": json.dumps(self._header(), sort_keys=True)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Errors: VectorError for a file that is not one of ours or is damaged."""
        metadata, tensors = read_safetensors(path)
        try:
            header = json.loads(metadata["edge_steer"])
            if header.pop("format") != FORMAT:
                raise VectorError(f"{path} is of another format version; this edge-steer reads {FORMAT!r}")
            directions = {}
            for name, (dtype, shape, data) in tensors.items():
                if not (match := re.fullmatch(r"direction\.(0|[1-9]\d{0,4})", name)):
                    raise VectorError(f"{path} holds a tensor {name!r}; only direction.N is allowed")
                if dtype != "F32":
                    raise VectorError(f"{path}: {name} is {dtype}; F32 is needed")
                directions[int(match[1])] = np.frombuffer(data, "<f4").reshape(shape)
            _check_types(header, _HEADER_TYPES)
            _check_types(header["model"], _MODEL_TYPES)
            _check_types(dict(enumerate(header["provenance"])), {}, other=str)
            header["model"] = ModelIdentity(**header["model"])
            header["provenance"] = tuple(header["provenance"])
            return cls(directions, **header)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise VectorError(f"{path} is not a steering vector of edge-steer: {error}") from None

    def __add__(self, other: Self) -> Self:
        """Layer by layer; a layer that only one of them has is kept as it is."""
        other.check_fits(self.model)
        merged = dict(self.directions)
        for layer, direction in other.directions.items():
            merged[layer] = merged[layer] + direction if layer in merged else direction
        return self._derived(merged, f"{self.digest[:12]} + {other.digest[:12]}", other)

    def __sub__(self, other: Self) -> Self:
        return self + -other

    def __neg__(self) -> Self:
        return self * -1.0

    def __mul__(self, factor: float) -> Self:
        scaled = {layer: direction * np.float32(factor) for layer, direction in self.directions.items()}
        return self._derived(scaled, f"{self.digest[:12]} * {factor:g}")

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Self:
        if divisor == 0:
            raise VectorError("cannot divide a vector by 0")
        return self * (1.0 / divisor)

    def project_out(self, other: Self) -> Self:
        """Made orthogonal to `other` at every layer of it that this vector has; other layers are kept as they are.

        Errors: VectorError for another model, no layer in common, or a direction of `other` that is zero there.
        """
        other.check_fits(self.model)
        common = [layer for layer in other.layers if layer in self.directions]
        if not common:
            raise VectorError(f"vectors with layers {spans(self.layers)} and {spans(other.layers)} have none in common")
        projected = dict(self.directions)
        for layer in common:
            mine, theirs = (vector.directions[layer].astype(np.float64) for vector in (self, other))
            if not (square := theirs @ theirs):
                raise VectorError(f"layer {layer} of the vector to project out is zero; it has no direction there")
            projected[layer] = (mine - (mine @ theirs) / square * theirs).astype(np.float32)
        return self._derived(projected, f"{self.digest[:12]} without {other.digest[:12]}", other)

    def _derived(self, directions: Mapping[int, Array], step: str, other: Self | None = None) -> Self:
        model = self.model.joined(other.model) if other else self.model
        provenance = (*self.provenance, step)
        return replace(self, directions=directions, model=model, normalised=False, provenance=provenance)

    def _header(self) -> dict[str, object]:
        return {
            "format": FORMAT,
            "model": asdict(self.model),
            "method": self.method,
            "pooling": self.pooling,
            "pairs": self.pairs,
            "pairs_digest": self.pairs_digest,
            "normalised": self.normalised,
            "provenance": list(self.provenance),
        }


@dataclass(frozen=True)
class Steering:
    """A vector put to use: `strength` (lambda in DenseSteer) times the vector, added at `layers` in `phase`.

    layers: None is every layer of the vector. phase: "all" steers every position, prompt included;
    "generated" steers from the last prompt token on, that is every position whose logits choose a new token.
    Errors: VectorError for a layer the vector has not, a strength that is not finite, an unknown phase.
    """

    vector: SteeringVector
    strength: float = 1.0
    layers: tuple[int, ...] | None = None
    phase: Phase = "all"

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength):
            raise VectorError(f"strength is {self.strength}; it must be a finite number")
        if self.phase not in PHASES:
            raise VectorError(f"no phase {self.phase!r}; allowed are {', '.join(PHASES)}")
        layers = self.vector.layers if self.layers is None else self.vector.check_layers(self.layers)
        object.__setattr__(self, "layers", layers)

    def offsets(self) -> dict[int, Array]:
        """layer -> strength * direction, what is added to the residual stream there."""
        return {layer: np.float32(self.strength) * self.vector.directions[layer] for layer in self.layers or ()}


@dataclass(frozen=True)
class Offsets:
    """Several steerings added up: what one request adds to the residual stream, layer by layer, and when."""

    by_layer: Mapping[int, Array]
    phase: Phase

    @classmethod
    def of(cls, steerings: Sequence[Steering], model: ModelIdentity) -> Self | None:
        """None for no steering, or one whose offsets are all zero (it leaves the model as it is).

        Errors: VectorError for a vector of another model, or steerings of different phases.
        """
        total: dict[int, Array] = {}
        for steering in steerings:
            steering.vector.check_fits(model)
            if steering.phase != steerings[0].phase:
                raise VectorError(
                    "one request cannot mix the phases 'all' and 'generated'; give all its vectors one phase"
                )
            for layer, offset in steering.offsets().items():
                total[layer] = total[layer] + offset if layer in total else offset
        total = {layer: offset for layer, offset in total.items() if offset.any()}
        return cls(total, steerings[0].phase) if total else None

    @property
    def key(self) -> str:
        """SHA-256 of phase and values: equal steerings have equal keys."""
        sha = hashlib.sha256(self.phase.encode())
        for layer in sorted(self.by_layer):
            sha.update(layer.to_bytes(4, "little") + self.by_layer[layer].astype("<f4").tobytes())
        return sha.hexdigest()


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    """Metadata and tensors of a safetensors file, its claims held against bounds before they are believed.

    Errors: VectorError for a file that is too large or damaged, or is no safetensors.
    """
    size = readable(path, "a steering vector (.safetensors)").stat().st_size
    if size > MAX_BYTES:
        raise VectorError(f"{path} has more than {MAX_BYTES} bytes; vector files have a few million")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_HEADER, size - 8):
            raise VectorError(f"{path} is not a steering vector: as safetensors, its header has {length} bytes")
        content = path.read_bytes()
    try:
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
        found = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except (safetensors.SafetensorError, ValueError, AttributeError, RecursionError) as error:
        raise VectorError(f"{path} is not a steering vector: {' '.join(str(error).split())[:200]}") from None
    return metadata, {name: (tensor["dtype"], tensor["shape"], tensor["data"]) for name, tensor in found}


def spans(layers: Iterable[int]) -> str:
    """Layers as a person writes them: (1, 2, 3, 7) -> "1-3, 7"."""
    parts: list[list[int]] = []
    for layer in sorted(layers):
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)


def parse_layers(text: str) -> tuple[int, ...]:
    """The inverse of `spans`: "1-3,7" -> (1, 2, 3, 7). Errors: VectorError for anything else."""
    layers: set[int] = set()
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise VectorError(f"cannot read layers {text!r}; write them as 3 or 1-5 or 1,2,7-9")
        layers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(layers))


def _check_types(values: Mapping[Any, object], types: Mapping[str, Any], other: Any = object) -> None:
    for key, value in values.items():
        if not isinstance(value, types.get(key, other)):
            raise TypeError(f"{key!r} is {value!r:.60}")
