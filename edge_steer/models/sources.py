"""What a MODEL names: a GGUF file, a Hugging Face folder, a folder with a recipe, a hub id, a quant in a hub id.

Takes what a user gives, gives files that lie here, fetched if need be. It opens no model and converts nothing.
"""

from pathlib import Path

from edge_steer.core.errors import ModelError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.quants import FLOATS
from edge_steer.models import index_files
from edge_steer.models.recipe import ModelRecipe
from edge_steer.storage import hub
from edge_steer.storage.files import size_in_words
from edge_steer.storage.hub import Listing, Snapshot


def find(
    source: str | Path,
    quant: str | None = None,
    *,
    revision: str | None = None,
    progress: Progress = SILENT,
) -> Path | Snapshot:
    """The files that `source` names: one GGUF file, or a snapshot of Hugging Face weights.

    A path ending in .gguf or a file is itself. A recipe's folder is the GGUF the recipe names, or the one of the
    package index if that is of type `quant` or no other is asked for; else its source. Of a hub id with a quant behind
    a colon (owner/name:Q4_K_M, or a file's name) it is that file; of one without that holds no safetensors it is the
    file of type `quant`, else one that can be quantised to it; with quant None Q4_K_M.
    Errors: ModelError.
    """
    path = Path(source)
    if path.is_dir():
        return _gguf_of_recipe(recipe_of(path), quant, revision, progress) or weights(path, revision)
    parts = None if isinstance(source, Path) or path.is_file() else hub.parse_hub_id(source)
    if _is_gguf_path(path, parts):
        return path
    if parts is None:
        raise ModelError(
            f"{source} is neither a GGUF file, nor a folder with Hugging Face files, nor a hub id like "
            "Qwen/Qwen3-0.6B or owner/name:Q4_K_M"
        )
    repo, file_or_quant = parts
    listing = hub.list_files(repo, revision)
    if file_or_quant is None and listing.weights:
        return hub.fetch_weights(listing)
    name = hub.choose_gguf(listing, file_or_quant or _type(listing, quant or hub.DEFAULT_QUANT))
    size = listing.files[name]
    progress.note(f"{name} of {repo} at {listing.commit[:10]}" + (f", {size_in_words(size)}" if size else ""))
    return hub.fetch_gguf(listing, name)


def names_gguf(source: str | Path) -> bool:
    """Whether `source` is a GGUF file by its name alone: a path, or a hub id with a quant or a file behind a colon."""
    path = Path(source)
    parts = None if isinstance(source, Path) or path.exists() else hub.parse_hub_id(source)
    return not path.is_dir() and (_is_gguf_path(path, parts) or bool(parts and parts[1]))


def weights(source: str | Path, revision: str | None = None) -> Snapshot:
    """Hugging Face files: a folder that holds them, the source of a folder's recipe, or a hub id.

    Errors: ModelError, or EdgeSteerError for a recipe that is damaged.
    """
    recipe = recipe_of(source)
    if recipe and recipe.source != str(recipe.folder):
        return hub.locate(recipe.source, revision or recipe.revision)
    return hub.locate(source, revision)


def recipe_of(source: str | Path) -> ModelRecipe | None:
    """The recipe of a model folder; None for what has none. Errors: EdgeSteerError for a damaged one."""
    folder = Path(source)
    return ModelRecipe.load(folder) if (folder / "recipe.toml").is_file() else None


def _gguf_of_recipe(
    recipe: ModelRecipe | None, quant: str | None, revision: str | None, progress: Progress
) -> Path | None:
    if recipe is None or recipe.gguf or recipe.index is None:
        return recipe.gguf if recipe else None
    fits = revision is None and quant in (None, recipe.index.quant)
    return index_files.fetch(recipe.index, progress) if fits else None


def _is_gguf_path(path: Path, hub_id: tuple[str, str | None] | None) -> bool:
    return path.is_file() or (path.suffix == ".gguf" and not (hub_id and hub_id[1]))


def _type(listing: Listing, quant: str) -> str:
    """`quant` itself where the repository has it, or else a type it can be made from."""
    for name in (quant, *FLOATS):
        try:
            hub.choose_gguf(listing, name)
        except ModelError:
            continue
        return name
    return quant
