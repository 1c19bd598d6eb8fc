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
from edge_steer.core.backend import MOST_SCALE, EngineOptions, Lora, Recording, Request
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
    for scale in (float("nan"), float("inf"), -1001.0):
        with pytest.raises(ModelError, match=r"must lie in -1000..1000"):
            choose_lora(file, scale)


def test_run_takes_an_adapter(bundled_f32: Path, file: Path) -> None:
    words = ["run", str(bundled_f32), "Tom has 3 apples.", "-n", "8", "--threads", "1", "--json"]
    outputs = [
        CliRunner().invoke(main, [*words, *extra]) for extra in ([], ["--lora", f"{file}:0"], ["--lora", f"{file}:-3"])
    ]
    texts = [json.loads(output.stdout)["text"] for output in outputs]
    assert texts[0] == texts[1] != texts[2]


@pytest.fixture(scope="module")
def other(folder: Path) -> Path:
    return write_gguf(folder.parent / "other.gguf", write_peft(folder.parent / "other", seed=1))


@pytest.fixture(scope="module")
def choosing(bundled_f32: Path, file: Path, other: Path) -> Iterator[Engine]:
    """An engine of two adapters, which goes on with what is cached."""
    options = replace(EXACT, loras=(choose_lora(file), choose_lora(other)), parallel=4, context=256, keep_cache=True)
    with load(bundled_f32, options=options) as engine:
        assert isinstance(engine, Engine)
        engine.reserve()
        yield engine


def chosen(file: Path, other: Path) -> list[tuple[Lora, ...] | None]:
    """Adapters that requests name: none, some that all answer differently, and one at scale 0."""
    one, two, mirrored = choose_lora(file, 3.0), choose_lora(other, 3.0), choose_lora(file, -3.0)
    return [None, (), (one,), (mirrored,), (two,), (one, two), (choose_lora(file, 0.0),)]


def answer(engine: Engine, loras: tuple[Lora, ...] | None, steering: tuple[Steering, ...] = ()) -> tuple[int, ...]:
    (completion,) = engine.generate([Request(TOKENS, 12, steering, loras=loras)])
    assert completion.finish == "length", completion.error
    return completion.tokens


def test_every_request_of_a_batch_runs_with_its_own_adapters(
    bundled_f32: Path, choosing: Engine, plain: Engine, file: Path, other: Path
) -> None:
    ways = chosen(file, other)
    alone = [answer(choosing, loras) for loras in ways]
    assert alone[0] == alone[1] == alone[6] == answer(plain, None)
    assert len({*alone}) == 5
    for loras, tokens in zip(ways[2:5], alone[2:5], strict=True):
        with load(bundled_f32, options=replace(EXACT, lora=loras[0] if loras else None)) as engine:
            assert answer(engine, None) == tokens
            assert engine.generate([Request(TOKENS, 12, loras=())])[0].tokens == alone[0]
    mixed = [loras for loras in ways for _ in range(3)]
    completions = choosing.generate([Request(TOKENS, 12, loras=loras) for loras in mixed])
    assert [one.tokens for one in completions] == [tokens for tokens in alone for _ in range(3)]


def test_what_is_cached_under_one_adapter_serves_no_other(choosing: Engine, file: Path, other: Path) -> None:
    prompt = (*TOKENS, *range(90, 130))
    ways = chosen(file, other)[2:5]

    def asked(loras: tuple[Lora, ...] | None) -> tuple[tuple[int, ...], int]:
        (completion,) = choosing.generate([Request(prompt, 4, loras=loras)])
        return completion.tokens, completion.timings.reused

    first = [asked(loras) for loras in ways]
    assert [reused for _, reused in first] == [0] * len(ways)
    again = [asked(loras) for loras in reversed(ways)][::-1]
    assert [tokens for tokens, _ in again] == [tokens for tokens, _ in first]
    assert [reused for _, reused in again] == [len(prompt) - 1] * len(ways)


def test_adapters_and_steering_add_up(choosing: Engine, bundled_f32: Path, file: Path, other: Path) -> None:
    direction = np.random.default_rng(0).standard_normal(HIDDEN).astype(np.float32)
    vector = SteeringVector({2: direction}, choosing.model)
    steered = [(Steering(vector, strength),) for strength in (8.0, -8.0)]
    loras = (choose_lora(other, 3.0),)
    requests = [
        Request(TOKENS, 12, steering, loras=chosen)
        for chosen in ((), loras)
        for steering in ((), *steered)
        for _ in "ab"
    ]
    mixed = [one.tokens for one in choosing.generate(requests)]
    assert mixed == [choosing.generate([request])[0].tokens for request in requests]
    with load(bundled_f32, options=replace(EXACT, lora=loras[0])) as engine:
        assert mixed[6::2] == [answer(engine, None, steering) for steering in ((), *steered)]
    assert len({*mixed}) == 6


def test_those_that_wait_for_another_adapter_are_not_overtaken(choosing: Engine, file: Path, other: Path) -> None:
    """Requests of one adapter run together; who comes later waits behind those of another that were there."""
    ended: list[str] = []

    def submit(name: str, path: Path, tokens: int) -> None:
        loras = (choose_lora(path),)
        choosing.submit(
            Request(TOKENS, tokens, loras=loras), on_done=lambda _: ended.append(name), on_piece=lambda _: None
        )

    submit("first", file, 8)
    choosing.step()
    submit("other", other, 2)
    submit("beside", file, 2)
    submit("other again", other, 2)
    while choosing.step():
        pass
    assert ended == ["first", "other", "other again", "beside"]


def test_the_largest_scale_spoils_no_later_answer(choosing: Engine, file: Path) -> None:
    before = choosing.generate([Request(TOKENS[:20], 8)])
    for sign in (-1, 1):
        largest = Request(TOKENS, 30, loras=(choose_lora(file, sign * MOST_SCALE),))
        assert [one.error for one in choosing.generate([largest] * 4)] == [""] * 4
        assert choosing.generate([Request(TOKENS[:20], 8)] * 4) == before * 4


def test_logits_are_of_the_adapters_that_are_named(choosing: Engine, bundled_f32: Path, file: Path) -> None:
    def scored(loras: tuple[Lora, ...] | None) -> Array:
        return np.concatenate([rows.copy() for rows in choosing.logit_rows(TOKENS, 1, loras=loras)])

    without = scored(None)
    with_one = scored((choose_lora(file, 3.0),))
    assert np.array_equal(with_one, adapted(bundled_f32, file, 3.0))
    recorded = choosing.logit_rows(TOKENS, 1, (), Recording((2,), (0,)), (choose_lora(file, 3.0),))
    np.testing.assert_allclose(np.concatenate([rows.copy() for rows in recorded]), with_one, atol=1e-3)
    assert np.array_equal(scored(()), without)
    assert not np.array_equal(with_one, without)


def test_an_adapter_that_was_not_loaded_is_refused(plain: Engine, file: Path) -> None:
    with pytest.raises(ModelError, match="none of the adapters that this model was loaded with"):
        plain.generate([Request(TOKENS, 2, loras=(choose_lora(file),))])
    with load(ABACUS, runtime="torch") as reference:
        (completion,) = reference.generate([Request(TOKENS, 2, loras=())])
        assert "adapter" in completion.error


def test_a_server_runs_each_request_with_the_adapters_it_names(bundled_f32: Path, file: Path, other: Path) -> None:
    loras = (choose_lora(file, -3.0), choose_lora(other, 3.0))
    body = {"prompt": list(TOKENS), "n_predict": 12, "temperature": 0, "ignore_eos": True}

    async def ask(service: Service) -> None:
        app = application(service, ServerOptions())
        service.worker.start()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:

            async def said(**more: object) -> Any:
                return (await http.post("/completion", json=body | more)).json()

            listed = (await http.get("/lora-adapters")).json()
            assert [(one["id"], one["path"], one["scale"]) for one in listed] == [
                (0, file.name, -3),
                (1, other.name, 3),
            ]
            both, none, one = await asyncio.gather(
                said(), said(lora=[]), said(lora=[{"id": 1, "scale": 3.0}, {"id": 0, "scale": 0.0}])
            )
            assert len({answer["content"] for answer in (both, none, one)}) == 3
            assert [entry["scale"] for entry in both["lora"]] == [-3, 3]
            assert [entry["scale"] for entry in one["lora"]] == [0, 3]
            chat = {
                "messages": [{"role": "user", "content": "3 + 4?"}],
                "max_tokens": 4,
                "lora": [{"id": 1, "scale": 3.0}],
            }
            assert (await http.post("/v1/chat/completions", json=chat)).json()["lora"] == one["lora"]
            assert (await http.post("/lora-adapters", json=[{"id": 1, "scale": 3.0}])).json() == {"success": True}
            assert (await said())["content"] == one["content"]
            wrong = await http.post("/completion", json={**body, "lora": [{"id": 2, "scale": 3.0}]})
            assert (wrong.status_code, wrong.json()["error"]["message"]) == (400, "no adapter 2; there are 0 to 1")
            assert (await http.post("/lora-adapters", content=b'[{"id": 0, "scale": NaN}]')).status_code == 400
            scoring = {"messages": chat["messages"], "answer": [5, 6], "lora": chat["lora"]}
            assert (await http.post("/v1/chat/logprobs", json=scoring)).json()["lora"] == one["lora"]
            legacy = {"prompt": list(TOKENS), "max_tokens": 0, "echo": True, "logprobs": 1}
            scored = [
                (await http.post("/v1/completions", json={**legacy, "lora": chosen})).json()["choices"][0]["logprobs"]
                for chosen in ([], [{"id": 1, "scale": 3.0}])
            ]
            assert scored[0]["token_logprobs"] != scored[1]["token_logprobs"]
        service.worker.stop()

    with load(bundled_f32, options=replace(EXACT, loras=loras, parallel=4, context=256, keep_cache=True)) as engine:
        named = NamedVectors.of((), engine.model)
        asyncio.run(ask(Service(engine, named, ("abacus",), Access(), queue=8, defaults={}, loras=loras)))
