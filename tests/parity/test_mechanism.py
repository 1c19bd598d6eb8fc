"""The layer law in many architectures: llama.cpp against PyTorch in float32, at every block of random models."""

import json
import shutil
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
from click.testing import CliRunner
from paths import ROOT
from tiny_models import TOLERANCE, VOCABULARY

from edge_steer.commands.main import main
from edge_steer.core.architectures import HALF_GELU, UNSTEERABLE, departure, window
from edge_steer.core.backend import EngineOptions, Request, SharedPrompt
from edge_steer.core.errors import ModelError
from edge_steer.core.steering import Steering
from edge_steer.core.vector import PHASES
from edge_steer.llama.engine import Engine
from edge_steer.llama.sequence import Usage
from edge_steer.models import convert
from edge_steer.parity.baseline import LiveReference
from edge_steer.parity.compare import compare_backend
from edge_steer.parity.mechanism import OF_EVERY_TEXT
from edge_steer.parity.texts import TokenisedText
from edge_steer.parity.tolerances import RESIDUAL, tolerance_of
from edge_steer.reference.model import Reference
from edge_steer.storage.files import cache_folder
from edge_steer.vectors import native

# what llama.cpp computes otherwise than the model's own code, whatever edge-steer does
DEPARTURES: dict[str, dict[str, Any]] = {
    "qwen3moe": {"norm_topk_prob": False},
    "olmoe": {"norm_topk_prob": True},
    "qwen2moe": {"norm_topk_prob": True},
    "phimoe": {},
    "mistral": {"sliding_window": 8},
    "mixtral": {"sliding_window": 8},
    "phi3": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "qwen3": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "smollm3": {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention"] * 4},
}
ROPES = (  # of the same weights: each pair differs in how positions are rotated
    ("llama", "llama, llama3 rope"),
    ("llama", "llama, linear rope"),
    ("llama", "llama, yarn"),
    ("phi3", "phi3, short factors"),
    ("phi3, short factors", "phi3, long factors"),
)


@dataclass(frozen=True)
class Made:
    folder: Path
    gguf: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Made]:
    """Every family, those of GELU as "plain NAME" too, and DEPARTURES as "other NAME", converted by one process."""
    if not convert.converter_folder().is_dir():
        pytest.skip("llama.cpp's converter is not in the cache; edge-steer convert --fetch-converter fetches it")
    root = tmp_path_factory.mktemp("families")
    names: list[tuple[str, str, dict[str, Any]]] = [
        *((name, name, {}) for name in tiny_models.FAMILIES),
        *((f"other {n}", n, {"changes": c}) for n, c in DEPARTURES.items()),
        *((f"plain {n}", n, {"wide": False}) for n in tiny_models.GELU),
    ]
    folders = {
        name: tiny_models.make(family, root / str(number), **how)  # llama.cpp knows some vocabularies by their name
        for number, (name, family, how) in enumerate(names)
    }
    ggufs = tiny_models.convert(folders.values())
    return {name: Made(folder, gguf) for (name, folder), gguf in zip(folders.items(), ggufs, strict=True)}


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_steering_acts_alike_at_every_layer_in_every_phase(family: str, made: Mapping[str, Made]) -> None:
    reference = Reference.load(made[family].folder)
    rows = tiny_models.logits_apart(reference, made[family].gguf)
    assert {(row.layer, row.phase, row.strength) for row in rows} == {
        (layer, phase, strength)
        for layer in range(reference.model.block_count)
        for phase in OF_EVERY_TEXT
        for strength in (0.0, 1.0, -1.0)
    }
    assert max(row.max for row in rows) <= TOLERANCE
    assert max(row.residual for row in rows) <= RESIDUAL
    assert min(row.neighbour for row in rows if row.neighbour is not None) > 1000 * TOLERANCE


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_the_residual_stream_is_the_same_after_every_block(family: str, made: Mapping[str, Made]) -> None:
    reference = Reference.load(made[family].folder)
    apart = list(tiny_models.residuals_apart(reference, made[family].gguf))
    assert len(apart) == (reference.model.block_count + 1) * reference.model.block_count
    assert max(same for _, _, same, _ in apart) <= 1e-5
    assert min(neighbour for _, _, _, neighbour in apart) > 0.05


@pytest.mark.parametrize(("one", "other"), ROPES)
def test_every_scaling_of_positions_is_in_use(one: str, other: str, made: Mapping[str, Made]) -> None:
    first, second = (Reference.load(made[name].folder) for name in (one, other))
    text = tiny_models.text(first)
    assert np.median(np.abs(first.logits(text.tokens, 1) - second.logits(text.tokens, 1)).max(axis=1)) > 0.1


@pytest.mark.parametrize("family", tiny_models.GELU)
def test_what_sets_gelu_models_apart_is_ggmls_table_in_float16(family: str, made: Mapping[str, Made]) -> None:
    plain = Reference.load(made[f"plain {family}"].folder)
    tabled = tiny_models.with_half_gelu(Reference.load(made[f"plain {family}"].folder))
    assert plain.model.architecture in HALF_GELU
    off, rows = (tiny_models.logits_apart(reference, made[f"plain {family}"].gguf) for reference in (plain, tabled))
    for plainly, row in zip(off, rows, strict=True):
        assert 5 * row.median < plainly.median < 50 * TOLERANCE
        assert row.neighbour is None or 1000 * row.median < row.neighbour


@pytest.mark.parametrize("family", DEPARTURES)
def test_what_llama_cpp_computes_otherwise_is_known(family: str, made: Mapping[str, Made]) -> None:
    reference = Reference.load(made[f"other {family}"].folder)
    config = _config(made[f"other {family}"].folder)
    text = tiny_models.text(reference)
    with Engine.load(
        made[f"other {family}"].gguf, EngineOptions(kv_type="f32", flash_attention="off", threads=1)
    ) as engine:
        apart = np.abs(reference.logits(text.tokens, 1) - engine.logits(text.tokens, 1)).max(axis=1)
    if not (size := window(config)):
        assert departure(config)
        assert np.median(apart) > 100 * TOLERANCE
    else:
        assert not departure(config)
        assert apart[:size].max() <= TOLERANCE
        assert np.median(apart[size + 8 :]) > 100 * TOLERANCE


@pytest.mark.parametrize("family", [*tiny_models.FAMILIES])
def test_what_agrees_with_llama_cpp_is_not_said_to_differ(family: str, made: Mapping[str, Made]) -> None:
    config = _config(made[family].folder)
    assert (departure(config), window(config)) == ("", None)


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
    with Engine.load(looped, EngineOptions(threads=1)) as engine:
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
            engine.answer_states([SharedPrompt(prompt, ((1, 2),), (1,))], [1], lambda *_: None)
        assert engine.usage == used
        assert engine.generate([Request(prompt, 4)]) == [plain]


@pytest.mark.parametrize("quant", ["F32", "Q8_0"])
def test_parity_refuses_what_cannot_be_steered_before_anything_is_computed(
    quant: str, looped: Path, made: Mapping[str, Made]
) -> None:
    reference = Reference.load(made["llama"].folder)
    known = tiny_models.vector(reference)
    vector = replace(known, model=replace(known.model, architecture="nanbeige"))
    live = LiveReference(
        reference, [tiny_models.text(reference)], [tiny_models.text(reference)], [Steering(known, 1.0)]
    )
    with Engine.load(looped, EngineOptions(threads=1)) as engine:
        with pytest.raises(ModelError, match="can neither steer nor read the layers of nanbeige"):
            compare_backend(live, engine, [Steering(vector, 1.0)], quant, tolerance_of(quant))
        assert engine.usage == Usage()


def test_the_command_refuses_it_before_the_reference_is_asked(
    looped: Path, made: Mapping[str, Made], tmp_path: Path
) -> None:
    reference = Reference.load(made["llama"].folder)
    known = tiny_models.vector(reference)
    native.save(replace(known, model=replace(known.model, architecture="nanbeige")), tmp_path / "v.safetensors")
    texts = VOCABULARY / "pairs.jsonl"
    given = ["parity", str(looped), "--reference", str(tmp_path / "absent"), "--text-file", str(texts)]
    done = CliRunner().invoke(main, [*given, "--vector", str(tmp_path / "v.safetensors"), "--threads", "1"])
    assert done.exit_code == 1
    assert "can neither steer nor read the layers of nanbeige: it runs its blocks more than once" in done.output


@pytest.mark.parametrize("family", DEPARTURES)
def test_parity_refuses_where_llama_cpp_computes_otherwise(family: str, made: Mapping[str, Made]) -> None:
    reference = Reference.load(made[f"other {family}"].folder)
    text = tiny_models.text(reference)
    with pytest.raises(ModelError, match=r"cannot be compared with its GGUF|attends to 8 tokens, in llama.cpp to all"):
        LiveReference(reference, [text], [], [])
    if window(_config(made[f"other {family}"].folder)):
        assert LiveReference(reference, [TokenisedText(text.tokens[:8], 2)], [], []).unsteered


def test_parity_refuses_an_f32_file_with_a_gelu(made: Mapping[str, Made]) -> None:
    reference = Reference.load(made["plain gemma2"].folder)
    live = LiveReference(reference, [tiny_models.text(reference)], [], [])
    with Engine.load(made["plain gemma2"].gguf, EngineOptions(threads=1)) as engine:
        with pytest.raises(ModelError, match="the GELU of gemma2 from a table of float16"):
            compare_backend(live, engine, [], "F32", tolerance_of("F32"))
        assert engine.usage == Usage()


@pytest.fixture(scope="module")
def layer_norm(tmp_path_factory: pytest.TempPathFactory, made: Mapping[str, Made]) -> Made:
    folder = tiny_models.make("cohere", tmp_path_factory.mktemp("layer_norm") / "1")
    return Made(folder, *tiny_models.convert([folder]))


def test_a_model_without_a_kv_cache_is_refused_in_torch(tmp_path: Path) -> None:
    import torch
    import transformers

    config = transformers.MambaConfig(vocab_size=495, hidden_size=64, state_size=16, num_hidden_layers=2)
    torch.manual_seed(0)
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(VOCABULARY / name, tmp_path)
    reference = Reference.load(tmp_path)
    with pytest.raises(ModelError, match="otherwise than in a KV cache"):
        reference.logits((5, 6, 7), 1)
    with pytest.raises(ModelError, match="otherwise than in a KV cache"):
        reference.generate([Request((5, 6, 7), 2)])


def test_a_model_whose_last_norm_takes_out_the_mean_is_steered(layer_norm: Made) -> None:
    rows = tiny_models.logits_apart(Reference.load(layer_norm.folder), layer_norm.gguf)
    assert max(row.max for row in rows) <= TOLERANCE


def test_the_table_of_refusals_agrees_with_the_sources_of_llama_cpp() -> None:
    folder = ROOT / "benchmarks"
    if not (cache_folder() / f"llama.cpp-source-{version('llama-cpp-python')}").is_dir():
        pytest.skip("llama.cpp's sources are not in the cache; fetch them with: python benchmarks/llama_tools.py")
    done = subprocess.run([sys.executable, folder / "steerable.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"{len(UNSTEERABLE)} refused, 0 disagreements\n")
