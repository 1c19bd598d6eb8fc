"""A baked model: in plain llama.cpp it is the steered one, and but for the bias it is the file it was made from."""

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_models
from click.testing import CliRunner
from paths import ABACUS

from edge_steer.adapters.bake import KEY, bake
from edge_steer.commands.main import main
from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError, ModelError, VectorError
from edge_steer.core.steering import Steering
from edge_steer.core.vector import Array, ModelIdentity, SteeringVector
from edge_steer.llama.engine import Engine
from edge_steer.models.quantize import quantize
from edge_steer.storage.digests import digest
from edge_steer.storage.gguf_append import append
from edge_steer.storage.gguf_header import read_header
from edge_steer.vectors.write import save

EXACT = EngineOptions(threads=1, kv_type="f32", flash_attention="off", gpu_layers=0)
TOKENS = tuple(range(5, 45))
RESIDUAL_SCALE = 0.25
EQUAL = 1e-4  # largest difference of logits, as parity's mechanism has it


@pytest.fixture(scope="module")
def models(bundled_f32: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundled model's weights as other architectures, which read the bias; benchmarks/bake.py tries all that do."""
    folder = tmp_path_factory.mktemp("bake")
    llama, biases, granite = (folder / f"{name}.gguf" for name in ("llama", "biases", "granite"))
    tiny_models.rename(bundled_f32, llama, "llama")
    row = np.random.default_rng(1).standard_normal(256).astype(np.float32)
    append(llama, biases, {}, {f"blk.{layer}.ffn_down.bias": 5 * row for layer in range(4)})
    scales = {"residual_scale": RESIDUAL_SCALE, "logit_scale": 1.0, "attention.scale": 0.125, "embedding_scale": 1.0}
    tiny_models.rename(bundled_f32, granite, "granite", scales)
    return {"llama": llama, "llama with biases": biases, "granite": granite}


def vector(model: ModelIdentity) -> SteeringVector:
    random = np.random.default_rng(0)
    directions = {layer: 20 * random.standard_normal(model.hidden_size) for layer in range(model.block_count)}
    return SteeringVector({layer: row.astype(np.float32) for layer, row in directions.items()}, model)


def identity(path: Path) -> ModelIdentity:
    with Engine.load(path, EXACT) as engine:
        return engine.model


def logits(path: Path, *steering: Steering) -> Array:
    with Engine.load(path, EXACT) as engine:
        return engine.logits(TOKENS, 1, steering)


@pytest.mark.parametrize("name", ["llama", "llama with biases", "granite"])
def test_a_baked_model_is_the_steered_one_at_every_layer(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    steering = Steering(vector(identity(models[name])), 1.5)
    baked = bake(steering, models[name], tmp_path / "baked.gguf")
    expected = logits(models[name], steering)
    assert np.abs(logits(baked) - expected).max() < EQUAL
    assert np.abs(expected - logits(models[name])).max() > 0.3


def test_a_quantised_model_is_baked_and_quantised_after(models: dict[str, Path], tmp_path: Path) -> None:
    steering = Steering(vector(identity(models["llama"])), layers=(0, 2))
    before = quantize(models["llama"], "Q8_0", tmp_path / "q8.gguf")
    baked = bake(steering, before, tmp_path / "q8-baked.gguf")
    after = quantize(bake(steering, models["llama"], tmp_path / "f32-baked.gguf"), "Q8_0", tmp_path / "baked-q8.gguf")
    assert np.array_equal(logits(baked), logits(after))
    unsteered, steered = logits(before), logits(before, steering)
    rounding = np.linalg.norm(logits(baked) - steered)  # of activations to 8 bits, which the order of two sums moves
    assert rounding < 0.02 * np.linalg.norm(steered - unsteered)


@pytest.mark.parametrize("name", ["llama", "llama with biases"])
def test_all_else_is_byte_for_byte_what_it_was(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    layers = (1, 3)
    steering = Steering(vector(identity(models[name])), layers=layers)
    old, new = (gguf.GGUFReader(path) for path in (models[name], bake(steering, models[name], tmp_path / "b.gguf")))
    biases = {f"blk.{layer}.ffn_down.bias" for layer in layers}
    before, after = ({tensor.name: tensor for tensor in reader.tensors} for reader in (old, new))
    assert after.keys() == before.keys() | biases
    for tensor in before.keys() - biases:
        assert before[tensor].data.tobytes() == after[tensor].data.tobytes()
        assert before[tensor].tensor_type == after[tensor].tensor_type
    assert list(new.fields)[: len(old.fields)] == list(old.fields)
    for key in old.fields:
        if not key.startswith("GGUF."):
            assert [part.tobytes() for part in old.fields[key].parts] == [p.tobytes() for p in new.fields[key].parts]


def test_the_file_says_what_was_baked(models: dict[str, Path], tmp_path: Path) -> None:
    steering = Steering(vector(identity(models["llama"])), 2.0, (1,), "generated")
    metadata = read_header(bake(steering, models["llama"], tmp_path / "b.gguf")).metadata
    assert json.loads(str(metadata[KEY])) == [
        {"vector": steering.vector.digest, "strength": 2.0, "layers": [1], "phase": "all"}
    ]
    assert metadata[f"{KEY}.source"] == digest(models["llama"])


def test_what_cannot_be_baked_is_refused_and_nothing_written(models: dict[str, Path], tmp_path: Path) -> None:
    target, llama = tmp_path / "b.gguf", models["llama"]
    fitting = vector(identity(llama))
    with pytest.raises(ModelError, match="no bias at the end of a block of 'qwen2'"):
        bake(fitting, ABACUS / "abacus-F16.gguf", target)
    with pytest.raises(VectorError, match="not of"):
        bake(vector(replace(fitting.model, block_count=7)), llama, target)
    with pytest.raises(VectorError, match="zero"):
        bake(Steering(fitting, 0.0), llama, target)
    with pytest.raises(EdgeSteerError, match="is the file to add to"):
        bake(fitting, llama, llama)
    longer = tmp_path / "longer.gguf"
    longer.write_bytes(llama.read_bytes() + bytes(100))
    with pytest.raises(ModelError, match="damaged"):
        bake(fitting, longer, target)
    assert not target.exists()
    baked = bake(fitting, llama, target)
    with pytest.raises(ModelError, match="baked in already"):
        bake(fitting, baked, tmp_path / "again.gguf")


def test_export_bakes_as_tuned_and_says_which_phase_is_lost(models: dict[str, Path], tmp_path: Path) -> None:
    tuned = vector(identity(models["llama"])).tuned((0, 2), 0.5, "generated")
    save(tuned, file := tmp_path / "vector.safetensors")
    target = tmp_path / "b.gguf"

    def export(*words: object) -> str:
        return (
            CliRunner()
            .invoke(main, ["export", *map(str, (file, "--bake", models["llama"], "-o", target, *words))])
            .output
        )

    output = export()
    assert "tuned for phase generated; a baked one steers every position" in output
    assert "layers 0, 2, strength 0.5 baked in" in output
    assert np.abs(logits(target) - logits(models["llama"], Steering.of(tuned, phase="all"))).max() < EQUAL
    assert "strength is nan" in export("--strength", "nan")
    assert "layer 9 asked" in export("--layers", 9)
    assert "leave out --phase" in export("--phase", "all")
