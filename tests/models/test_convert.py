"""Conversion, quantising and model recipes: a small real model through llama.cpp's own converter and quantiser."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from heard import Heard
from paths import ROOT

from edge_steer.core.errors import EdgeSteerError, ModelError
from edge_steer.llama.model import LlamaModel
from edge_steer.models import convert, describe, quantize
from edge_steer.models.convert_driver import pre_tokenizer_name
from edge_steer.models.file import ModelFile
from edge_steer.models.recipe import ModelRecipe, bundled_model
from edge_steer.recipes.recipe import VectorRecipe
from edge_steer.storage.gguf_header import read_header

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
TEXTS = [
    "Jon starts with 12 apples.\n\nNow 12 + 3 = 15.\n\nThe answer is \\boxed{15}.",
    "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n",
    "I'VE 1234567 o'clocks,\tdon't\r\n\r\n  you?   été 我想 🚀🚀 \u00a0 e ...!!! x=f(y)_z ",
    "",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the module's own, with the converter from the user's cache."""
    pytest.importorskip("torch", reason="conversion needs edge-steer[convert]")
    scripts = convert.converter_folder()
    if not scripts.is_dir():
        pytest.skip(
            "llama.cpp's converter is not in the cache; fetch it with edge_steer.models.convert.fetch_converter()"
        )
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("EDGE_STEER_CACHE", str(folder))
        convert.converter_folder().symlink_to(scripts, target_is_directory=True)
        yield folder


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight float16 Qwen2 of hidden size 256, which K-quants need, with the bundled tokenizer.

    No text in the tests has combining marks: Hugging Face composes them for Qwen2 (NFC), llama.cpp does not.
    """
    torch = pytest.importorskip("torch", reason="making a model needs edge-steer[convert]")
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("models") / "wide"
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=768,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).half().save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(ROOT / "models" / "abacus" / name, folder)
    return folder


@pytest.fixture(scope="module")
def f16(cache: Path, wide_folder: Path) -> Path:
    return convert.convert(wide_folder)


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def test_the_lossless_type_is_the_default_and_the_weights_are_exact(f16: Path, wide_folder: Path) -> None:
    from safetensors.numpy import load_file

    assert f16.name.startswith("wide-F16-")
    weights, converted = load_file(wide_folder / "model.safetensors"), tensors(f16)
    assert np.array_equal(converted["blk.1.ffn_up.weight"].data, weights["model.layers.1.mlp.up_proj.weight"])
    assert np.array_equal(converted["output_norm.weight"].data, weights["model.norm.weight"].astype(np.float32))


def test_the_gguf_says_what_the_model_is(f16: Path) -> None:
    metadata = read_header(f16).metadata
    assert metadata["general.architecture"] == "qwen2"
    assert metadata["general.name"] == "wide"
    assert metadata["tokenizer.ggml.pre"] == "qwen2"
    assert metadata["tokenizer.ggml.eos_token_id"] == 2
    assert not metadata.get("tokenizer.ggml.add_bos_token", False)
    assert metadata["tokenizer.chat_template"] == (ROOT / "models/abacus/chat_template.jinja").read_text()


def test_a_model_file_is_described(f16: Path) -> None:
    facts = describe.describe_model(f16)
    assert facts is not None
    assert (facts["name"], facts["architecture"], facts["blocks"], facts["hidden size"]) == ("wide", "qwen2", 2, 256)
    assert facts["tensors"] == "15 F16, 11 F32"


def test_llama_cpp_tokenises_as_hugging_face_does(f16: Path, wide_folder: Path) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(wide_folder)
    rng = random.Random(0)
    alphabet = "abzAZ 019.,!?'sSreve\n\n\r\t  {}\\éñ我🚀\u00a0_-=+"
    texts = TEXTS + ["".join(rng.choices(alphabet, k=rng.randrange(1, 60))) for _ in range(300)]
    with LlamaModel(f16) as model:
        for text in texts:
            assert model.tokenize(text, add_special=True) == tuple(reference(text)["input_ids"]), text


def test_f32_converted_equals_f32_widened(f16: Path, wide_folder: Path, tmp_path: Path) -> None:
    converted = tensors(convert.convert(wide_folder, tmp_path / "wide.gguf", "F32"))
    widened = tensors(quantize.quantize(f16, "F32"))
    assert converted.keys() == widened.keys()
    for name, tensor in converted.items():
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert np.array_equal(tensor.data, widened[name].data), name


@pytest.mark.parametrize(("quant", "kinds", "error"), [("Q8_0", {"Q8_0"}, 0.01), ("q4_k_m", {"Q4_K", "Q6_K"}, 0.1)])
def test_quantised_weights_are_near_and_of_the_type_asked(f16: Path, quant: str, kinds: set[str], error: float) -> None:
    path = quantize.quantize(f16, quant, threads=1)
    assert path.name.startswith(f"wide-{quant.upper()}-")
    exact = tensors(f16)
    found = set()
    for name, tensor in tensors(path).items():
        if len(tensor.shape) == 2:
            found.add(tensor.tensor_type.name)
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
            original = exact[name].data.astype(np.float32)
            assert np.linalg.norm(values - original) < error * np.linalg.norm(original), name
    assert found == kinds


def test_the_chain_uses_the_cache(f16: Path, wide_folder: Path, cache: Path) -> None:
    heard = Heard()
    first = quantize.gguf_for(wide_folder, "Q5_0", threads=1, progress=heard)
    assert heard.notes == [f"quantising {f16.name} to Q5_0"]
    assert quantize.gguf_for(str(wide_folder), "q5_0", threads=1, progress=heard) == first
    assert quantize.gguf_for(f16, "F16") == quantize.gguf_for(f16) == quantize.gguf_for(wide_folder) == f16
    assert quantize.gguf_for(first, "Q5_0") == first
    assert (ModelFile(first).quant, ModelFile(f16).quant) == ("Q5_0", "F16")
    assert len(heard.notes) == 1
    assert not list(cache.glob("*.partial"))


def test_an_unknown_tokenizer_is_refused_in_one_line_and_not_served_from_the_cache(
    f16: Path, wide_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "wide"
    shutil.copytree(wide_folder, folder)
    assert convert.convert(folder) == f16
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+|\S+"
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    before = sorted(f16.parent.iterdir())
    with pytest.raises(ModelError, match=r"refuses .*wide: its pre-tokenizer is known neither") as caught:
        convert.convert(folder)
    assert "\n" not in str(caught.value)
    assert sorted(f16.parent.iterdir()) == before


def test_an_unknown_architecture_is_refused_in_one_line(cache: Path, wide_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(wide_folder, folder)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["OddForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"OddForCausalLM is not supported"):
        convert.convert(folder)


def test_what_is_no_model_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_STEER_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "m"
    folder.mkdir()
    with pytest.raises(EdgeSteerError, match=r"config\.json; expected"):
        convert.convert(folder)
    (folder / "config.json").write_text("{")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match=r"holds no \.safetensors"):
        convert.convert(folder)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="is no model's config"):
        convert.convert(folder)
    for source in ("no-such-folder", "a/b/c", "../x", str(folder / "config.json"), "-x/y"):
        with pytest.raises(ModelError, match="neither a folder"):
            convert.convert(source)
    with pytest.raises(ModelError, match="no type 'Q8_0'; allowed are F32, F16, BF16"):
        convert.convert(folder, outtype="Q8_0")


def test_a_hub_id_without_network_is_one_line(tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads HF_HUB_OFFLINE when it is imported."""
    code = (
        "import os; os.environ.update(HF_HUB_OFFLINE='1', HF_HOME=os.getcwd())\n"
        "from edge_steer.core import errors\nfrom edge_steer.models import convert\n"
        "try: convert.convert('nobody/nothing', revision='f' * 40)\n"
        "except errors.ModelError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cannot fetch nobody/nothing from the Hugging Face hub: ")
    assert done.stdout.count("\n") == 1


def test_the_converter_cannot_be_fetched_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_STEER_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(ModelError, match=r"cannot fetch llama.cpp's converter .*: ERROR: ") as caught:
        convert.fetch_converter()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_quantize_refuses(f16: Path, tmp_path: Path) -> None:
    quantised = quantize.quantize(f16, "Q8_0", tmp_path / "q8.gguf", threads=1)
    with pytest.raises(ModelError, match=r"q8\.gguf is quantised already"):
        quantize.quantize(quantised, "Q4_0")
    with pytest.raises(ModelError, match=r"no type 'Q9'; allowed are F32, F16, BF16, Q8_0"):
        quantize.quantize(f16, "Q9")
    with pytest.raises(ModelError, match="is the source itself"):
        quantize.quantize(f16, "Q8_0", f16)
    with pytest.raises(ModelError, match="no model"):
        quantize.quantize(ROOT / "tests" / "vectors" / "golden" / "vector.gguf", "Q8_0")
    with pytest.raises(EdgeSteerError, match="cannot write"):
        quantize.quantize(f16, "Q8_0", tmp_path / "absent" / "a.gguf")
    truncated = tmp_path / "cut.gguf"
    truncated.write_bytes(f16.read_bytes()[: f16.stat().st_size // 2])
    with pytest.raises(ModelError):
        quantize.quantize(truncated, "Q8_0", tmp_path / "b.gguf", threads=1)
    for content in (b"", b"GGUF", b"text"):
        (tmp_path / "bad.gguf").write_bytes(content)
        with pytest.raises(ModelError, match=r"bad\.gguf"):
            quantize.gguf_for(tmp_path / "bad.gguf", "Q8_0")
    with pytest.raises(ModelError, match="no such file"):
        quantize.gguf_for(tmp_path / "absent.gguf", "Q8_0")
    assert {path.name for path in tmp_path.iterdir()} == {"q8.gguf", "cut.gguf", "bad.gguf"}


def test_an_interrupt_while_llama_cpp_quantises_is_an_interrupt(bundled_f16: Path, tmp_path: Path) -> None:
    """llama.cpp logs every tensor through Python, where an exception would be lost."""
    for quant, delay in (("Q2_K", 0.005), ("Q2_K", 0.02), ("Q3_K_M", 0.04), ("IQ3_S", 0.04)):
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            for _ in range(20):
                quantize.quantize(bundled_f16, quant, tmp_path / "q.gguf")
    for left in tmp_path.iterdir():
        assert left.name == "q.gguf"
        assert read_header(left).tensors


def test_pre_tokenizers_are_recognised_by_their_whole_definition() -> None:
    tokenizer = json.loads((ROOT / "models" / "abacus" / "tokenizer.json").read_text())
    assert pre_tokenizer_name(tokenizer) == "qwen2"
    split, byte_level = tokenizer["pre_tokenizer"]["pretokenizers"]
    for other in (
        None,
        {"type": "ByteLevel"},
        {"pretokenizers": [byte_level, split]},
        {"pretokenizers": [split, byte_level | {"add_prefix_space": True}]},
        {"pretokenizers": [split | {"behavior": "Removed"}, byte_level]},
        {"pretokenizers": [split, split, byte_level]},
    ):
        assert pre_tokenizer_name({"pre_tokenizer": other}) is None
    assert pre_tokenizer_name({}) is None


def test_the_bundled_recipes_load() -> None:
    model = ModelRecipe.load(bundled_model())
    vector = VectorRecipe.load(ROOT / "export" / "abacus" / "dense")
    assert Path(model.source) == model.folder
    assert (vector.model, vector.vector) == (model.name, "vector.gguf")
    assert vector.layer in model.layers
    assert 0 not in model.layers


MODEL_RECIPE = {
    "name": '"m"',
    "source": '"."',
    "layers": '"1-3"',
    "layer": "2",
    "strength": "0.5",
    "quants": '["Q8_0"]',
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer": "9"}, "layer: 9 is not among layers 1-3"),
        ({"layer": "true"}, "layer: True is not a whole number"),
        ({"layer": "-1"}, "layer: -1 is not a whole number"),
        ({"layers": '"x"'}, "cannot read layers 'x'"),
        ({"strength": '"0.5"'}, "strength: '0.5' is not a finite number"),
        ({"strength": "nan"}, "strength: nan is not a finite number"),
        ({"quants": "[1]"}, r"quants: \[1\] is not a list of strings"),
        ({"name": "1"}, "name: 1 is not a string"),
        (
            {"source": '"a/b"', "revision": '"main"'},
            "revision: 'main' is no full commit hash of a hub id; leave it out",
        ),
        ({"revision": f'"{"a" * 40}"'}, "revision: 'a+' is no full commit hash of a hub id; leave it out"),
        ({"blocks": "3"}, "layers: 1-3 go beyond the last of 3 blocks"),
        ({"blocks": "-1"}, "blocks: -1 is not a whole number"),
        ({"quants": "[]"}, "quants: is empty; name at least one type"),
        ({"ggufs": '"a/b"'}, "ggufs: 'a/b' is not a list of strings"),
        ({"colour": '"red"'}, "colour: no such key; allowed are blocks, chat, gguf, ggufs, index, layer, layers, name"),
        ({"name": "'"}, "is not TOML"),
    ],
)
def test_recipes_are_strict(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    def write(table: dict[str, str]) -> None:
        (tmp_path / "recipe.toml").write_text("".join(f"{key} = {value}\n" for key, value in table.items()))

    write(MODEL_RECIPE)
    assert ModelRecipe.load(tmp_path).gguf is None
    write(MODEL_RECIPE | changes)
    with pytest.raises(EdgeSteerError, match=words) as caught:
        ModelRecipe.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_recipes_missing_or_incomplete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EdgeSteerError, match="no such file"):
        ModelRecipe.load(tmp_path)
    (tmp_path / "recipe.toml").write_text('phase = "prompt"')
    with pytest.raises(EdgeSteerError, match="phase: allowed are all, generated"):
        VectorRecipe.load(tmp_path)
    (tmp_path / "recipe.toml").write_text('phase = "all"')
    with pytest.raises(EdgeSteerError, match="is missing"):
        VectorRecipe.load(tmp_path)
    monkeypatch.setattr("edge_steer.models.recipe.BUNDLED", Path("models", "absent"))
    with pytest.raises(EdgeSteerError, match="name a model folder"):
        bundled_model()
