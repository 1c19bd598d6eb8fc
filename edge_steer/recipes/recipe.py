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

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.vector import PHASES, Phase, SteeringVector
from edge_steer.evaluation.sweep import Results
from edge_steer.evaluation.sweep_files import model_of
from edge_steer.storage.files import readable, replacing
from edge_steer.storage.toml import TomlTable
from edge_steer.vectors import gguf_writer, native

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


def _toml(value: str | int | float) -> str:
    """A TOML value: its basic strings are those of JSON, but that DEL is escaped too."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def write_recipe(results: Results, vector: SteeringVector, phase: Phase, folder: Path) -> Path:
    """recipe.toml with the chosen layer and strength, and that layer's vector beside it.

    The vector is a control vector, or at layer 0, which those have not, a steering vector. Errors: EdgeSteerError if
    nothing was chosen but the unsteered model, or for another recipe or vector there: none is overwritten.
    """
    cell = results.chosen
    if cell is None or cell.layer is None:
        raise EdgeSteerError("no cell of the sweep was chosen over the unsteered model; there is no recipe to write")
    name = "vector.gguf" if cell.layer else "vector.safetensors"
    kept = folder / name
    alone = vector.at([cell.layer])
    if kept.exists() and not _same(gguf_writer.load(kept), alone):
        raise EdgeSteerError(f"{kept} is another vector; delete it, or name another folder with --recipe")
    on = f"{results.problems} {results.header['task']['name']} problems"
    recipe = VectorRecipe(
        folder=folder,
        model=results.header["model"]["name"],
        vector=name,
        layer=cell.layer,
        strength=cell.strength,
        phase=phase,
        pairs=None,
        chosen=f"edge-steer sweep: {model_of(results.header)}, {on}; {results.rule}",
    )
    path = recipe.save()
    if not kept.exists():
        if cell.layer:
            gguf_writer.write(vector, kept, layers=[cell.layer])
        else:
            native.save(alone, kept)
    return path


def _same(a: SteeringVector, b: SteeringVector) -> bool:
    return a.layers == b.layers and all((a.directions[layer] == b.directions[layer]).all() for layer in a.layers)
