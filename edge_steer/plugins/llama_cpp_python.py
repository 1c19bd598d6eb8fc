"""Steering for people who hold a `llama_cpp.Llama` already: its control vector set for a while, then cleared.

Takes their object and a vector, gives it back steered inside a `with` block. It loads no model.
"""

import contextlib
import ctypes
from collections.abc import Iterator
from weakref import WeakKeyDictionary

import llama_cpp
import numpy as np

from edge_steer.core.architectures import check_steerable
from edge_steer.core.errors import ModelError, VectorError
from edge_steer.core.steering import Offsets, Steer, steerings
from edge_steer.core.vector import ModelIdentity

_in_force: "WeakKeyDictionary[llama_cpp.Llama, Offsets | None]" = WeakKeyDictionary()


@contextlib.contextmanager
def steer(llama: llama_cpp.Llama, vector: Steer) -> Iterator[llama_cpp.Llama]:
    """Steer a `llama_cpp.Llama` inside a `with` block; afterwards it is as before, also inside another block.

    vector: a SteeringVector, a Steering, a list of them, or None for no steering. What is cached of earlier prompts
    was computed under another steering: the object starts from an empty context on the way in and out, and its
    `set_cache` cache rests inside the block. Errors: VectorError for another model's vector, layer 0 or another phase
    than "all", which llama.cpp's own control vector cannot honour; ModelError for an object that is no Llama, or an
    architecture that llama.cpp cannot steer.
    """
    if not isinstance(llama, llama_cpp.Llama):
        raise ModelError(f"a {type(llama).__name__} cannot be steered here; give a llama_cpp.Llama")
    model = _identity(llama)
    offsets = Offsets.of(steerings(vector), model)
    if offsets:
        if offsets.phase != "all":
            raise VectorError("a Llama steers every token alike; use phase 'all', or edge_steer.load's model")
        check_steerable(offsets.by_layer, model)
    outer, cache = _in_force.get(llama), llama.cache
    _set(llama, offsets, model)
    llama.set_cache(None)
    try:
        yield llama
    finally:
        llama.set_cache(cache)
        _set(llama, outer, model)


def _set(llama: llama_cpp.Llama, offsets: Offsets | None, model: ModelIdentity) -> None:
    """Put the offsets in force from an empty cache on."""
    llama.reset()
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llama.ctx), True)
    # llama_set_adapter_cvec(ctx, const float * data, size_t len, n_embd, il_start, il_end), data from layer 1 on
    buffer = np.zeros((model.block_count - 1, model.hidden_size), dtype=np.float32)
    layers = offsets.by_layer if offsets else {}
    for layer, offset in layers.items():
        buffer[layer - 1] = offset
    data = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) if layers else None
    first, last = (min(layers), max(layers)) if layers else (0, 0)
    size = buffer.size if layers else 0
    if llama_cpp.llama_set_adapter_cvec(llama.ctx, data, size, model.hidden_size, first, last):
        raise VectorError("llama.cpp refused the control vector")
    _in_force[llama] = offsets


def _identity(llama: llama_cpp.Llama) -> ModelIdentity:
    return ModelIdentity(
        name=llama.metadata.get("general.name") or llama.model_path,
        architecture=llama.metadata.get("general.architecture"),
        hidden_size=llama.n_embd(),
        block_count=llama_cpp.llama_model_n_layer(llama.model),
    )
