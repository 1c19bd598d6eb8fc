"""The few keys of a vector's recipe.toml that say how its file is used: vector, layer or layers, strength, phase.

Takes a path, gives the vector's file and its tuning. The rest of a recipe, how the vector is made, is not read here.
"""

from pathlib import Path

from edge_steer.core.errors import VectorError
from edge_steer.core.vector import PHASES, Tuning, parse_layers
from edge_steer.storage.toml import TomlTable

RECIPE = "recipe.toml"


def is_recipe(path: Path) -> bool:
    """Whether a path names an export folder, or the recipe in it, rather than a vector file."""
    return path.is_dir() or path.name == RECIPE


def read_recipe(path: Path) -> tuple[Path, Tuning]:
    """The vector's file and its tuning, of a folder or its recipe.toml. Errors: EdgeSteerError."""
    file = path / RECIPE if path.is_dir() else path
    table = TomlTable(file, f"a vector file, or a folder with a {RECIPE}")
    if not table.has("vector"):
        raise VectorError(f"{file} names no vector; a vector's recipe has vector, layer, strength and phase")
    if table.has("layer") and table.has("layers"):
        raise table.error("layers", "says again what layer says; leave one of them out")
    if not ((table.has("layer") or table.has("layers")) and table.has("strength")):
        raise VectorError(f"{file}: its layer and strength are not chosen yet; build it first")
    phase = next((phase for phase in PHASES if phase == table.rest.get("phase")), None)
    if phase is None:
        raise table.error("phase", f"allowed are {', '.join(PHASES)}")
    layers = parse_layers(table.text("layers")) if table.has("layers") else (table.whole("layer"),)
    tuning = Tuning(layers, table.number("strength"), phase)
    name = table.text("vector")
    if name != Path(name).name or is_recipe(file.parent / name):
        raise table.error("vector", f"{name!r} is not the name of a file in the folder")
    return file.parent / name, tuning
