"""How a vector is made: the tables of export/<model>/<vector>/recipe.toml, which a build works through.

    [pairs]     solutions of the model itself, and who rewrites them densely; or `pairs = FILE` for pairs at hand
    [extract]   method, pooling, and in which form the model is read
    [sweep]     layers, strengths and problems to choose on; without it layer and strength are given
    [parity]    which types are held against the reference, and on which texts or problems

Takes a folder, gives a frozen value with every key checked. It opens no model and knows no task.
"""

from dataclasses import dataclass
from pathlib import Path

from edge_steer.core.vector import Phase, parse_layers
from edge_steer.recipes.recipe import phase_of
from edge_steer.storage.toml import TomlTable


@dataclass(frozen=True)
class MadePairs:
    """[pairs]: `count` solutions of the model in the type `quant` to a task, rewritten by `rewriter`.

    split: None is the one no evaluation uses. rewriter: a model of the endpoint at base_url, None as `pairs rewrite`
    has them, or a GGUF on this machine, in the recipe's folder if it is there. numbers, max_nll_ratio, keep_lowest:
    which pairs are kept, as checks.Rules.
    """

    task: str
    split: str | None
    count: int
    quant: str
    max_tokens: int | None
    rewriter: str | None
    base_url: str | None
    numbers: bool
    max_nll_ratio: float | None
    keep_lowest: int | None


@dataclass(frozen=True)
class Extraction:
    """[extract]: quant None is the reference in PyTorch, else a GGUF of that type in llama.cpp."""

    method: str = "mean_difference"
    pooling: str = "last"
    quant: str | None = None


@dataclass(frozen=True)
class Search:
    """[sweep]: as the options of `edge-steer sweep`. layers: None is all the model recipe says are worth steering."""

    task: str
    split: str | None
    strengths: str
    layers: tuple[int, ...] | None
    quant: str | None
    dev: int
    test: int
    max_tokens: int | None
    rule: str
    margin: float
    nll: bool


@dataclass(frozen=True)
class Comparison:
    """[parity]: as the options of `edge-steer parity`. quants: None is those of the model recipe.

    texts: how many to compare on: the reference's answers to a task, or without one solutions of the pairs.
    """

    quants: tuple[str, ...] | None = None
    texts: int = 16
    task: str | None = None
    split: str | None = None
    problems: int = 100


@dataclass(frozen=True)
class BuildRecipe:
    """What a build is told. layer, strength: given, or what an earlier build chose; pairs: a file at hand, or how."""

    folder: Path
    model: str
    vector: str
    phase: Phase
    layer: int | None
    strength: float | None
    pairs: Path | MadePairs
    extraction: Extraction
    search: Search | None
    comparison: Comparison

    @classmethod
    def load(cls, folder: Path) -> "BuildRecipe":
        """Read folder/recipe.toml. Errors: EdgeSteerError naming the file and the key."""
        table = TomlTable(folder / "recipe.toml", "a recipe")
        phase = phase_of(table)
        pairs = _pairs(table, folder)
        recipe = cls(
            folder=folder,
            model=table.text("model"),
            vector=table.text("vector"),
            phase=phase,
            layer=table.whole("layer") if table.has("layer") else None,
            strength=table.number("strength") if table.has("strength") else None,
            pairs=pairs,
            extraction=_extraction(table.table("extract")),
            search=_search(table.table("sweep")),
            comparison=_comparison(table.table("parity")),
        )
        table.text("chosen", optional=True)
        table.finish()
        if recipe.search is None and (recipe.layer is None or recipe.strength is None):
            key = "layer" if recipe.layer is None else "strength"
            raise table.error(key, "is missing; give layer and strength, or a [sweep] that chooses them")
        if Path(recipe.vector).name != recipe.vector or not recipe.vector.endswith(".gguf"):
            raise table.error("vector", f"{recipe.vector!r} is no name of a .gguf file in the recipe's folder")
        return recipe


def _pairs(table: TomlTable, folder: Path) -> Path | MadePairs:
    if isinstance(table.rest.get("pairs"), str):
        return (folder / table.text("pairs")).resolve()
    made = table.table("pairs")
    if made is None:
        raise table.error("pairs", "is missing; name a file of pairs, or say in [pairs] how they are made")
    found = MadePairs(
        task=made.text("task"),
        split=made.text("split", optional=True) or None,
        count=_count(made, "count", 50),
        quant=made.text("quant"),
        max_tokens=_optional_count(made, "max_tokens"),
        rewriter=made.text("rewriter", optional=True) or None,
        base_url=made.text("base_url", optional=True) or None,
        numbers=made.flag("numbers", True),
        max_nll_ratio=made.number("max_nll_ratio") if made.has("max_nll_ratio") else None,
        keep_lowest=_optional_count(made, "keep_lowest"),
    )
    made.finish()
    if found.base_url and found.rewriter and found.rewriter.endswith(".gguf"):
        raise made.error("base_url", f"the rewriter {found.rewriter} is a file on this machine; leave it out")
    return found


def _extraction(table: TomlTable | None) -> Extraction:
    if table is None:
        return Extraction()
    found = Extraction(
        method=table.text("method", optional=True) or Extraction.method,
        pooling=table.text("pooling", optional=True) or Extraction.pooling,
        quant=table.text("quant", optional=True) or None,
    )
    table.finish()
    return found


def _search(table: TomlTable | None) -> Search | None:
    if table is None:
        return None
    found = Search(
        task=table.text("task"),
        split=table.text("split", optional=True) or None,
        strengths=table.text("strengths"),
        layers=parse_layers(table.text("layers")) if table.has("layers") else None,
        quant=table.text("quant", optional=True) or None,
        dev=_count(table, "dev", 100),
        test=_count(table, "test", 200),
        max_tokens=_optional_count(table, "max_tokens"),
        rule=table.text("choose", optional=True) or "accuracy",
        margin=table.number("margin", 0.02),
        nll=table.flag("nll", True),
    )
    table.finish()
    return found


def _comparison(table: TomlTable | None) -> Comparison:
    if table is None:
        return Comparison()
    quants = table.texts("quants") if table.has("quants") else None
    found = Comparison(
        quants=quants,
        texts=_count(table, "texts", Comparison.texts),
        task=table.text("task", optional=True) or None,
        split=table.text("split", optional=True) or None,
        problems=_count(table, "problems", Comparison.problems),
    )
    table.finish()
    return found


def _count(table: TomlTable, key: str, default: int) -> int:
    value = table.whole(key, default)
    if not value:
        raise table.error(key, "is 0; at least 1 is needed")
    return value


def _optional_count(table: TomlTable, key: str) -> int | None:
    return _count(table, key, 1) if table.has(key) else None
