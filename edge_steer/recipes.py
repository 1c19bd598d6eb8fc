"""Recipes: what a model folder and a vector folder say of themselves, read from their recipe.toml.

    models/<name>/recipe.toml             where the weights come from, which layers, the tuned layer and strength
    export/<model>/<vector>/recipe.toml   model, vector, layer, strength, phase, the pairs, how they were chosen

Takes folders, gives frozen values with every key checked, and writes a vector's. How a vector is made is in the tables
of its recipe, which build_recipe.py reads. It opens no model and no vector.
"""

import json
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path

from edge_steer.errors import EdgeSteerError
from edge_steer.files import readable, replacing
from edge_steer.toml_table import TomlTable
from edge_steer.vector import PHASES, Phase, parse_layers, spans

BUNDLED = Path("models", "abacus")
TABLES = ("pairs", "extract", "sweep", "parity")  # of a vector's recipe: how it is made
BUILT_PAIRS = Path("build", "pairs.jsonl")  # where a build keeps the pairs it made


@dataclass(frozen=True)
class ModelRecipe:
    """A model: `source` is a local folder or a hub id, pinned to a commit by `revision`.

    revision: None for a folder, and for a hub id that is not pinned: then it is the hub's main branch at the time.
    gguf: a ready-made GGUF of the same weights. ggufs: repositories of the hub that hold GGUF files of the model, made
    by others. blocks: how many the model has, None if not told. layers: those worth steering. layer, strength: the
    tuned ones, None where nobody tuned. quants: the types it is meant to be quantised to. chat: on its chat template.
    """

    folder: Path
    name: str
    source: str
    revision: str | None
    gguf: Path | None
    ggufs: tuple[str, ...]
    blocks: int | None
    layers: tuple[int, ...]
    layer: int | None
    strength: float | None
    quants: tuple[str, ...]
    chat: str | None

    @classmethod
    def load(cls, folder: Path) -> "ModelRecipe":
        """Read folder/recipe.toml. Errors: EdgeSteerError naming the file and the key."""
        table = TomlTable(folder / "recipe.toml", "a recipe")
        source = table.text("source")
        gguf = table.text("gguf", optional=True)
        recipe = cls(
            folder=folder,
            name=table.text("name"),
            source=str(folder) if source == "." else source,
            revision=table.text("revision", optional=True) or None,
            gguf=folder / gguf if gguf else None,
            ggufs=table.texts("ggufs", ()),
            blocks=table.whole("blocks") if table.has("blocks") else None,
            layers=parse_layers(table.text("layers")),
            layer=table.whole("layer") if table.has("layer") else None,
            strength=table.number("strength") if table.has("strength") else None,
            quants=table.texts("quants"),
            chat=table.text("chat", optional=True) or None,
        )
        table.finish()
        if recipe.layer is not None and recipe.layer not in recipe.layers:
            raise table.error("layer", f"{recipe.layer} is not among layers {spans(recipe.layers)}")
        if recipe.blocks is not None and max(recipe.layers) >= recipe.blocks:
            raise table.error("layers", f"{spans(recipe.layers)} go beyond the last of {recipe.blocks} blocks")
        if not recipe.quants:
            raise table.error("quants", "is empty; name at least one type, such as Q8_0")
        if recipe.revision and not (source != "." and re.fullmatch(r"[0-9a-f]{40}", recipe.revision)):
            raise table.error("revision", f"{recipe.revision!r} is no full commit hash of a hub id; leave it out")
        return recipe


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
    def load(cls, folder: Path) -> "VectorRecipe":
        """Read folder/recipe.toml; `pairs` there is relative to the folder. Errors: EdgeSteerError."""
        table = TomlTable(folder / "recipe.toml", "a recipe")
        phase = phase_of(table)
        tables = [name for name in TABLES if table.has(name) and isinstance(table.rest[name], dict)]
        for name in tables:
            table.table(name)
        if "sweep" in tables and not (table.has("layer") and table.has("strength")):
            raise table.error("layer", f"is not chosen yet; run: edge-steer build {folder}")
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
        table.finish()
        return recipe

    def save(self) -> Path:
        """Write folder/recipe.toml, unless it says the same already; the path.

        Errors: EdgeSteerError where a recipe says otherwise: it is never overwritten.
        """
        path = self.folder / "recipe.toml"
        if path.exists():
            if difference := self._difference(VectorRecipe.load(self.folder)):
                raise EdgeSteerError(f"{path} is kept: {difference}; delete it, or name another folder with --recipe")
            return path
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgeSteerError(f"cannot make the folder {self.folder}: {error.strerror}; name another") from None
        entries: dict[str, str | int | float] = {
            "model": self.model,
            "vector": self.vector,
            "layer": self.layer,
            "strength": self.strength,
            "phase": self.phase,
        }
        if self.pairs:
            entries["pairs"] = Path(os.path.relpath(self.pairs, self.folder.resolve())).as_posix()
        entries["chosen"] = self.chosen
        with replacing(path) as temporary:
            temporary.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in entries.items()), "utf-8")
        return path

    def _difference(self, found: "VectorRecipe") -> str:
        for entry in fields(self):
            theirs, ours = getattr(found, entry.name), getattr(self, entry.name)
            if entry.name != "folder" and theirs != ours:
                return f"its {entry.name} is {theirs}, not {ours}"
        return ""


def phase_of(table: TomlTable) -> Phase:
    """The key `phase` of a recipe. Errors: EdgeSteerError."""
    named = table.text("phase")
    phase = next((known for known in PHASES if known == named), None)
    if phase is None:
        raise table.error("phase", f"allowed are {', '.join(PHASES)}")
    return phase


def fill(folder: Path, *, layer: int, strength: float, chosen: str) -> None:
    """Write what was chosen into folder/recipe.toml, whose other lines stay as they are. Errors: EdgeSteerError."""
    path = folder / "recipe.toml"
    lines = readable(path, "a recipe").read_text(encoding="utf-8").splitlines()
    end = next((i for i, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    top, tables = lines[:end], lines[end:]
    while top and not top[-1].strip():
        top.pop()
    values: dict[str, str | int | float] = {"layer": layer, "strength": strength, "chosen": chosen}
    for key, value in values.items():
        line = f"{key} = {_toml(value)}"
        at = next((i for i, old in enumerate(top) if re.match(rf"{key}\s*=", old)), None)
        if at is None:
            top.append(line)
        else:
            top[at] = line
    with replacing(path) as temporary:
        temporary.write_text("\n".join([*top, *[""] * bool(tables), *tables]) + "\n", encoding="utf-8")


def bundled_model() -> Path:
    """The bundled model's folder: models/abacus here, or in the checkout this package is imported from.

    Errors: EdgeSteerError when there is none, as in an installed wheel.
    """
    for root in (Path(), Path(__file__).parents[1]):
        if (root / BUNDLED / "recipe.toml").is_file():
            return root / BUNDLED
    raise EdgeSteerError(f"no {BUNDLED} here; run in a checkout of edge-steer, or name a model folder with --model")


def _toml(value: str | int | float) -> str:
    """A TOML value: its basic strings are those of JSON, but that DEL is escaped too."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
