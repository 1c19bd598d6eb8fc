"""A model's recipe: models/<name>/recipe.toml, where its weights come from and which layers are worth steering.

Takes a folder, gives a frozen value with every key checked. It fetches nothing and opens no model.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.vector import parse_layers, spans
from edge_steer.models.index_files import IndexFile
from edge_steer.storage.toml import TomlTable

BUNDLED = Path("models", "abacus")


@dataclass(frozen=True)
class ModelRecipe:
    """A model: `source` is a local folder or a hub id, pinned to a commit by `revision`.

    revision: None for a folder, and for a hub id that is not pinned: then it is the hub's main branch at the time.
    gguf: a ready-made GGUF of the same weights. index: a GGUF in wheels of the package index. ggufs: repositories of
    the hub that hold GGUF files of the model, made by others. blocks: how many the model has, None if unknown. layers:
    those worth steering. layer, strength: the tuned ones, None where nobody tuned. quants: the types it is meant to be
    quantised to. chat: on its chat template.
    """

    folder: Path
    name: str
    source: str
    revision: str | None
    gguf: Path | None
    index: IndexFile | None
    ggufs: tuple[str, ...]
    blocks: int | None
    layers: tuple[int, ...]
    layer: int | None
    strength: float | None
    quants: tuple[str, ...]
    chat: str | None

    @classmethod
    def load(cls, folder: str | Path) -> "ModelRecipe":
        """Read folder/recipe.toml. Errors: EdgeSteerError naming the file and the key."""
        folder = Path(folder)
        table = TomlTable(folder / "recipe.toml", "a recipe")
        source = table.text("source")
        gguf = table.text("gguf", optional=True)
        index = table.table("index")
        recipe = cls(
            folder=folder,
            name=table.text("name"),
            source=str(folder) if source == "." else source,
            revision=table.text("revision", optional=True) or None,
            gguf=folder / gguf if gguf else None,
            index=IndexFile.of(index) if index else None,
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


def bundled_model() -> Path:
    """The bundled model's folder: models/abacus here, or in the checkout this package is imported from.

    Errors: EdgeSteerError when there is none, as in an installed wheel.
    """
    for root in (Path(), Path(__file__).parents[2]):
        if (root / BUNDLED / "recipe.toml").is_file():
            return root / BUNDLED
    raise EdgeSteerError(f"no {BUNDLED} here; run in a checkout of edge-steer, or name a model folder")
