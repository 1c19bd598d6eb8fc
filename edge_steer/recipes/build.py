"""Where a build stands: what each step depends on, what it made, and whether it is to be done again.

Takes export/<model>/<vector>/recipe.toml, the model's recipe and build.json, in which each done step keeps digests of
what it was made from and of what it made. It runs no step and no model; build_steps.py does.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.quants import QUANTS
from edge_steer.core.vector import spans
from edge_steer.evaluation.sweep import RULES, parse_strengths
from edge_steer.extraction.methods import method_named
from edge_steer.extraction.pooling import pooling_named
from edge_steer.models.recipe import ModelRecipe
from edge_steer.pairs.checks import Rules
from edge_steer.pairs.rewrite import RULES as REWRITING
from edge_steer.recipes.build_recipe import BuildRecipe, MadePairs
from edge_steer.recipes.recipe import BUILT_PAIRS
from edge_steer.storage import hub
from edge_steer.storage.files import digest, readable, replacing
from edge_steer.tasks.load import load_task

Step = Literal["generate", "rewrite", "check", "extract", "sweep", "export", "parity"]
STEPS: tuple[Step, ...] = get_args(Step)
BEFORE: dict[Step, tuple[Step, ...]] = {
    "generate": (),
    "rewrite": ("generate",),
    "check": ("rewrite",),
    "extract": ("check",),
    "sweep": ("extract",),
    "export": ("extract", "sweep"),
    "parity": ("check", "export"),
}
FORMAT = "edge-steer build 1"
LOCK = "build.json"
REWRITTEN = Path("build", "rewritten.jsonl")
VECTOR = Path("build", "vector.safetensors")


@dataclass(frozen=True)
class State:
    """Of a step: "given" (the recipe leaves nothing to do), "done", or "to do" and why."""

    kind: Literal["given", "done", "to do"]
    why: str = ""


@dataclass
class Build:
    """One folder's build. lock: what build.json holds."""

    recipe: BuildRecipe
    model: ModelRecipe
    lock: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, model_folder: Path | None = None) -> "Build":
        """Read both recipes and build.json, and check all that can be checked before anything runs.

        model_folder: None is models/<model> beside the export folder, or else here. Errors: EdgeSteerError.
        """
        recipe = BuildRecipe.load(folder)
        model = ModelRecipe.load(model_folder or _model_folder(folder, recipe.model))
        _check(recipe, model)
        return cls(recipe, model, _read(folder / LOCK))

    def save(self) -> None:
        """Write build.json."""
        with replacing(self.folder / LOCK) as temporary:
            temporary.write_text(json.dumps({"format": FORMAT, **self.lock}, indent=1) + "\n", encoding="utf-8")

    def state(self, step: Step) -> State:
        """Whether a step is done, by what it was made from and what it made. Errors: EdgeSteerError for no pairs."""
        if step in self.given:
            return State("given")
        for before in BEFORE[step]:
            if self.state(before).kind == "to do":
                return State("to do", f"after {before}")
        if step not in self.steps:
            return State("to do", "not done yet")
        now, kept = self.inputs(step), self.steps[step]
        if changed := next((key for key in now if now[key] != kept["inputs"].get(key)), None):
            return State("to do", f"its {changed} changed")
        for name, was in kept["outputs"].items():
            if not (self.folder / name).is_file():
                return State("to do", f"{name} is missing")
            if digest(self.folder / name) != was:
                return State("to do", f"{name} changed")
        return State("done")

    def forget(self, first: Step) -> None:
        """Take this step and all behind it as not done."""
        for step in STEPS[STEPS.index(first) :]:
            self.steps.pop(step, None)

    def inputs(self, step: Step) -> dict[str, object]:
        """What a step's output depends on, as build.json keeps it; the steps before it must be done."""
        found: dict[str, object] = json.loads(json.dumps(self._inputs(step)))
        return found

    @property
    def folder(self) -> Path:
        return self.recipe.folder

    @property
    def steps(self) -> dict[str, Any]:
        """What build.json keeps of each done step: inputs, outputs with their digests, what was found, seconds."""
        kept: dict[str, Any] = self.lock.setdefault("steps", {})
        return kept

    @property
    def given(self) -> frozenset[Step]:
        """Steps for which the recipe leaves nothing to do."""
        making: tuple[Step, ...] = ("generate", "rewrite", "check") if isinstance(self.recipe.pairs, Path) else ()
        searching: tuple[Step, ...] = () if self.recipe.search else ("sweep",)
        return frozenset((*making, *searching))

    @property
    def at(self) -> tuple[int, float]:
        """The layer and the strength: what the sweep chose, or else the recipe's."""
        chosen = self.steps["sweep"]["found"] if self.recipe.search else asdict(self.recipe)
        return chosen["layer"], chosen["strength"]

    @property
    def pairs_file(self) -> Path:
        return self.recipe.pairs if isinstance(self.recipe.pairs, Path) else self.folder / BUILT_PAIRS

    @property
    def rewriter_file(self) -> Path | None:
        """The GGUF that rewrites, if it is no endpoint that does."""
        made = self.recipe.pairs
        if isinstance(made, Path) or not made.rewriter or not made.rewriter.endswith(".gguf"):
            return None
        return readable(self._near(made.rewriter), "a GGUF model that rewrites")

    @property
    def quants(self) -> tuple[str, ...]:
        """The types that parity is shown for."""
        return _upper(self.recipe.comparison.quants or self.model.quants)

    @property
    def swept_quant(self) -> str:
        """The type the sweep runs on; without one in the recipe, the model recipe's last."""
        named = self.recipe.search.quant if self.recipe.search else None
        return (named or self.model.quants[-1]).upper()

    @property
    def swept_layers(self) -> tuple[int, ...]:
        return (self.recipe.search.layers if self.recipe.search else None) or self.model.layers

    @property
    def revision(self) -> str | None:
        """The commit of a hub model: its recipe's, else the one that build.json keeps."""
        return self.model.revision or self.lock.get("revision")

    @property
    def repo(self) -> str | None:
        """The hub id of the model; None for one on this machine."""
        named = hub.split(self.model.source)
        return named[0] if named and not Path(self.model.source).is_dir() else None

    @property
    def failures(self) -> tuple[str, ...]:
        """The types whose parity is out of tolerance."""
        verdicts = self.steps.get("parity", {}).get("found", {}).get("verdicts", {})
        return tuple(quant for quant, verdict in verdicts.items() if verdict == "fail")

    def task_name(self, given: str) -> str:
        """A task as load_task knows it, its file looked for in the recipe's folder first."""
        name, equals, file = given.partition("=")
        if equals:
            return f"{name}={self._near(file)}"
        return str(self._near(given)) if given.endswith(".toml") else given

    def _inputs(self, step: Step) -> dict[str, object]:
        recipe, made, search = self.recipe, self.recipe.pairs, self.recipe.search
        if step == "generate" and isinstance(made, MadePairs):
            return {"model": self._made_from(made.quant), "task": self._task_id(made.task), "split": made.split,
                    "count": made.count, "max_tokens": made.max_tokens}  # fmt: skip
        if step == "rewrite" and isinstance(made, MadePairs):
            file = self.rewriter_file
            return {"solutions": self._output("generate"), "rewriter": digest(file) if file else made.rewriter,
                    "base_url": made.base_url, "rules": hashlib.sha256(REWRITING.encode()).hexdigest()}  # fmt: skip
        if step == "check" and isinstance(made, MadePairs):
            return {"pairs": self._output("rewrite", REWRITTEN), "model": self._made_from(made.quant),
                    "rules": asdict(rules_of(made))}  # fmt: skip
        if step == "extract":
            return {"pairs": digest(readable(self.pairs_file, "pairs, one JSON object a line")),
                    "model": self._made_from(recipe.extraction.quant),
                    "method": recipe.extraction.method, "pooling": recipe.extraction.pooling}  # fmt: skip
        if step == "sweep" and search:
            settings = {**asdict(search), "task": self._task_id(search.task), "layers": self.swept_layers}
            return {"vector": self._output("extract", VECTOR), "model": self._made_from(self.swept_quant),
                    "settings": settings, "phase": recipe.phase}  # fmt: skip
        layer, strength = self.at
        if step == "export":
            return {"vector": self._output("extract", VECTOR), "layer": layer}
        compared = recipe.comparison
        on: dict[str, object] = {"pairs": digest(self.pairs_file)}
        if compared.task:
            on = {"task": self._task_id(compared.task), "split": compared.split, "problems": compared.problems}
        return {"vector": self._output("export"), **on, "model": self._made_from(None),
                "quants": self.quants, "texts": compared.texts,
                "layer": layer, "strength": strength, "phase": recipe.phase}  # fmt: skip

    def _near(self, name: str) -> Path:
        return self.folder / name if (self.folder / name).is_file() else Path(name)

    def _task_id(self, given: str) -> object:
        """A published task by its name, for it is pinned; a user's own by its problems too."""
        name = self.task_name(given)
        return [given, load_task(name).digest] if name.endswith(".toml") or "=" in name else name

    def _made_from(self, quant: str | None) -> dict[str, object]:
        """What a model in a type is made from; None is the weights as they are, in PyTorch."""
        return {**self._weights, "revision": self.revision, "quant": quant and quant.upper()}

    @cached_property
    def _weights(self) -> dict[str, object]:
        if self.repo:
            return {"source": self.repo}
        files = [*sorted(Path(self.model.source).glob("*.safetensors")), *filter(None, [self.model.gguf])]
        return {"source": self.model.name, "weights": {file.name: digest(file) for file in files}}

    def _output(self, step: Step, path: Path | None = None) -> object:
        outputs = self.steps[step]["outputs"]
        return outputs[path.as_posix()] if path else next(iter(outputs.values()))


def rules_of(made: MadePairs) -> Rules:
    return Rules(made.numbers, made.max_nll_ratio, made.keep_lowest)


def _model_folder(folder: Path, name: str) -> Path:
    for root in (*folder.resolve().parents[1:3], Path()):
        if (root / "models" / name / "recipe.toml").is_file():
            return root / "models" / name
    raise EdgeSteerError(f"no models/{name}/recipe.toml beside the export folder or here; name its folder with --model")


def _check(recipe: BuildRecipe, model: ModelRecipe) -> None:
    """What both recipes say must be possible. Errors: EdgeSteerError."""
    path = recipe.folder / "recipe.toml"
    if recipe.model != model.name:
        raise EdgeSteerError(f"{path} is for {recipe.model}, and {model.folder} is {model.name}")
    method_named(recipe.extraction.method)
    pooling_named(recipe.extraction.pooling)
    making = () if isinstance(recipe.pairs, Path) else (recipe.pairs.quant,)
    other = (recipe.extraction.quant, recipe.search.quant if recipe.search else None)
    compared = recipe.comparison.quants or model.quants
    for quant in _upper((*making, *filter(None, other), *compared)):
        if quant not in QUANTS:
            raise EdgeSteerError(f"{path}: quant {quant} is not known; allowed are {', '.join(QUANTS)}")
    asked = [] if recipe.layer is None else [recipe.layer]
    if search := recipe.search:
        asked = list(search.layers or model.layers)
        parse_strengths(search.strengths)
        if search.rule not in RULES:
            raise EdgeSteerError(f"{path}: sweep.choose: {search.rule!r}; allowed are {', '.join(RULES)}")
    last = None if model.blocks is None else model.blocks - 1
    if 0 in asked or (last is not None and max(asked) > last):
        there = f"1-{last}" if last is not None else "1 up"
        raise EdgeSteerError(f"{path}: layers {spans(asked)}; control vectors of {model.name} have layers {there}")


def _upper(quants: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(quant.upper() for quant in quants)


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
        known = lock.pop("format") == FORMAT and all(
            isinstance(kept[key], Mapping) for kept in lock["steps"].values() for key in ("inputs", "outputs", "found")
        )
    except (ValueError, AttributeError, KeyError, TypeError):
        known = False
    if not known:
        raise EdgeSteerError(f"{path} is not what this edge-steer writes; delete it to build anew")
    return dict(lock)
