"""Vectors by name, as a server and a chat have them, and what words make of them: steerings that fit the model.

Takes NAME=FILE:STRENGTH at the start and then names with strengths ("4 dense - 0.5 formal", terms, presets). Who starts
the program names files; a request never does.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from edge_steer.core.errors import VectorError
from edge_steer.core.steering import Offsets, Steering
from edge_steer.core.vector import ModelIdentity, Phase, SteeringVector, parse_layers
from edge_steer.vectors.read import load
from edge_steer.vectors.steer import split_strength

NAME = r"[A-Za-z_][A-Za-z0-9_.-]*"
MOST_TERMS = 32
_TERM = re.compile(rf"\s*([+-])?\s*(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)?\s*\*?\s*({NAME})\s*")


@dataclass(frozen=True)
class NamedFile:
    """A vector file and the name it is used by.

    strength: where nothing else is said; None is as the file is tuned. 0 is so too, but steers nothing by default.
    """

    name: str
    path: Path
    strength: float | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """[NAME=]FILE[:STRENGTH]; without a name it is the file's, less its ending."""
        name, equals, source = text.partition("=")
        path, strength = split_strength(source if equals else text)
        return cls(name if equals else path.stem, path, strength)


@dataclass(frozen=True)
class Term:
    """A vector by name and how to use it; None is as it was named: with the strength given then, or as tuned.

    sign: -1 where it is subtracted so.
    """

    name: str
    scale: float | None = None
    layers: tuple[int, ...] | None = None
    phase: Phase | None = None
    sign: int = 1


@dataclass(frozen=True)
class Applied:
    """A steering with the name it was asked by."""

    name: str
    steering: Steering

    def json(self) -> dict[str, object]:
        """As every answer tells it."""
        return {
            "name": self.name,
            "scale": self.steering.strength,
            "layers": list(self.steering.layers or ()),
            "phase": self.steering.phase,
            "sha256": self.steering.vector.digest,
        }


@dataclass(frozen=True)
class NamedVector:
    """A vector under its name. strength: None is as its file is tuned."""

    name: str
    vector: SteeringVector
    strength: float | None = None

    @property
    def as_tuned(self) -> Steering:
        """With its strength here, at the layers and in the phase of its tuning."""
        return Steering.of(self.vector, self.strength)


class NamedVectors:
    """Vectors by name, presets by name, and the default: what steers where nothing is said."""

    def __init__(self, model: ModelIdentity) -> None:
        self._model = model
        self._vectors: dict[str, NamedVector] = {}
        self.presets: dict[str, tuple[Applied, ...]] = {}
        self.default: tuple[Applied, ...] = ()

    @classmethod
    def of(cls, files: Iterable[NamedFile], model: ModelIdentity) -> Self:
        """The vectors of these files; by default they steer together, less those named with strength 0.

        Errors: VectorError, as of `load` and `apply`.
        """
        files = tuple(files)
        named = cls(model)
        for file in files:
            named.load(file.name, file.path, file.strength or None)
        named.default = named.apply(Term(file.name) for file in files if file.strength != 0)
        return named

    @property
    def vectors(self) -> Sequence[NamedVector]:
        """In the order they came; the place of one is its id."""
        return tuple(self._vectors.values())

    def load(self, name: str, path: str | Path, strength: float | None = None) -> NamedVector:
        """Read a vector file and add it. Errors: VectorError, as of `add` and for a file that is no vector."""
        self._check_free(name)
        return self.add(name, load(path), strength)

    def add(self, name: str, vector: SteeringVector, strength: float | None = None) -> NamedVector:
        """Take a vector under this name; the default stays as it was. strength: where none is said; None is as tuned.

        Errors: VectorError for a name that is taken or no name, a vector of another model.
        """
        self._check_free(name)
        named = NamedVector(name, vector, strength)
        Offsets.of([named.as_tuned], self._model)
        self._vectors[name] = named
        return named

    def unload(self, name: str) -> None:
        """Forget a vector, and in the default and presets too. Errors: VectorError for one that is not there."""
        self.get(name)
        del self._vectors[name]
        self.default = tuple(applied for applied in self.default if applied.name != name)
        self.presets = {
            preset: steering
            for preset, steering in self.presets.items()
            if all(applied.name != name for applied in steering)
        }

    def apply(self, terms: Iterable[Term]) -> tuple[Applied, ...]:
        """What these terms put to use; those of strength 0 are left out. Errors: VectorError."""
        terms = tuple(terms)
        if len(terms) > MOST_TERMS:
            raise VectorError(f"{len(terms)} vectors asked; one request takes at most {MOST_TERMS}")
        applied = tuple(self._applied(term) for term in terms)
        Offsets.of([one.steering for one in applied], self._model)
        return tuple(one for one in applied if one.steering.strength)

    def add_preset(self, name: str, words: str) -> None:
        """A name for a steering, which clients see as a model. Errors: VectorError."""
        if not re.fullmatch(NAME, name):
            raise VectorError(f"{name[:60]!r} is no name for a preset; use letters, digits, _ . and -")
        self.presets[name] = self.apply(parse_words(words))

    def _check_free(self, name: str) -> None:
        if not re.fullmatch(NAME, name):
            raise VectorError(f"{name[:60]!r} is no name for a vector; use letters, digits, _ . and -")
        if name in self._vectors:
            raise VectorError(f"there is a vector {name!r} already; give this one another name")

    def _applied(self, term: Term) -> Applied:
        vector = self.get(term.name)
        strength = vector.strength if term.scale is None else term.scale
        steering = Steering.of(vector.vector, strength, term.layers, term.phase)
        if term.sign < 0:
            steering = Steering(steering.vector, -steering.strength, steering.layers, steering.phase)
        return Applied(term.name, steering)

    def get(self, name: str) -> NamedVector:
        """Errors: VectorError for a name that is not there, with those that are."""
        if name not in self._vectors:
            there = ", ".join(self._vectors) or "none"
            raise VectorError(f"no vector {name[:60]!r} here; there are: {there}")
        return self._vectors[name]


def parse_words(words: str) -> tuple[Term, ...]:
    """ "4 dense - 0.5 formal" as terms; "" is none. A name without a number is as it was named.

    Errors: VectorError for anything else.
    """
    terms: list[Term] = []
    at = 0
    while words[at:].strip():
        match = _TERM.match(words, at)
        if not match or (terms and not match[1]) or len(terms) >= MOST_TERMS:
            raise VectorError(f"cannot read the steering {words[:80]!r}; write it as: 4 dense - 0.5 formal")
        sign = -1 if match[1] == "-" else 1
        if match[2] is None:
            terms.append(Term(match[3], sign=sign))
        else:
            terms.append(Term(match[3], sign * float(match[2])))
        at = match.end()
    return tuple(terms)


def read_layers(layers: str | Sequence[int] | None) -> tuple[int, ...] | None:
    """Layers as a request gives them: "10-14" or [10, 11]. Errors: VectorError."""
    if isinstance(layers, str):
        return parse_layers(layers)
    return None if layers is None else tuple(layers)
