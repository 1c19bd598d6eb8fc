"""An adapter in llama.cpp and in PyTorch: the same logits, scaled right, and refused where it cannot be honoured."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from paths import ABACUS
from safetensors.torch import load_file, save_file

from edge_steer.adapters import gguf_lora, peft_folder
from edge_steer.adapters.choice import choose_lora
from edge_steer.certificates.certificate import read_certificate
from edge_steer.certificates.make import certify
from edge_steer.certificates.recheck import check_again
from edge_steer.commands.main import main
from edge_steer.core.backend import EngineOptions, Request
from edge_steer.core.errors import EdgeSteerError, ModelError
from edge_steer.core.steering import Steering
from edge_steer.core.vector import Array, SteeringVector
from edge_steer.llama.engine import Engine
from edge_steer.models.convert import convert_adapter, converter_folder
from edge_steer.models.load import load
from edge_steer.parity.texts import TokenisedText
from edge_steer.serving.questions import Service
from edge_steer.serving.security import Access
from edge_steer.serving.server import ServerOptions, application
from edge_steer.vectors.named import NamedVectors

EXACT = EngineOptions(threads=1, kv_type="f32", flash_attention="off", gpu_layers=0)
TOKENS = tuple(range(5, 60))
RANK, ALPHA, BLOCKS, HIDDEN, INNER = 4, 6.0, 6, 256, 512
EQUAL = 1e-4  # of logits, the median: what parity's mechanism allows


def write_peft(folder: Path, *, seed: int = 0, prefix: str = "base_model.model.", **settings: Any) -> Path:
    """A folder of PEFT for down_proj and o_proj of the bundled model, with random weights."""
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for block in range(BLOCKS):
        for name, inputs in (("mlp.down_proj", INNER), ("self_attn.o_proj", HIDDEN)):
            module = f"{prefix}model.layers.{block}.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(RANK, inputs, generator=generator) / inputs**0.5
            tensors[f"{module}.lora_B.weight"] = torch.randn(HIDDEN, RANK, generator=generator) * 0.05
    save_file(tensors, folder / peft_folder.WEIGHTS)
    written = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "use_rslora": False, "bias": "none",
        "init_lora_weights": True, "base_model_name_or_path": str(ABACUS), **settings,
    }  # fmt: skip
    (folder / peft_folder.CONFIG).write_text(json.dumps(written))
    return folder


def write_gguf(path: Path, folder: Path, alpha: float = ALPHA, architecture: str = "qwen2") -> Path:
    """The same adapter as a LoRA of llama.cpp, written by hand."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    names = {"mlp.down_proj": "ffn_down", "self_attn.o_proj": "attn_output"}
    for name, tensor in load_file(folder / peft_folder.WEIGHTS).items():
        _, _, block, module, half, _ = (
            name.removeprefix("base_model.model.").replace("mlp.", "mlp/").replace("attn.", "attn/").split(".")
        )
        target = f"blk.{block}.{names[module.replace('/', '.')]}.weight.{half.lower()}"
        writer.add_tensor(target, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_peft(tmp_path_factory.mktemp("peft") / "adapter")


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    return write_gguf(folder.parent / "adapter.gguf", folder)


@pytest.fixture(scope="module")
def plain(bundled_f32: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f32, EXACT) as engine:
        yield engine


def adapted(model: Path, adapter: Path, scale: float = 1.0) -> Array:
    with load(model, options=replace(EXACT, lora=choose_lora(adapter, scale))) as engine:
        return engine.logits(TOKENS, 1)


def merged(adapter: Path, scale: float = 1.0) -> Array:
    with load(ABACUS, runtime="torch", options=EngineOptions(lora=choose_lora(adapter, scale))) as reference:
        return reference.logits(TOKENS, 1)


@pytest.mark.parametrize("scale", [1.0, 0.5, -2.0])
def test_llama_cpp_and_pytorch_agree(scale: float, bundled_f32: Path, plain: Engine, folder: Path, file: Path) -> None:
    ours, theirs = adapted(bundled_f32, file, scale), merged(folder, scale)
    apart = np.abs(ours - theirs).max(axis=1)
    assert np.median(apart) < EQUAL
    assert np.abs(ours - plain.logits(TOKENS, 1)).max() > 100 * apart.max()


def test_at_scale_0_the_model_is_as_it_was(bundled_f32: Path, plain: Engine, folder: Path, file: Path) -> None:
    assert np.array_equal(adapted(bundled_f32, file, 0.0), plain.logits(TOKENS, 1))
    with load(ABACUS, runtime="torch") as reference:
        assert np.array_equal(merged(folder, 0.0), reference.logits(TOKENS, 1))


def test_a_folder_of_peft_is_converted_with_its_rank_stabilisation_and_shown_to_be_right(
    bundled_f32: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = converter_folder()
    monkeypatch.setenv("EDGE_STEER_CACHE", str(tmp_path))
    converter_folder().symlink_to(scripts, target_is_directory=True)
    stabilised = write_peft(tmp_path / "stabilised", use_rslora=True)
    options = replace(EXACT, lora=choose_lora(stabilised, 0.5))
    texts = [TokenisedText(tuple(range(first, first + 16)), 1) for first in range(5, 105, 10)]
    file = tmp_path / "out" / "certificate.json"
    certificate = certify(bundled_f32, ABACUS, texts=texts, options=options, folder=file.parent)
    assert certificate.verdict == "pass"
    assert read_certificate(file).files[0].conditions.to_json() == certificate.files[0].conditions.to_json()
    assert certificate.files[0].conditions.to_json()["lora"] == options.described()["lora"]
    assert all(figure.holds for figure in check_again(file, options=options))
    with pytest.raises(EdgeSteerError, match="the certificate is for"):
        check_again(file, options=replace(options, lora=choose_lora(stabilised)))
    converted = convert_adapter(stabilised)  # from the cache
    assert CliRunner().invoke(main, ["convert", str(stabilised)]).output == f"{converted}\n"
    alpha = gguf_lora.read(converted).metadata["adapter.lora.alpha"]
    assert alpha == pytest.approx(ALPHA * RANK**0.5)
    apart = np.abs(adapted(bundled_f32, converted) - merged(stabilised)).max(axis=1)
    assert np.median(apart) < EQUAL
    assert choose_lora(stabilised).digest != choose_lora(folder).digest
    with pytest.raises(ModelError, match="names no model"):
        convert_adapter(write_peft(tmp_path / "orphan", base_model_name_or_path=None))


def test_every_context_has_the_adapter(bundled_f32: Path, file: Path, tmp_path: Path) -> None:
    """Contexts are made anew for more sequences, and for requests that differ in their steering."""
    with Engine.load(bundled_f32, replace(EXACT, lora=choose_lora(file, 4.0))) as engine:
        vector = SteeringVector({2: np.ones(HIDDEN, np.float32)}, engine.model)
        prompts = [engine.encode(text) for text in ("Tom has 3", "Mia has 12 shells and")]
        alone = [engine.generate([Request(prompt, 12)])[0] for prompt in prompts]
        together = engine.generate(
            [Request(prompts[0], 12), *(Request(prompts[1], 12, (Steering(vector, s),)) for s in (0, 1))]
        )
    with Engine.load(bundled_f32, EXACT) as engine:
        unadapted = engine.generate([Request(prompts[0], 12)])[0]
    assert alone == together[:2]
    assert unadapted != alone[0]


def test_results_say_which_adapter(bundled_f32: Path, folder: Path, file: Path) -> None:
    with Engine.load(bundled_f32, replace(EXACT, lora=choose_lora(file, 0.5))) as engine:
        backend = engine.provenance.backend
    assert backend["lora"] == {"digest": choose_lora(file).digest, "scale": 0.5}
    assert "lora" not in EXACT.described()
    with load(ABACUS, runtime="torch", options=EngineOptions(lora=choose_lora(folder, 0.5))) as reference:
        assert reference.model.revision
        assert reference.model.revision.endswith(f"with adapter {choose_lora(folder).digest} at 0.5")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "type 'IA3'"),
        ({"use_dora": True}, "rescales the weights"),
        ({"modules_to_save": ["lm_head"]}, "replaces whole modules"),
        ({"alpha_pattern": {"x": 2}}, "scales some modules otherwise"),
        ({"init_lora_weights": "pissa"}, "changed the model's own weights"),
        ({"bias": "all"}, "trained biases"),
        ({"lora_bias": True}, "adds biases"),
        ({"use_rslora": True, "rank_pattern": {"x": 2}}, "rank_pattern"),
        ({"r": 0}, "rank 0"),
        ({"lora_alpha": "much"}, "no adapter's settings"),
    ],
)
def test_what_a_lora_cannot_say_is_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words):
        choose_lora(write_peft(tmp_path / "adapter", **settings))


def test_an_adapter_of_another_model_is_refused_by_both(
    bundled_f32: Path, tiny_folder: Path, folder: Path, file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="LoRA for 'llama'"):
        adapted(bundled_f32, write_gguf(tmp_path / "llama.gguf", folder, architecture="llama"))
    with pytest.raises(ModelError, match=r"changes model.layers.0.mlp.down_proj by \[256, 4\]"):
        load(tiny_folder, runtime="torch", options=EngineOptions(lora=choose_lora(folder)))
    other = write_peft(tmp_path / "other", prefix="base_model.model.encoder.")
    with pytest.raises(ModelError, match="which abacus has not"):
        merged(other)
    with pytest.raises(ModelError, match="give the folder of PEFT"):
        merged(file)


def test_files_that_are_no_lora_are_refused_before_llama_cpp_sees_them(
    bundled_f32: Path, folder: Path, file: Path, tmp_path: Path
) -> None:
    content = file.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: len(content) // 2])
    (tmp_path / "renamed.gguf").write_bytes(content.replace(b"blk.3.ffn_down", b"blk.9.ffn_down"))
    (tmp_path / "odd.gguf").write_bytes(
        content.replace(b"blk.3.ffn_down.weight.lora_a", b"blk.3.ffn_down.weight.bias_a")
    )
    write_gguf(tmp_path / "zero.gguf", folder, alpha=0.0)
    whole_numbers = bytearray(content)  # type 26 of ggml, I32, by which llama.cpp crashes
    at = content.index(tensor := b"blk.3.ffn_down.weight.lora_a") + len(tensor) + 4 + 16
    whole_numbers[at : at + 4] = (26).to_bytes(4, "little")
    (tmp_path / "whole.gguf").write_bytes(whole_numbers)
    for name, words in {
        "cut.gguf": "truncated or damaged", "renamed.gguf": "which the model has not", "odd.gguf": "no part of a LoRA",
        "zero.gguf": "says no alpha", "whole.gguf": "in another type",
    }.items():  # fmt: skip
        with pytest.raises(EdgeSteerError, match=words):
            adapted(bundled_f32, tmp_path / name)
    for path in (bundled_f32, tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(ModelError):
            choose_lora(path)
    with pytest.raises(ModelError, match="finite"):
        choose_lora(file, float("nan"))


def test_run_takes_an_adapter(bundled_f32: Path, file: Path) -> None:
    words = ["run", str(bundled_f32), "Tom has 3 apples.", "-n", "8", "--threads", "1", "--json"]
    outputs = [
        CliRunner().invoke(main, [*words, *extra]) for extra in ([], ["--lora", f"{file}:0"], ["--lora", f"{file}:-3"])
    ]
    texts = [json.loads(output.stdout)["text"] for output in outputs]
    assert texts[0] == texts[1] != texts[2]


def test_a_server_lists_the_adapter_it_was_started_with(bundled_f32: Path, file: Path) -> None:
    async def listed(service: Service) -> httpx.Response:
        app = application(service, ServerOptions())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            return await http.get("/lora-adapters")

    with load(bundled_f32, options=replace(EXACT, lora=choose_lora(file, 0.5))) as engine:
        service = Service(engine, NamedVectors.of((), engine.model), ("abacus",), Access(), queue=1, defaults={})
        assert asyncio.run(listed(service)).json() == [{"id": 0, "path": file.name, "scale": 0.5}]
