"""The value that travels the pipeline: a steering vector, with what it was made from and how it is meant to be used.

Layer law: layer N is the output of 0-based decoder block N, after its residual add. It is a forward hook on
block N in PyTorch, the tensor `direction.N` in a GGUF control vector and the node `l_out-N` in llama.cpp.

Takes and gives float32 numpy arrays. It knows nothing of files, torch or llama.cpp.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from edge_steer.core.errors import VectorError

Array = npt.NDArray[np.float32]
Number = int | float | np.floating | np.integer  # what multiplies a vector
Phase = Literal["all", "generated", "delimiter"]
PHASES: tuple[Phase, ...] = get_args(Phase)
UNKNOWN = "unknown"  # name of a model that a vector's file does not tell
FORMAT = "edge-steer vector 1"


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
            problem = f"layer {missing[0]}" if missing else "no layer"
            raise VectorError(f"{problem} asked; {self.name} has blocks {spans(range(self.block_count))}")


@dataclass(frozen=True)
class Tuning:
    """How a vector is meant to be used: the layers, strength and phase that were found to work, by a sweep say.

    Errors: VectorError for no layers, a strength that is not finite, an unknown phase.
    """

    layers: tuple[int, ...]
    strength: float = 1.0
    phase: Phase = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))
        if not self.layers:
            raise VectorError("a tuning without layers; at least one is needed")
        check_strength(self.strength)
        check_phase(self.phase)

    def __str__(self) -> str:
        return f"layers {spans(self.layers)}, strength {self.strength:g}, phase {self.phase}"


@dataclass(frozen=True, eq=False, repr=False)
class SteeringVector:
    """One direction per layer, with where it came from. Frozen; operations return new vectors, without a tuning.

    directions: layer -> float32 array (hidden_size,), read-only. model: the model it was made for.
    method, pooling, pairs, pairs_digest: how it was made; `normalised` is True if each direction has norm 1.
    tuning: how it is meant to be used; None where nobody said. Two vectors are equal if their digests are.
    Errors: VectorError for no layers, a negative layer or one past the model's last, a wrong width, NaN or Inf, or a
    tuning at a layer that the vector has not.
    """

    directions: Mapping[int, Array]
    model: ModelIdentity
    method: str = "unknown"
    pooling: str = "unknown"
    pairs: int = 0
    pairs_digest: str = ""
    normalised: bool = False
    provenance: tuple[str, ...] = field(default=())
    tuning: Tuning | None = None
    __array_ufunc__ = None  # numpy leaves arithmetic with a vector to the vector

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
        if self.tuning:
            self.check_layers(self.tuning.layers)

    def __repr__(self) -> str:
        of = f"{self.method} of {self.pairs} pairs" if self.pairs else self.method
        tuned = f", tuned: {self.tuning}" if self.tuning else ""
        return f"SteeringVector({self.model.name}, layers {spans(self.layers)}, {of}{tuned})"

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, SteeringVector) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self.directions)

    @property
    def norms(self) -> dict[int, float]:
        """Euclidean norm of each direction."""
        return {layer: float(np.linalg.norm(direction)) for layer, direction in self.directions.items()}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the header and the values, in hex: equal for equal vectors, however they are stored or tuned."""
        sha = hashlib.sha256(json.dumps(self.header(), sort_keys=True).encode())
        for layer, direction in self.directions.items():
            sha.update(layer.to_bytes(4, "little") + direction.astype("<f4").tobytes())
        return sha.hexdigest()

    def at(self, layers: int | Iterable[int]) -> Self:
        """The same vector with only these layers. Errors: VectorError if one is not there or none is asked."""
        wanted = self.check_layers([layers] if isinstance(layers, int) else layers)
        return replace(self, directions={layer: self.directions[layer] for layer in wanted}, tuning=None)

    def tuned(self, layers: int | Iterable[int] | None = None, strength: float = 1.0, phase: Phase = "all") -> Self:
        """The same vector, meant to be used so. layers: None is all it has. Errors: VectorError."""
        wanted = self.layers if layers is None else self.check_layers([layers] if isinstance(layers, int) else layers)
        return replace(self, tuning=Tuning(wanted, strength, phase))

    def check_layers(self, layers: Iterable[int]) -> tuple[int, ...]:
        """`layers`, sorted and distinct. Errors: VectorError if one is not in the vector or none is asked."""
        layers = list(layers)
        if wrong := [layer for layer in layers if not isinstance(layer, int | np.integer)]:
            raise VectorError(f"layers are whole numbers; {wrong[0]!r:.40} is none")
        wanted = tuple(sorted({int(layer) for layer in layers}))
        missing = [layer for layer in wanted if layer not in self.directions]
        if missing or not wanted:
            problem = f"layer {missing[0]}" if missing else "no layer"
            raise VectorError(f"vector has layers {spans(self.layers)}; {problem} asked; {self.model}")
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

    def __add__(self, other: Self) -> Self:
        """Layer by layer; a layer that only one of them has is kept as it is."""
        if not isinstance(other, SteeringVector):
            return NotImplemented
        other.check_fits(self.model)
        merged = dict(self.directions)
        for layer, direction in other.directions.items():
            merged[layer] = merged[layer] + direction if layer in merged else direction
        return self._derived(merged, f"{self.digest[:12]} + {other.digest[:12]}", other)

    def __radd__(self, other: object) -> Self:
        return self if isinstance(other, int) and other == 0 else NotImplemented  # sum() begins with 0

    def __sub__(self, other: Self) -> Self:
        return self + -other if isinstance(other, SteeringVector) else NotImplemented

    def __neg__(self) -> Self:
        return self * -1.0

    def __mul__(self, factor: Number) -> Self:
        if not isinstance(factor, Number):
            return NotImplemented
        scaled = {layer: direction * np.float32(factor) for layer, direction in self.directions.items()}
        return self._derived(scaled, f"{self.digest[:12]} * {factor:g}")

    __rmul__ = __mul__

    def __truediv__(self, divisor: Number) -> Self:
        if not isinstance(divisor, Number):
            return NotImplemented
        if divisor == 0:
            raise VectorError("cannot divide a vector by 0")
        return self * (1.0 / float(divisor))

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

    def random_like(self, seed: int) -> Self:
        """Random directions of the same norms at the same layers, to be used as this vector is: its control.

        seed: not negative. Another vector has other ones by the same seed.
        """
        rng = np.random.default_rng([seed, int(self.digest[:16], 16)])
        directions = {}
        for layer, norm in self.norms.items():
            drawn = rng.standard_normal(self.model.hidden_size)
            directions[layer] = (drawn * (norm / np.linalg.norm(drawn))).astype(np.float32)
        step = f"random directions of the norms of {self.digest[:12]}, seed {seed}"
        return replace(self._derived(directions, step), method="random", tuning=self.tuning)

    def _derived(self, directions: Mapping[int, Array], step: str, other: Self | None = None) -> Self:
        model = self.model.joined(other.model) if other else self.model
        provenance = (*self.provenance, step)
        return replace(self, directions=directions, model=model, normalised=False, provenance=provenance, tuning=None)

    def header(self) -> dict[str, object]:
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


def check_strength(strength: float) -> None:
    """Errors: VectorError for a strength that is not finite."""
    if not isinstance(strength, Number) or not math.isfinite(strength):
        raise VectorError(f"strength is {strength!r}; it must be a finite number")


def check_phase(phase: object) -> None:
    """Errors: VectorError for an unknown phase."""
    if phase not in PHASES:
        raise VectorError(f"no phase {phase!r}; allowed are {', '.join(PHASES)}")
