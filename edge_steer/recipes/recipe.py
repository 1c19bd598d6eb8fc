"""A vector's recipe: export/<model>/<vector>/recipe.toml with model, vector, layer, strength, phase and pairs.

Takes folders, gives a frozen value with every key checked, writes a recipe and fills in what a build chose. How the
vector is made is in the recipe's tables, which build_recipe.py reads. It opens no model and no vector.
"""

import os
from dataclasses import dataclass, fields
from pathlib import Path

import tomlkit

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.vector import PHASES, Phase
from edge_steer.storage.files import readable, write_text
from edge_steer.storage.toml import TomlTable

TABLES = ("pairs", "extract", "sweep", "parity")  # of a vector's recipe: how it is made
BUILT_PAIRS = Path("build", "pairs.jsonl")  # where a build keeps the pairs it made


@dataclass(frozen=True)
class VectorRecipe:
    """A shipped vector: where and how strongly it steers which model, from which pairs, and how that was chosen.

    vector: the file's name in the folder. pairs: None where they are not at hand, as for a vector that came as a file.
    """

    folder: Path
    model: str
    vector: str
    layer: int
    strength: float
    phase: Phase
    pairs: Path | None
    chosen: str

    @classmethod
    def load(cls, folder: str | Path) -> "VectorRecipe":
        """Read folder/recipe.toml; `pairs` there is relative to the folder. Errors: EdgeSteerError."""
        folder = Path(folder)
        table = TomlTable(folder / "recipe.toml", "a recipe")
        phase = phase_of(table)
        tables = [name for name in TABLES if table.has(name) and isinstance(table.rest[name], dict)]
        for name in tables:
            table.table(name)
        if "sweep" in tables and not (table.has("layer") and table.has("strength")):
            raise table.error("layer", f"is not chosen yet; build {folder} first")
        pairs = str(BUILT_PAIRS) if "pairs" in tables else table.text("pairs", optional=True)
        recipe = cls(
            folder=folder,
            model=table.text("model"),
            vector=table.text("vector"),
            layer=table.whole("layer"),
            strength=table.number("strength"),
            phase=phase,
            pairs=(folder / pairs).resolve() if pairs else None,
            chosen=table.text("chosen"),
        )
        for key in ("template", "weights"):  # BuildRecipe's matter
            table.text(key, optional=True)
        table.finish()
        return recipe

    def save(self) -> Path:
        """Write folder/recipe.toml, unless it says the same already; the path.

        Errors: EdgeSteerError where a recipe says otherwise: it is never overwritten.
        """
        path = self.folder / "recipe.toml"
        if path.exists():
            if difference := self._difference(VectorRecipe.load(self.folder)):
                raise EdgeSteerError(f"{path} stays as it is: {difference}; delete it, or name another folder")
            return path
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgeSteerError(f"cannot make the folder {self.folder}: {error.strerror}; name another") from None
        document = tomlkit.document()
        for key in ("model", "vector", "layer", "strength", "phase"):
            document[key] = getattr(self, key)
        if self.pairs:
            document["pairs"] = Path(os.path.relpath(self.pairs, self.folder.resolve())).as_posix()
        document["chosen"] = self.chosen
        return write_text(path, tomlkit.dumps(document))

    def _difference(self, other: "VectorRecipe") -> str:
        """The first key that the other recipe has otherwise, in words; "" if there is none."""
        for entry in fields(self):
            theirs, ours = getattr(other, entry.name), getattr(self, entry.name)
            if entry.name != "folder" and theirs != ours:
                return f"its {entry.name} is {theirs}, not {ours}"
        return ""


def phase_of(table: TomlTable) -> Phase:
    """The key `phase` of a recipe. Errors: EdgeSteerError."""
    text = table.text("phase")
    phase = next((known for known in PHASES if known == text), None)
    if phase is None:
        raise table.error("phase", f"allowed are {', '.join(PHASES)}")
    return phase


def fill(folder: str | Path, *, layer: int, strength: float, chosen: str) -> None:
    """Write what was chosen into folder/recipe.toml, whose other lines stay as they are. Errors: EdgeSteerError."""
    path = readable(Path(folder) / "recipe.toml", "a recipe")
    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EdgeSteerError(f"{path} is not TOML: {error}") from None
    document.update({"layer": layer, "strength": strength, "chosen": chosen})
    write_text(path, tomlkit.dumps(document))
