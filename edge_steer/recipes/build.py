"""A build: a vector's recipe, its model's recipe, and build.json, the record of the steps that are done.

Takes export/<model>/<vector>/recipe.toml, gives a value whose recipes fit together. It knows no step: step.py says
what one is, and runs no model.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.quants import QUANTS
from edge_steer.core.vector import spans
from edge_steer.evaluation.sweep_cells import RULES, parse_strengths
from edge_steer.extraction.methods import method_named
from edge_steer.extraction.pooling import pooling_named
from edge_steer.models.recipe import ModelRecipe
from edge_steer.recipes.build_recipe import BuildRecipe
from edge_steer.storage import hub
from edge_steer.storage.digests import digest
from edge_steer.storage.files import write_json

FORMAT = "edge-steer build 2"
FIRST_FORMAT = "edge-steer build 1"
LOCK = "build.json"


@dataclass(frozen=True)
class StepRecord:
    """A step that is done. outputs: each file, named from the build's folder, with its SHA-256.

    inputs: what the step depended on. findings: figures for a reader. seconds: how long it took.
    """

    inputs: Mapping[str, object]
    outputs: Mapping[str, str]
    findings: Mapping[str, Any]
    seconds: float
    versions: Mapping[str, str]


@dataclass
class Build:
    """One folder's build. commit: of a hub model whose recipe pins none, the one that the first build took."""

    recipe: BuildRecipe
    model: ModelRecipe
    records: dict[str, StepRecord] = field(default_factory=dict)
    commit: str | None = None

    @classmethod
    def load(cls, folder: str | Path, model: str | Path | None = None) -> "Build":
        """Read both recipes and build.json, and check all that can be checked before anything runs.

        model: the model's folder; None is models/<model> beside the export folder, or else here.
        Errors: EdgeSteerError.
        """
        recipe = BuildRecipe.load(folder)
        model_recipe = ModelRecipe.load(Path(model) if model else _model_folder(recipe, recipe.model))
        _check(recipe, model_recipe)
        return cls(recipe, model_recipe, *_read(recipe.folder / LOCK))

    @property
    def larger(self) -> "Build | None":
        """The same with the larger model, where [pairs] names one. Errors: EdgeSteerError for one that is not there."""
        if isinstance(self.recipe.pairs, Path) or self.recipe.pairs.larger is None:
            return None
        return Build(self.recipe, ModelRecipe.load(_model_folder(self.recipe, self.recipe.pairs.larger)), self.records)

    def save(self) -> None:
        """Write build.json."""
        steps = {name: asdict(record) for name, record in self.records.items()}
        commit = {"revision": self.commit} if self.commit else {}
        write_json(self.folder / LOCK, {"format": FORMAT, **commit, "steps": steps})

    @property
    def folder(self) -> Path:
        return self.recipe.folder

    @property
    def source(self) -> Path:
        """The MODEL that steps run: its folder, or of a model of the package index its weights, dequantised."""
        if self.recipe.from_index:
            return self.folder / "build" / f"{self.model.name}-F32.gguf"
        return self.model.folder

    @property
    def repo(self) -> str | None:
        """The hub id of the model; None for one on this machine or of the package index."""
        if self.recipe.from_index:
            return None
        hub_id = hub.parse_hub_id(self.model.source)
        return hub_id[0] if hub_id and not Path(self.model.source).is_dir() else None

    @property
    def revision(self) -> str | None:
        """The commit of a hub model: its recipe's, else the one that build.json keeps; None of any other."""
        return None if self.recipe.from_index else self.model.revision or self.commit

    def model_inputs(self, quant: str | None) -> dict[str, object]:
        """What a step that runs the model depends on. quant: None is the weights as they are, in PyTorch."""
        template = {"template": self.recipe.template} if self.recipe.template else {}
        return {**self._weights, **template, "revision": self.revision, "quant": quant and quant.upper()}

    @cached_property
    def _weights(self) -> dict[str, object]:
        if self.repo:
            return {"source": self.repo}
        if self.recipe.from_index and self.model.index:
            return {"source": self.model.name, "index": self.model.index.sha256}
        files = [*sorted(Path(self.model.source).glob("*.safetensors")), *filter(None, [self.model.gguf])]
        return {"source": self.model.name, "weights": {file.name: digest(file) for file in files}}


def _model_folder(recipe: BuildRecipe, name: str) -> Path:
    for root in (*recipe.folder.resolve().parents[1:3], Path()):
        if (root / "models" / name / "recipe.toml").is_file():
            return root / "models" / name
    raise EdgeSteerError(f"no models/{name}/recipe.toml beside the export folder or here; name the model's folder")


def _check(recipe: BuildRecipe, model: ModelRecipe) -> None:
    """Errors: EdgeSteerError for what the two recipes say and nobody could do."""
    path = recipe.folder / "recipe.toml"
    if recipe.model != model.name:
        raise EdgeSteerError(f"{path} is for {recipe.model}, and {model.folder} is {model.name}")
    if not isinstance(recipe.pairs, Path) and recipe.pairs.larger:
        _model_folder(recipe, recipe.pairs.larger)
    if recipe.from_index and not model.index:
        raise EdgeSteerError(f"{path}: weights: {model.folder}/recipe.toml names no file of the package index")
    if recipe.from_index and not isinstance(recipe.pairs, Path) and recipe.pairs.larger:
        raise EdgeSteerError(f"{path}: weights: a larger model is of the hub; leave out weights, or pairs.larger")
    method_named(recipe.extract.method)
    pooling_named(recipe.extract.pooling)
    if recipe.sweep:
        parse_strengths(recipe.sweep.strengths)
        if recipe.sweep.rule not in RULES:
            raise EdgeSteerError(f"{path}: sweep.choose: {recipe.sweep.rule!r}; allowed are {', '.join(RULES)}")
    _check_quants(recipe, model, path)
    _check_layers(recipe, model, path)


def _check_quants(recipe: BuildRecipe, model: ModelRecipe, path: Path) -> None:
    tables = (recipe.pairs, recipe.extract, recipe.sweep)
    quants = [table.quant for table in tables if table and not isinstance(table, Path) and table.quant]
    if not isinstance(recipe.pairs, Path) and recipe.pairs.larger_quant:
        quants.append(recipe.pairs.larger_quant)
    for quant in (*quants, *(recipe.parity.quants or model.quants)):
        if quant.upper() not in QUANTS:
            raise EdgeSteerError(f"{path}: quant {quant.upper()} is not known; allowed are {', '.join(QUANTS)}")


def _check_layers(recipe: BuildRecipe, model: ModelRecipe, path: Path) -> None:
    layers = [] if recipe.layer is None else [recipe.layer]
    if recipe.sweep:
        layers = list(recipe.sweep.layers or model.layers)
    last = None if model.blocks is None else model.blocks - 1
    if 0 in layers or (last is not None and max(layers) > last):
        allowed = f"1-{last}" if last is not None else "1 up"
        raise EdgeSteerError(f"{path}: layers {spans(layers)}; control vectors of {model.name} have layers {allowed}")


def _read(path: Path) -> tuple[dict[str, StepRecord], str | None]:
    """The records of build.json by the name of their step, and the model's commit."""
    if not path.exists():
        return {}, None
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
        if lock["format"] == FIRST_FORMAT:
            _upgrade(lock["steps"])
        elif lock["format"] != FORMAT:
            raise ValueError(lock["format"])
        records = {name: StepRecord(**record) for name, record in lock["steps"].items()}
        if not all(isinstance(r.inputs, dict) and isinstance(r.outputs, dict) for r in records.values()):
            raise ValueError("no record of a step")
        return records, lock.get("revision")
    except (ValueError, AttributeError, KeyError, TypeError):
        raise EdgeSteerError(f"{path} is not what this edge-steer writes; delete it to build anew") from None


def _upgrade(steps: dict[str, dict[str, Any]]) -> None:
    """Records of the first format: findings had another name, and parity depended on the bytes of the vector's file.

    Those bytes change with the tuning that a vector's file carries; the vector's own digest does not.
    """
    for record in steps.values():
        record["findings"] = record.pop("found")
    if "export" in steps and "parity" in steps:
        export, inputs = steps["export"], steps["parity"]["inputs"]
        if inputs["vector"] in export["outputs"].values():
            inputs["vector"] = export["findings"]["digest"]
