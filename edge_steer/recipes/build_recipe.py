"""How a vector is made: the tables of export/<model>/<vector>/recipe.toml.

    [pairs]     solutions of the model itself, and who rewrites them densely; or `pairs = FILE` for a file of pairs
    [extract]   method, pooling, and in which form the model is read
    [sweep]     layers, strengths and problems to choose on; without it the recipe gives layer and strength
    [parity]    which types are compared with the reference, and on which texts or problems

Takes a folder, gives a frozen value with every key checked. It opens no model and knows no task.
"""

from dataclasses import dataclass
from pathlib import Path

from edge_steer.core.backend import PLAIN
from edge_steer.core.vector import Phase, parse_layers
from edge_steer.pairs.rules import DEFAULT_RULES_NAME
from edge_steer.recipes.recipe import BUILT_PAIRS, phase_of
from edge_steer.storage.files import read_text
from edge_steer.storage.toml import TomlTable
from edge_steer.tasks.protocols import PROTOCOLS, Protocol


@dataclass(frozen=True)
class PairTable:
    """[pairs]: `count` solutions of the model in the type `quant` to a task, rewritten by `rewriter`.

    split: None is the one no evaluation uses. rewriter: a model of the endpoint at base_url, None as `pairs rewrite`
    has them, or a GGUF on this machine, in the recipe's folder if it is there. rules: as pairs.rules.read_rules, a file
    in the recipe's folder if it is there. candidates: rewrites of each solution, of which the likeliest is kept.
    larger: instead of all these, the model of models/<larger> in the type larger_quant, whose right solutions are the
    positives (InFamilySteer). numbers, max_nll_ratio, keep_lowest: which pairs pass, as pairs.criteria.Criteria.
    """

    task: str
    split: str | None
    count: int
    quant: str
    max_tokens: int | None
    rewriter: str | None
    base_url: str | None
    rules: str
    candidates: int
    larger: str | None
    larger_quant: str | None
    numbers: bool
    max_nll_ratio: float | None
    keep_lowest: int | None

    @property
    def is_file_rewriter(self) -> bool:
        """Whether a GGUF on this machine rewrites, and no endpoint."""
        return bool(self.rewriter and self.rewriter.endswith(".gguf"))


@dataclass(frozen=True)
class ExtractTable:
    """[extract]: quant None is the reference in PyTorch, else a GGUF of that type in llama.cpp."""

    method: str = "mean_difference"
    pooling: str = "last"
    quant: str | None = None


@dataclass(frozen=True)
class SweepTable:
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
class ParityTable:
    """[parity]: as the options of `edge-steer parity`. quants: None is those of the model recipe.

    texts: how many to compare on: the reference's answers to a task, or without one solutions of the pairs.
    """

    quants: tuple[str, ...] | None = None
    texts: int = 16
    task: str | None = None
    split: str | None = None
    problems: int = 100


@dataclass(frozen=True)
class Asking:
    """How every task of a recipe is asked: by a protocol, and what is said instead of its words; see TaskSettings.

    None is as the protocol or the task has it. system: "" is none.
    """

    protocol: Protocol = "densesteer"
    prompt: str | None = None
    system: str | None = None
    stop: tuple[str, ...] | None = None


@dataclass(frozen=True)
class BuildRecipe:
    """A vector's recipe with its tables.

    layer, strength: chosen by hand or by an earlier build, None while a sweep has not chosen them. pairs: a file, or
    how to make them. template: in place of the model's chat template, as EngineOptions has it. from_index: whether the
    model is the GGUF that its recipe names in the package index, and not the weights of the hub.
    """

    folder: Path
    model: str
    vector: str
    phase: Phase
    layer: int | None
    strength: float | None
    pairs: Path | PairTable
    extract: ExtractTable
    sweep: SweepTable | None
    parity: ParityTable
    template: str | None = None
    asking: Asking = Asking()
    from_index: bool = False

    @classmethod
    def load(cls, folder: str | Path) -> "BuildRecipe":
        """Read folder/recipe.toml. Errors: EdgeSteerError naming the file and the key."""
        folder = Path(folder)
        table = TomlTable(folder / "recipe.toml", "a recipe")
        if table.has("layers"):
            raise table.error("layers", "are a trained vector's; a build makes vectors of pairs, at one layer")
        phase = phase_of(table)
        pairs = _pair_table(table, folder)
        recipe = cls(
            folder=folder,
            model=table.text("model"),
            vector=table.text("vector"),
            phase=phase,
            layer=table.whole("layer") if table.has("layer") else None,
            strength=table.number("strength") if table.has("strength") else None,
            pairs=pairs,
            extract=_extract_table(table.table("extract")),
            sweep=_sweep_table(table.table("sweep")),
            parity=_parity_table(table.table("parity")),
            template=_template(table, folder),
            asking=_asking(table),
            from_index=_from_index(table),
        )
        table.text("chosen", optional=True)
        table.finish()
        if recipe.sweep is None and (recipe.layer is None or recipe.strength is None):
            key = "layer" if recipe.layer is None else "strength"
            raise table.error(key, "is missing; give layer and strength, or a [sweep] that chooses them")
        if Path(recipe.vector).name != recipe.vector or not recipe.vector.endswith(".gguf"):
            raise table.error("vector", f"{recipe.vector!r} is no name of a .gguf file in the recipe's folder")
        return recipe

    @property
    def pairs_file(self) -> Path:
        """The pairs to extract from: the file that the recipe names, or the one that a build makes."""
        return self.pairs if isinstance(self.pairs, Path) else self.folder / BUILT_PAIRS

    def near(self, name: str) -> Path:
        """A file named in the recipe: in the recipe's folder if it is there."""
        return self.folder / name if (self.folder / name).is_file() else Path(name)

    def task_name(self, task: str) -> str:
        """A task as load_task knows it, its file looked for in the recipe's folder first."""
        name, equals, file = task.partition("=")
        if equals:
            return f"{name}={self.near(file)}"
        return str(self.near(task)) if task.endswith(".toml") else task


def _from_index(table: TomlTable) -> bool:
    weights = table.text("weights", optional=True) or "source"
    if weights not in ("source", "index"):
        raise table.error("weights", f"{weights!r}; allowed are source, index")
    return weights == "index"


def _pair_table(table: TomlTable, folder: Path) -> Path | PairTable:
    if isinstance(table.rest.get("pairs"), str):
        return (folder / table.text("pairs")).resolve()
    inner = table.table("pairs")
    if inner is None:
        raise table.error("pairs", "is missing; name a file of pairs, or say in [pairs] how they are made")
    pairs = PairTable(
        task=inner.text("task"),
        split=inner.text("split", optional=True) or None,
        count=_count(inner, "count", 50),
        quant=inner.text("quant"),
        max_tokens=_optional_count(inner, "max_tokens"),
        rewriter=inner.text("rewriter", optional=True) or None,
        base_url=inner.text("base_url", optional=True) or None,
        rules=inner.text("rules", optional=True) or DEFAULT_RULES_NAME,
        candidates=_count(inner, "candidates", 1),
        larger=inner.text("larger", optional=True) or None,
        larger_quant=inner.text("larger_quant", optional=True) or None,
        numbers=inner.flag("numbers", True),
        max_nll_ratio=inner.number("max_nll_ratio") if inner.has("max_nll_ratio") else None,
        keep_lowest=_optional_count(inner, "keep_lowest"),
    )
    inner.finish()
    if (pairs.larger is None) != (pairs.larger_quant is None):
        raise inner.error("larger", "is not there without larger_quant, nor the other way round")
    if pairs.larger and (pairs.rewriter or pairs.base_url or pairs.rules != DEFAULT_RULES_NAME or pairs.candidates > 1):
        raise inner.error("larger", "solves instead of a rewriter; leave out rewriter, base_url, rules and candidates")
    if pairs.base_url and pairs.is_file_rewriter:
        raise inner.error("base_url", f"the rewriter {pairs.rewriter} is a file on this machine; leave it out")
    return pairs


def _extract_table(table: TomlTable | None) -> ExtractTable:
    if table is None:
        return ExtractTable()
    extract = ExtractTable(
        method=table.text("method", optional=True) or ExtractTable.method,
        pooling=table.text("pooling", optional=True) or ExtractTable.pooling,
        quant=table.text("quant", optional=True) or None,
    )
    table.finish()
    return extract


def _sweep_table(table: TomlTable | None) -> SweepTable | None:
    if table is None:
        return None
    sweep = SweepTable(
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
    return sweep


def _parity_table(table: TomlTable | None) -> ParityTable:
    if table is None:
        return ParityTable()
    quants = table.texts("quants") if table.has("quants") else None
    parity = ParityTable(
        quants=quants,
        texts=_count(table, "texts", ParityTable.texts),
        task=table.text("task", optional=True) or None,
        split=table.text("split", optional=True) or None,
        problems=_count(table, "problems", ParityTable.problems),
    )
    table.finish()
    return parity


def _asking(table: TomlTable) -> Asking:
    name = table.text("protocol", optional=True) or Asking.protocol
    if (protocol := next((known for known in PROTOCOLS if known == name), None)) is None:
        raise table.error("protocol", f"{name!r} is none of {', '.join(PROTOCOLS)}")
    asking = Asking(
        protocol,
        prompt=table.text("prompt") if table.has("prompt") else None,
        system=table.text("system") if table.has("system") else None,
        stop=table.texts("stop") if table.has("stop") else None,
    )
    if asking.prompt is not None and "{question}" not in asking.prompt:
        raise table.error("prompt", f"{asking.prompt!r} has no {{question}} in it")
    if "" in (asking.stop or ()):
        raise table.error("stop", "a stop string is empty; leave it out")
    return asking


def _template(table: TomlTable, folder: Path) -> str | None:
    """The key template: chat, none, or a Jinja file in the recipe's folder."""
    name = table.text("template", optional=True) or "chat"
    if name in ("chat", PLAIN):
        return None if name == "chat" else PLAIN
    return read_text(folder / name, "a Jinja chat template")


def _count(table: TomlTable, key: str, default: int) -> int:
    value = table.whole(key, default)
    if not value:
        raise table.error(key, "is 0; at least 1 is needed")
    return value


def _optional_count(table: TomlTable, key: str) -> int | None:
    return _count(table, key, 1) if table.has(key) else None
