"""The layer law in many architectures: llama.cpp against PyTorch in float32, at every block of random models."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from tiny_models import TOLERANCE

from edge_steer import models
from edge_steer.architectures import UNSTEERABLE, departure, window
from edge_steer.backend import Fork, Request
from edge_steer.engine import Engine
from edge_steer.errors import ModelError
from edge_steer.files import cache_folder
from edge_steer.reference import Reference
from edge_steer.vector import PHASES, Steering

# what llama.cpp computes otherwise than the model's own code, whatever edge-steer does
DEPARTURES: dict[str, dict[str, Any]] = {
    "qwen3moe": {"norm_topk_prob": False},
    "olmoe": {"norm_topk_prob": True},
    "mistral": {"sliding_window": 8},
    "phi3": {"sliding_window": 8},
}


@dataclass(frozen=True)
class Made:
    folder: Path
    gguf: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Made]:
    """Every family, and every one of DEPARTURES as "other NAME", converted by one process."""
    if not models.converter_folder().is_dir():
        pytest.skip("llama.cpp's converter is not in the cache; fetch it with edge_steer.models.converter()")
    root = tmp_path_factory.mktemp("families")
    names: list[tuple[str, str, dict[str, Any]]] = [
        *((name, name, {}) for name in tiny_models.FAMILIES),
        *((f"other {n}", n, c) for n, c in DEPARTURES.items()),
    ]
    folders = {
        name: tiny_models.make(family, root / str(number), changes)  # llama.cpp knows some vocabularies by their name
        for number, (name, family, changes) in enumerate(names)
    }
    ggufs = tiny_models.convert(folders.values())
    return {name: Made(folder, gguf) for (name, folder), gguf in zip(folders.items(), ggufs, strict=True)}


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_steering_acts_alike_at_every_layer_in_every_phase(family: str, made: Mapping[str, Made]) -> None:
    reference = load(family, made)
    rows = tiny_models.logits_apart(reference, made[family].gguf)
    assert len(rows) == reference.model.block_count * 2 * 3
    assert max(row.median for row in rows) <= TOLERANCE
    assert max(row.max for row in rows) <= (50 if family in tiny_models.GELU else 1) * TOLERANCE
    assert min(row.neighbour for row in rows if row.neighbour is not None) > 1000 * TOLERANCE


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_the_residual_stream_is_the_same_after_every_block(family: str, made: Mapping[str, Made]) -> None:
    reference = load(family, made)
    apart = list(tiny_models.residuals_apart(reference, made[family].gguf))
    assert len(apart) == (reference.model.block_count + 1) * reference.model.block_count
    assert max(same for _, _, same, _ in apart) <= (1e-3 if family in tiny_models.GELU else 1e-5)
    assert min(neighbour for _, _, _, neighbour in apart) > 0.05


@pytest.mark.parametrize("family", tiny_models.GELU)
def test_what_sets_gelu_models_apart_is_ggmls_table_in_float16(family: str, made: Mapping[str, Made]) -> None:
    plain, tabled = Reference.load(made[family].folder), load(family, made)
    text = tiny_models.text(plain)
    with Engine.load(made[family].gguf, kv_type="f32", flash_attention="off", threads=1) as engine:
        found = engine.logits(text.tokens, 1)
        off = [float(np.median(np.abs(r.logits(text.tokens, 1) - found).max(axis=1))) for r in (plain, tabled)]
    assert 5 * off[1] < off[0] < 50 * TOLERANCE


@pytest.mark.parametrize("family", DEPARTURES)
def test_what_llama_cpp_computes_otherwise_is_known(family: str, made: Mapping[str, Made]) -> None:
    reference = Reference.load(made[f"other {family}"].folder)
    config: dict[str, Any] = {"model_type": "", **DEPARTURES[family], **_config(made[f"other {family}"].folder)}
    text = tiny_models.text(reference)
    with Engine.load(made[f"other {family}"].gguf, kv_type="f32", flash_attention="off", threads=1) as engine:
        apart = np.abs(reference.logits(text.tokens, 1) - engine.logits(text.tokens, 1)).max(axis=1)
    same = len(apart) if not (size := window(config)) else size
    assert bool(departure(config)) == (apart[:4].max() > 100 * TOLERANCE)
    assert (size is not None) == (not departure(config))
    if size:
        assert apart[:same].max() <= TOLERANCE
        assert np.median(apart[same + 8 :]) > 100 * TOLERANCE


def load(family: str, made: Mapping[str, Made]) -> Reference:
    """The reference, with GELU as ggml has it."""
    reference = Reference.load(made[family].folder)
    return tiny_models.with_half_gelu(reference) if family in tiny_models.GELU else reference


def _config(folder: Path) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((folder / "config.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def looped(made: Mapping[str, Made], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama under the name of an architecture that llama.cpp runs, and does not steer by the layer law."""
    path = tmp_path_factory.mktemp("looped") / "looped.gguf"
    tiny_models.rename(made["llama"].gguf, path, "nanbeige")
    return path


def test_an_architecture_that_llama_cpp_cannot_steer_is_refused_before_it_runs(
    looped: Path, made: Mapping[str, Made]
) -> None:
    reference = Reference.load(made["llama"].folder)
    known = tiny_models.vector(reference)
    vector = replace(known, model=replace(known.model, architecture="nanbeige"))
    with Engine.load(looped, threads=1) as engine:
        prompt = tiny_models.text(reference).tokens
        (plain,) = engine.generate([Request(prompt, 4)])
        assert len(plain.tokens) == 4
        used = replace(engine.usage)
        for layer in (0, 2):
            for steering in ((Steering(vector, 1.0, (layer,), phase),) for phase in PHASES):
                with pytest.raises(ModelError, match="can neither steer nor read the layers of nanbeige: it runs its"):
                    engine.generate([Request(prompt, 4, steering)])
                with pytest.raises(ModelError, match="runs its blocks more than once"):
                    engine.logits(prompt, 4, steering)
        with pytest.raises(ModelError, match="runs its blocks more than once"):
            engine.answer_states([Fork(prompt, ((1, 2),), (1,))], [1], lambda *_: None)
        assert engine.usage == used
        assert engine.generate([Request(prompt, 4)]) == [plain]


def test_the_table_of_refusals_agrees_with_the_sources_of_llama_cpp() -> None:
    folder = Path(__file__).parents[1] / "benchmarks"
    if not (cache_folder() / f"llama.cpp-source-{version('llama-cpp-python')}").is_dir():
        pytest.skip("llama.cpp's sources are not in the cache; fetch them with: python benchmarks/llama_tools.py")
    done = subprocess.run([sys.executable, folder / "steerable.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"{len(UNSTEERABLE)} refused, 0 disagreements\n")
