"""Recipes: what a model folder and a vector folder say of themselves, read from their recipe.toml.

    models/<name>/recipe.toml             where the weights come from, which layers, the tuned layer and strength
    export/<model>/<vector>/recipe.toml   model, vector, layer, strength, phase, the pairs, how they were chosen

Takes folders, gives frozen values with every key checked. It opens no model and no vector.
"""

import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from edge_steer.errors import EdgeSteerError
from edge_steer.files import readable
from edge_steer.vector import PHASES, Phase, parse_layers, spans

BUNDLED = Path("models", "abacus")


@dataclass(frozen=True)
class ModelRecipe:
    """A model: `source` is a local folder or a hub id (then pinned to a commit by `revision`).

    gguf: a ready-made GGUF of the same weights. layers: those worth steering. layer, strength: the defaults.
    quants: the types it is meant to be quantised to.
    """

    folder: Path
    name: str
    source: str
    revision: str | None
    gguf: Path | None
    layers: tuple[int, ...]
    layer: int
    strength: float
    quants: tuple[str, ...]

    @classmethod
    def load(cls, folder: Path) -> "ModelRecipe":
        """Read folder/recipe.toml. Errors: EdgeSteerError naming the file and the key."""
        table = _Table(folder / "recipe.toml")
        source = table.text("source")
        gguf = table.text("gguf", optional=True)
        recipe = cls(
            folder=folder,
            name=table.text("name"),
            source=str(folder) if source == "." else source,
            revision=table.text("revision", optional=True) or None,
            gguf=folder / gguf if gguf else None,
            layers=parse_layers(table.text("layers")),
            layer=table.whole("layer"),
            strength=table.number("strength"),
            quants=table.texts("quants"),
        )
        table.finish()
        if recipe.layer not in recipe.layers:
            raise table.error("layer", f"{recipe.layer} is not among layers {spans(recipe.layers)}")
        if source != "." and not re.fullmatch(r"[0-9a-f]{40}", recipe.revision or ""):
            raise table.error("revision", f"a source other than '.' needs a full commit hash, not {recipe.revision!r}")
        return recipe


@dataclass(frozen=True)
class VectorRecipe:
    """A shipped vector: where and how strongly it steers which model, from which pairs, and how that was chosen.

    vector: the file's name in the folder.
    """

    folder: Path
    model: str
    vector: str
    layer: int
    strength: float
    phase: Phase
    pairs: Path
    chosen: str

    @classmethod
    def load(cls, folder: Path) -> "VectorRecipe":
        """Read folder/recipe.toml; `pairs` there is relative to the folder. Errors: EdgeSteerError."""
        table = _Table(folder / "recipe.toml")
        named = table.text("phase")
        phase = next((known for known in PHASES if known == named), None)
        if phase is None:
            raise table.error("phase", f"allowed are {', '.join(PHASES)}")
        recipe = cls(
            folder=folder,
            model=table.text("model"),
            vector=table.text("vector"),
            layer=table.whole("layer"),
            strength=table.number("strength"),
            phase=phase,
            pairs=(folder / table.text("pairs")).resolve(),
            chosen=table.text("chosen"),
        )
        table.finish()
        return recipe


def bundled_model() -> Path:
    """The bundled model's folder: models/abacus here, or in the checkout this package is imported from.

    Errors: EdgeSteerError when there is none, as in an installed wheel.
    """
    for root in (Path(), Path(__file__).parents[1]):
        if (root / BUNDLED / "recipe.toml").is_file():
            return root / BUNDLED
    raise EdgeSteerError(f"no {BUNDLED} here; run in a checkout of edge-steer, or name a model folder with --model")


class _Table:
    """A TOML table whose keys are taken one by one, so that a leftover is a mistake."""

    def __init__(self, path: Path) -> None:
        self.path = path
        readable(path, "a recipe")
        try:
            self.rest = tomllib.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise EdgeSteerError(f"{path} is not TOML: {error}") from None
        self.taken: set[str] = set()

    def text(self, key: str, optional: bool = False) -> str:
        value = self._take(key, "" if optional else None)
        if not isinstance(value, str):
            raise self.error(key, f"{value!r} is not a string")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._take(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(key, f"{value!r} is not a list of strings")
        return tuple(value)

    def whole(self, key: str) -> int:
        value = self._take(key)
        if type(value) is not int or value < 0:
            raise self.error(key, f"{value!r} is not a whole number from 0 up")
        return value

    def number(self, key: str) -> float:
        value = self._take(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(key, f"{value!r} is not a finite number")
        return float(value)

    def finish(self) -> None:
        if self.rest:
            raise self.error(min(self.rest), f"no such key; allowed are {', '.join(sorted(self.taken))}")

    def error(self, key: str, why: str) -> EdgeSteerError:
        return EdgeSteerError(f"{self.path}: {key}: {why}")

    def _take(self, key: str, default: object = None) -> object:
        self.taken.add(key)
        value = self.rest.pop(key, default)
        if value is None:
            raise self.error(key, "is missing")
        return value
