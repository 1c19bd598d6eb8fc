"""What a step of a build is, and what it works with."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from edge_steer.core.backend import EngineOptions
from edge_steer.core.progress import Progress
from edge_steer.models import quantize
from edge_steer.recipes.build import Build
from edge_steer.storage.files import replacing

if TYPE_CHECKING:
    from edge_steer.reference.model import Reference

LAYERS = Path("build", "layers.json")
CHECKS = Path("build", "checks.json")
REWRITE_TOKENS = 8192  # of a rewrite at most, thinking included


@dataclass(frozen=True)
class Made:
    """What a step left: its files, named from the build's folder, and what there is to say of them."""

    files: tuple[Path, ...]
    found: Mapping[str, object]


@dataclass(frozen=True)
class Means:
    """What steps work with. engine: how a model runs in llama.cpp."""

    engine: EngineOptions
    progress: Progress


def model_gguf(build: Build, quant: str, means: Means) -> Path:
    """The model in a type, fetched, converted and quantised if need be."""
    threads = means.engine.threads
    return quantize.gguf_for(
        build.model.folder, quant, revision=build.revision, threads=threads, progress=means.progress
    )


def open_reference(build: Build, means: Means) -> "Reference":
    from edge_steer.reference.model import Reference

    means.progress("loading the reference", 0, 1)
    return Reference.load(build.model.folder, revision=build.revision, threads=means.engine.threads)


def step_versions() -> dict[str, str]:
    return {name: version(name) for name in ("edge-steer", "llama-cpp-python")}


def step_key(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def write_json(build: Build, name: Path, value: object) -> None:
    with replacing(build.folder / name) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
