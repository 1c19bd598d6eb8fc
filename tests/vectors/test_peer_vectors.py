"""Vectors of other packages steer here as they do there: golden files and logits of benchmarks/peer_vectors.py."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from paths import ABACUS

from edge_steer.core.backend import Backend, EngineOptions
from edge_steer.core.stats import cosine, log_softmax
from edge_steer.core.steering import Steering
from edge_steer.llama.engine import Engine
from edge_steer.reference.model import Reference
from edge_steer.vectors import gguf_writer, native, read

PEERS = Path(__file__).parent / "golden" / "peers"
GIVEN: dict[str, Any] = json.loads((PEERS / "input.json").read_text())
FILES = {"repeng": "repeng.gguf", "steering-vectors": "steering_vectors.pt"}


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("peers") / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(PEERS / name, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ABACUS / name, folder)
    with Engine.load(
        PEERS / "model-F32.gguf", EngineOptions(threads=1, kv_type="f32", flash_attention="off", context=512)
    ) as engine:
        yield {"engine": engine, "reference": Reference.load(folder)}


def logits(backend: Backend, steering: tuple[Steering, ...]) -> npt.NDArray[np.float32]:
    return backend.logits(GIVEN["tokens"], 1, steering)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("backend", ["engine", "reference"])
def test_a_vector_steers_as_in_the_package_that_made_it(backends: dict[str, Any], backend: str, name: str) -> None:
    theirs = np.load(PEERS / f"{name}-logits.npy")
    vector = read.load(PEERS / FILES[name])
    steered = logits(backends[backend], (Steering(vector, GIVEN["strength"]),))
    unsteered = logits(backends[backend], ())
    assert np.abs(steered - theirs).max() < 1e-4
    assert np.abs(unsteered - theirs).max() > 1
    if name == "repeng":
        other = read.read(PEERS / FILES[name], convention="block+1").vector
        assert np.abs(logits(backends[backend], (Steering(other, GIVEN["strength"]),)) - theirs).max() > 1


def test_what_the_files_are_known_by() -> None:
    repeng = read.read(PEERS / "repeng.gguf")
    assert (repeng.convention, repeng.vector.layers, repeng.vector.model.architecture) == ("block", (1, 2, 3), "llama")
    assert repeng.origin.startswith("repeng")
    assert list(repeng.vector.norms.values()) == pytest.approx([1, 1, 1])
    torch = read.read(PEERS / "steering_vectors.pt")
    assert (torch.convention, torch.vector.layers, torch.vector.model.architecture) == ("block", (0, 1, 2, 3), None)
    generator = read.read(PEERS / "cvector.gguf")
    assert (generator.convention, generator.vector.layers) == ("block+1", (0, 1, 2))
    assert generator.origin.startswith("llama-cvector-generator")
    assert generator.vector.model.architecture == "llama"


def test_llama_cvector_generator_stores_a_block_under_the_next_number(backends: dict[str, Any]) -> None:
    """Its mean of differences at every token, computed again from hooks on the blocks of the PyTorch model."""
    reference: Reference = backends["reference"]
    vector = read.load(PEERS / "cvector.gguf")
    pad = reference.encode(" ", start=False)[-1]
    differences: dict[int, list[npt.NDArray[np.float32]]] = {layer: [] for layer in range(4)}
    for pair in GIVEN["pairs"]:
        sides = [reference.encode(text) for text in pair]
        width = max(map(len, sides))
        positive, negative = (
            reference.record([*side, *[pad] * (width - len(side))], tuple(differences)) for side in sides
        )
        for layer, rows in differences.items():
            change = positive[layer] - negative[layer]
            rows.append(change[(change > 1e-6).any(axis=1)])
    means = {layer: np.concatenate(rows).mean(axis=0) for layer, rows in differences.items()}
    for layer in (0, 1, 2):
        assert cosine(vector.directions[layer], means[layer]) > 0.9999
        assert cosine(vector.directions[layer], means[layer + 1]) < 0.95


def test_llama_cpp_itself_applies_that_file_by_its_numbers(backends: dict[str, Any]) -> None:
    """llama.cpp adds direction.N to block N, whoever wrote it: what --convention block means."""
    golden = np.load(PEERS / "llama.cpp.npz")
    tokens, theirs = golden["tokens"].tolist(), golden["logprobs"]
    half = len(tokens) // 2

    def steered(convention: Any) -> npt.NDArray[np.float64]:
        vector = read.read(PEERS / "cvector.gguf", convention=convention).vector
        found = backends["engine"].logits(tokens, half + 1, (Steering(vector, GIVEN["strength"]),))
        return log_softmax(found)[: len(theirs)]

    near = theirs > -16  # the file's codes hold no smaller ones
    assert np.abs(steered("block") - theirs)[near].max() < 2e-3
    assert np.abs(steered("block+1") - theirs)[near].max() > 0.5


@pytest.mark.parametrize("name", [*FILES.values(), "cvector.gguf"])
def test_conversions_lose_nothing(tmp_path: Path, name: str) -> None:
    vector = read.load(PEERS / name)
    native.save(vector, tmp_path / "v.safetensors")
    again = read.load(tmp_path / "v.safetensors")
    assert again.digest == vector.digest
    kept = again.at(layer for layer in again.layers if layer)
    for target in gguf_writer.TARGETS:
        gguf_writer.write(kept, tmp_path / f"{target}.gguf", target=target)
        assert read.load(tmp_path / f"{target}.gguf").digest == kept.digest
