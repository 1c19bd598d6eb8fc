"""hook.py: the residual stream read while llama.cpp computes, against PyTorch's and against itself."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from llama_cpp._ggml import libggml

from edge_steer.core.errors import ModelError
from edge_steer.core.vector import Array
from edge_steer.llama.context import LlamaContext
from edge_steer.llama.hook import ResidualHook
from edge_steer.llama.model import LlamaModel
from edge_steer.reference.model import Reference

TEXT = "Jon starts with 12 apples. Now 12 + 3 = 15.\n\nThe answer is \\boxed{15}."


@pytest.fixture(scope="module")
def model(bundled_f32: Path) -> Iterator[LlamaModel]:
    with LlamaModel(bundled_f32) as loaded:
        yield loaded


@pytest.fixture
def context(model: LlamaModel) -> Iterator[LlamaContext]:
    with made(model) as hooked:
        yield hooked


def made(model: LlamaModel, sequences: int = 1) -> LlamaContext:
    return LlamaContext(
        model, length=256, sequences=sequences, threads=1, kv_type="f32", flash_attention="off", hooked=True
    )


def read(context: LlamaContext, layers: list[int], wanted: slice = slice(None)) -> Array:
    """The states of TEXT from an empty cache, and reading ended."""
    tokens = context.model.tokenize(TEXT, add_special=True)
    marked = np.zeros(len(tokens), dtype=np.bool_)
    marked[wanted] = True
    context.forget(0)
    context.read(layers)
    context.decode(tokens, np.arange(len(tokens)), 0, marked)
    states = context.states()
    context.read(())
    return states


def test_states_are_those_of_pytorch_at_every_layer(context: LlamaContext, bundled: Reference) -> None:
    layers = list(range(6))
    expected = bundled.record(bundled.encode(TEXT), layers)
    found = read(context, layers)
    for layer in layers:
        size = np.linalg.norm(expected[layer], axis=1, keepdims=True)
        assert (np.abs(found[layer] - expected[layer]) / size).max() < 2e-5
        if layer:
            assert (np.abs(found[layer] - expected[layer - 1]) / size).max() > 0.05


class GgmlParameters(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def test_of_all_nodes_the_wanted_layers_alone_are_asked_for() -> None:
    """The first 8 bytes of l_out-10 are those of l_out-100 too."""
    libggml.ggml_init.argtypes, libggml.ggml_init.restype = [GgmlParameters], ctypes.c_void_p
    libggml.ggml_new_tensor_1d.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int64]
    libggml.ggml_new_tensor_1d.restype = ctypes.c_void_p
    libggml.ggml_set_name.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    libggml.ggml_free.argtypes = [ctypes.c_void_p]
    ggml = libggml.ggml_init(GgmlParameters(2**16, None, True))
    tensor = libggml.ggml_new_tensor_1d(ggml, 0, 8)
    hook = ResidualHook(8, 1)

    def asked(name: str) -> bool:
        libggml.ggml_set_name(tensor, name.encode())
        return bool(hook.callback(tensor, True, None))

    names = ["l_out-1", "l_out-10", "l_out-100", "l_out-10 (view)", "l_out-2", "norm-10", ""]
    assert [name for name in names if asked(name)] == []
    hook.add({10: np.zeros((1, 8), dtype=np.float32)})
    assert [name for name in names if asked(name)] == ["l_out-10"]
    hook.add({layer: np.zeros((1, 8), dtype=np.float32) for layer in (1, 100)})
    assert [name for name in names if asked(name)] == ["l_out-1", "l_out-100"]
    libggml.ggml_free(ggml)


@pytest.mark.parametrize("wanted", [slice(-1, None), slice(3, 9)])
def test_only_the_wanted_rows_are_kept_the_last_block_included(context: LlamaContext, wanted: slice) -> None:
    whole, some = read(context, [2, 5]), read(context, [2, 5], wanted)
    assert some.shape == whole[:, wanted].shape
    np.testing.assert_array_equal(some[0], whole[0, wanted])
    np.testing.assert_allclose(some[1], whole[1, wanted], rtol=1e-4, atol=1e-3)


def test_a_batch_ends_at_the_last_layer_read(context: LlamaContext) -> None:
    """Nothing is cached for the blocks after it, so a token that looks back at the batch is told wrong things."""
    tokens = context.model.tokenize(TEXT, add_special=True)
    some = read(context, [0, 1])
    context.decode([tokens[0]], [len(tokens)], 0, 1)
    cut = context.logits().copy()
    context.forget(0)
    context.prefill(tokens, 0, 0)
    context.decode([tokens[0]], [len(tokens)], 0, 1)
    assert np.abs(cut - context.logits()).max() > 1
    np.testing.assert_array_equal(read(context, [0, 1, 4])[:2], some)


def test_after_reading_batches_are_whole_again(context: LlamaContext) -> None:
    tokens = context.model.tokenize(TEXT, add_special=True)
    found = []
    for layers in ([], [3], [5]):
        if layers:
            read(context, layers)
        context.forget(0)
        context.decode(tokens, np.arange(len(tokens)), 0, 1)
        found.append(context.logits().copy())
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_what_is_added_is_read(context: LlamaContext) -> None:
    offset = np.linspace(-3, 3, context.model.hidden_size, dtype=np.float32)
    plain = read(context, [1, 2, 3])
    context.add({2: offset[None]})
    steered = read(context, [1, 2, 3])
    context.add({})
    np.testing.assert_array_equal(steered[0], plain[0])
    np.testing.assert_array_equal(steered[1], plain[1] + offset)
    assert np.abs(steered[2] - plain[2]).max() > 0.1
    np.testing.assert_array_equal(read(context, [1, 2, 3]), plain)


def test_what_cannot_be_read_is_refused(context: LlamaContext) -> None:
    with pytest.raises(ModelError, match="does not compute l_out-6 in this model"):
        read(context, [2, 6])
    with made(context.model, sequences=2) as two:
        two.read([1])
        with pytest.raises(ModelError, match=r"l_out-1 has . rows of a batch; 3 were to be read"):
            two.decode([5, 6, 7], [0, 0, 1], [0, 1, 1], 1)
