"""A GGUF's weights in PyTorch: the model of the Hugging Face folder, and what cannot be represented is refused."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import ModelError
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.llama.model import LlamaModel
from edge_steer.models.load import load, load_recorder
from edge_steer.models.quantize import quantize
from edge_steer.parity.tolerances import MECHANISM
from edge_steer.reference.gguf_weights import check_representable, load_dequantised
from edge_steer.reference.model import Reference
from edge_steer.storage.digests import digest
from edge_steer.storage.gguf_header import read_header

TEXT = "Mia has 3 apples and buys 4 more. How many has she now?\n\nStep 1: she has 3."
EXACT = EngineOptions(context=256, threads=1, kv_type="f32", flash_attention="off")


@pytest.fixture(scope="module")
def q4(bundled_f16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(bundled_f16, "Q4_K_M", tmp_path_factory.mktemp("q4") / "abacus-Q4_K_M.gguf", threads=1)


def test_the_twin_of_an_f16_file_is_the_model_it_was_made_from(bundled_f16: Path, bundled: Reference) -> None:
    with load(bundled_f16, runtime="torch", options=EXACT) as twin:
        tokens = bundled.encode(TEXT)
        assert twin.encode(TEXT) == tokens
        assert twin.chat([{"role": "user", "content": TEXT}]) == bundled.chat([{"role": "user", "content": TEXT}])
        np.testing.assert_array_equal(twin.logits(tokens, 1), bundled.logits(tokens, 1))
        assert twin.model.revision == f"dequantised from {digest(bundled_f16)}"
        assert (twin.model.name, twin.model.architecture) == (bundled.model.name, bundled.model.architecture)


def test_a_quantised_file_its_twin_and_its_f32_file_hold_the_same_weights(
    q4: Path, bundled: Reference, bundled_vector: SteeringVector, tmp_path: Path
) -> None:
    f32 = quantize(q4, "F32", tmp_path / "abacus-Q4_K_M-F32.gguf", threads=1)
    steering = (Steering.of(bundled_vector, 1.0, layers=[3]),)
    with load(q4, runtime="torch", options=EXACT) as twin, load(f32, options=EXACT) as engine:
        tokens = engine.encode(TEXT)
        ours = twin.logits(tokens, 1, steering)
        distances = np.abs(ours - engine.logits(tokens, 1, steering)).max(axis=1)
        assert np.median(distances) <= MECHANISM
        unquantised = bundled.logits(tokens, 1, steering)
    assert np.median(np.abs(ours - unquantised).max(axis=1)) > 1000 * MECHANISM


def test_a_dequantised_file_can_be_quantised_to_any_type_and_no_other_can(q4: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"quantised already; .* dequantise it to F32 first"):
        quantize(q4, "Q8_0", tmp_path / "refused.gguf", threads=1)
    f16 = quantize(q4, "F16", tmp_path / "twin.gguf", threads=1)
    assert {tensor.type for tensor in read_header(f16).tensors} == {0, 1}
    q8 = quantize(f16, "Q8_0", tmp_path / "again.gguf", threads=1)
    assert read_header(q8).metadata["general.file_type"] == 7
    assert {path.name for path in tmp_path.iterdir()} == {"twin.gguf", "again.gguf"}


def test_a_vector_can_be_extracted_from_a_gguf_in_either_runtime(bundled_f16: Path) -> None:
    with (
        load_recorder(bundled_f16, options=EXACT) as engine,
        load_recorder(bundled_f16, "torch", options=EXACT) as twin,
    ):
        tokens = engine.encode(TEXT)
        ours, theirs = engine.record(tokens, [2])[2], twin.record(tokens, [2])[2]
        assert type(engine).__name__ == "Engine" and isinstance(twin, Reference)
        np.testing.assert_allclose(ours, theirs, atol=0.02 * np.abs(theirs).max())


def write_gguf(path: Path, architecture: str, keys: dict[str, float], tensor: str, kind: int) -> Path:
    """A GGUF with one tensor, which says it is of type `kind`."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        writer.add_float32(key, value)
    writer.add_tensor(tensor, np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = path.read_bytes()
    at = data.index(tensor.encode()) + len(tensor) + 4 + 2 * 8  # behind its name, number of dimensions, dimensions
    path.write_bytes(data[:at] + struct.pack("<I", kind) + data[at + 4 :])
    return path


@pytest.mark.parametrize(
    ("architecture", "keys", "name", "kind", "words"),
    [
        ("plamo2", {}, "token_embd.weight", 0, "it does not read the architecture 'plamo2'"),
        (
            "qwen2",
            {"qwen2.rope.scaling.factor": 4.0},
            "token_embd.weight",
            0,
            "does not read qwen2.rope.scaling.factor",
        ),
        ("llama", {}, "rope_freqs.weight", 0, "it does not read the tensor rope_freqs.weight"),
        ("llama", {}, "token_embd.weight", 36, "it does not read tensors of type 36"),
        ("llama", {}, "token_embd.weight", 24, "it does not read tensors of type I8"),
    ],
)
def test_what_transformers_does_not_read_is_refused_by_name(
    architecture: str, keys: dict[str, float], name: str, kind: int, words: str, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "odd.gguf", architecture, keys, name, kind)
    with pytest.raises(ModelError, match=words) as caught:
        check_representable(path, read_header(path))
    assert "\n" not in str(caught.value)


def test_weights_that_transformers_would_pass_over_are_refused(bundled_f16: Path, tmp_path: Path) -> None:
    path = tmp_path / "steered.gguf"
    reader = gguf.GGUFReader(bundled_f16)
    writer = gguf.GGUFWriter(path, "qwen2")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(
                field.name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None
            )
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.add_tensor("blk.3.ffn_down.bias", np.ones(256, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with (
        LlamaModel(bundled_f16) as vocabulary,
        pytest.raises(ModelError, match=r"transformers takes \d+ weights of .*steered.gguf, which holds \d+"),
    ):
        load_dequantised(path, vocabulary)
