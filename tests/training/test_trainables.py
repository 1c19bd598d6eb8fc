"""LoRA and all weights in place of the vector: the same in PyTorch and in llama.cpp, trained, saved, resumed."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import ABACUS
from unsure_problems import unsure_task

import edge_steer as es
from edge_steer.adapters.change import LowRank, Weights
from edge_steer.adapters.choice import choose_lora
from edge_steer.core.backend import EngineOptions, Tokens
from edge_steer.core.errors import EdgeSteerError, ModelError
from edge_steer.core.vector import Array
from edge_steer.llama.engine import Engine
from edge_steer.models.exchange import Exchange
from edge_steer.models.load import load
from edge_steer.models.quantize import quantize
from edge_steer.reference.model import Reference
from edge_steer.storage.gguf_header import read_header
from edge_steer.storage.records import read
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.task import Task
from edge_steer.training.policy import Policy
from edge_steer.training.records import LOG
from edge_steer.training.rloo import train_rloo
from edge_steer.training.rollouts import Rollout
from edge_steer.training.settings import Adapter, RlooSettings
from edge_steer.training.trainables import Trainable, TrainedWeights, trainable
from edge_steer.training.trainee import Trainee

EXACT = EngineOptions(threads=1, kv_type="f32", flash_attention="off")
THREAD = EngineOptions(threads=1)
TOKENS: Tokens = tuple(range(5, 60))
EQUAL = 1e-4  # of logits, the median: what parity's mechanism allows
LORA, FULL = Adapter("lora", rank=2), Adapter("full")
SETTINGS = RlooSettings(steps=2, prompts=1, generations=4, max_tokens=190, learning_rate=1e-3, seed=1)


@pytest.fixture
def reference() -> Reference:
    """One of its own: training all weights changes them."""
    return Reference.load(ABACUS)


@pytest.fixture(scope="module")
def exchange(bundled_f32: Path) -> Iterator[Exchange]:
    with Exchange(bundled_f32, EXACT) as exchange:
        yield exchange


def moved(trained: Trainable) -> Trainable:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return trained


def logits(reference: Reference, trained: Trainable) -> Array:
    with trained.in_force():
        return reference.logits(TOKENS, 1)


@pytest.mark.parametrize("adapter", [LORA, FULL], ids=str)
def test_llama_cpp_runs_what_pytorch_trains(adapter: Adapter, reference: Reference, exchange: Exchange) -> None:
    before = reference.logits(TOKENS, 1)
    trained = moved(trainable(adapter, reference))
    change = trained.change()
    assert isinstance(change, LowRank | Weights)
    ours, theirs = logits(reference, trained), exchange.run(change).logits(TOKENS, 1)
    assert np.median(np.abs(ours - theirs).max(axis=1)) < EQUAL
    assert np.abs(ours - before).max() > 100 * EQUAL
    with trained.untrained():
        assert np.array_equal(reference.logits(TOKENS, 1), before)
    assert set(trained.norms()) == set("012345")


def test_a_lora_begins_as_the_model(reference: Reference) -> None:
    before = reference.logits(TOKENS, 1)
    trained = trainable(LORA, reference)
    assert np.array_equal(logits(reference, trained), before)
    assert sum(parameter.numel() for parameter in trained.parameters) == 6 * 2 * (256 + 512)
    assert not any(trained.norms().values())


def test_a_trained_lora_is_a_folder_of_peft(reference: Reference, tmp_path: Path) -> None:
    """Merged into the weights by what reads PEFT's folders it is what the hooks add; its norms are those of B A."""
    trained = moved(trainable(LORA, reference))
    change = trained.change()
    assert isinstance(change, LowRank)
    folder = change.write_peft(tmp_path / "adapter")
    ours = logits(reference, trained)
    with load(ABACUS, runtime="torch", options=EngineOptions(lora=choose_lora(folder))) as merged:
        assert np.abs(merged.logits(TOKENS, 1) - ours).max() < EQUAL
    for (name, (a, b)), norm in zip(change.matrices.items(), trained.norms().values(), strict=True):
        assert name.endswith("mlp.down_proj")
        assert norm == pytest.approx(float(np.linalg.norm(b @ a)), rel=1e-4)


@pytest.mark.parametrize("adapter", [LORA, FULL], ids=str)
def test_the_gradient_is_that_of_finite_differences(adapter: Adapter, tiny_folder: Path) -> None:
    reference = Reference.load(tiny_folder, dtype="float64")
    trained = trainable(adapter, reference)
    for parameter in trained.parameters:
        parameter.data = parameter.data.double()
    moved(trained)
    row = Rollout("", TOKENS[:5], TOKENS[5:], (0.0,) * 50, "", finished=True)
    policy, settings = Policy(reference, trained), RlooSettings(importance_cap=0.0)
    policy.gradient([row], np.ones(1), settings)
    for parameter in (trained.parameters[1], trained.parameters[-1]):
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        assert parameter.grad is not None
        losses = []
        for step in (1e-4, -2e-4):
            parameter.data += step * direction
            losses.append(-policy.logprobs([row])[0].mean())
        assert (losses[0] - losses[1]) / 2e-4 == pytest.approx(float((parameter.grad * direction).sum()), rel=1e-2)
        parameter.data += 1e-4 * direction


@pytest.fixture(scope="module")
def q4(bundled_f16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(bundled_f16, "Q4_K_M", tmp_path_factory.mktemp("q4") / "q4.gguf", threads=1)


@pytest.fixture(scope="module")
def graders() -> Iterator[Graders]:
    with Graders() as graders:
        yield graders


@pytest.fixture(scope="module")
def task() -> Task:
    task = unsure_task()
    return replace(task, samples=task.samples[:1])


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in step.items() if name != "seconds"} for step in read(folder / LOG)[1]]


@pytest.mark.parametrize("adapter", [LORA, FULL], ids=str)
def test_a_training_on_a_quantised_file_goes_on_where_it_stopped(
    adapter: Adapter, q4: Path, task: Task, graders: Graders, tmp_path: Path
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"

    def keep_state(step: int, _change: object) -> None:
        if step == 1:
            shutil.copytree(whole, halves)

    with Exchange(q4, THREAD) as exchange, load(q4, options=THREAD) as engine:

        def nll_after(folder: Path) -> list[float]:
            with load(q4, runtime="torch", options=THREAD) as reference:
                change = train_rloo(
                    Trainee(engine, reference, exchange), task, SETTINGS, folder, adapter=adapter, graders=graders,
                    on_step=keep_state,
                )  # fmt: skip
            assert isinstance(change, LowRank | Weights)
            return list(exchange.run(change).nll(TOKENS, 1))

        nlls = [nll_after(whole), nll_after(halves), list(engine.nll(TOKENS, 1))]
    first, second = steps_of(whole)
    assert [first, second] == steps_of(halves)
    assert first["reward"] not in (0, 1)
    assert 0 < first["norms"]["0"] < second["norms"]["0"]
    assert nlls[0] == nlls[1] != nlls[2]


def test_a_lora_is_written_for_both_runtimes(q4: Path, task: Task, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=1)
    path = es.train_adapter(q4, task, tmp_path, LORA, settings, options=THREAD, keep_every=1)
    assert path == tmp_path / "adapter.gguf"
    assert (tmp_path / "step-00001.gguf").read_bytes() == path.read_bytes()
    folder = choose_lora(tmp_path / "adapter")
    with load(q4, options=replace(THREAD, lora=choose_lora(path))) as engine:
        prompt = engine.chat(task.messages(task.samples[0]))
        ours = engine.nll(prompt, 1)
    with load(q4, runtime="torch", options=replace(THREAD, lora=folder)) as merged:
        assert np.median(np.abs(ours - merged.nll(prompt, 1))) < 0.05
    with pytest.raises(EdgeSteerError, match="was made otherwise"):
        es.train(q4, task, tmp_path, settings, options=THREAD)


def test_what_cannot_be_trained_is_refused(reference: Reference, q4: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no c_proj"):
        trainable(Adapter("lora", modules=("c_proj",)), reference)
    with pytest.raises(EdgeSteerError, match="rank is 0"):
        Adapter("lora", rank=0)
    with pytest.raises(EdgeSteerError, match="layers are chosen for a vector"):
        Adapter("full", layers=(1,))
    change = trainable(LORA, reference).change()
    assert isinstance(change, LowRank)
    file = change.write_gguf(tmp_path / "lora.gguf")
    with pytest.raises(ModelError, match="with an adapter cannot take another"):
        Exchange(q4, EngineOptions(lora=choose_lora(file)))


def test_weights_of_another_model_are_refused(
    reference: Reference, tiny: Reference, exchange: Exchange, q4: Path, tmp_path: Path
) -> None:
    weights = TrainedWeights(reference).change()
    exchange.check(weights)
    with Exchange(q4, EngineOptions(threads=1)) as coarse:
        coarse.check(weights)
    moved_rows = {name: values[::-1] if values.ndim == 2 else values for name, values in weights.values.items()}
    with pytest.raises(ModelError, match="laid out otherwise"):
        exchange.check(replace(weights, values=moved_rows))
    with pytest.raises(ModelError, match="another model"):
        exchange.check(TrainedWeights(tiny).change())
    written = exchange.write(weights, tmp_path / "model.gguf")
    assert "output.weight" not in {tensor.name for tensor in read_header(written).tensors}  # tied, as it was
    del moved_rows["model.norm.weight"]
    with pytest.raises(ModelError, match=r"output_norm.weight, which PyTorch has not"):
        exchange.check(replace(weights, values=moved_rows))


def test_an_engine_alone_takes_vectors_only(reference: Reference, bundled_f16: Path) -> None:
    with Engine.load(bundled_f16, EXACT) as engine, pytest.raises(EdgeSteerError, match="cannot be exchanged"):
        Trainee(engine, reference).answering(trainable(LORA, reference).change())
