"""A `llama_cpp.Llama` of one's own, steered: the same greedy tokens as the engine with the same steering."""

from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from edge_steer.core.backend import EngineOptions, Request
from edge_steer.core.errors import ModelError, VectorError
from edge_steer.core.steering import Steer, Steering, steerings
from edge_steer.core.vector import ModelIdentity, SteeringVector
from edge_steer.llama.engine import Engine
from edge_steer.plugins.llama_cpp_python import steer

TOKENS = 40


@pytest.fixture(scope="module")
def llama(bundled_f16: Path) -> Iterator[llama_cpp.Llama]:
    model = llama_cpp.Llama(str(bundled_f16), n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False)
    yield model
    model.close()


@pytest.fixture(scope="module")
def engine(bundled_f16: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f16, EngineOptions(threads=1)) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def prompt(engine: Engine) -> tuple[int, ...]:
    return engine.chat([{"role": "user", "content": "Ava has 12 apples and buys 3 more. How many has she?"}])


def greedy(llama: llama_cpp.Llama, prompt: tuple[int, ...]) -> list[int]:
    """As a user of the class would: what is cached of the prompt is used again."""
    tokens = []
    for token in llama.generate(list(prompt), temp=0.0):
        tokens.append(token)
        if len(tokens) == TOKENS:
            break
    return tokens


def expected(engine: Engine, prompt: tuple[int, ...], vector: Steer) -> list[int]:
    [completion] = engine.generate([Request(prompt, TOKENS, steerings(vector))])
    return list(completion.tokens)


def test_it_gives_what_the_engine_gives_and_is_as_before_afterwards(
    llama: llama_cpp.Llama, engine: Engine, prompt: tuple[int, ...], bundled_vector: SteeringVector
) -> None:
    plain = greedy(llama, prompt)
    outer, inner = Steering(bundled_vector, 1.0, (3,)), Steering(bundled_vector, -1.0, (2, 4))
    cache = llama_cpp.LlamaRAMCache()
    llama.set_cache(cache)
    with steer(llama, outer):
        assert llama.cache is None
        steered = greedy(llama, prompt)
        with pytest.raises(LookupError), steer(llama, inner):
            nested = greedy(llama, prompt)
            raise LookupError
        assert greedy(llama, prompt) == steered
        with steer(llama, None):
            assert greedy(llama, prompt) == plain
    assert llama.cache is cache
    assert greedy(llama, prompt) == plain
    assert len({tuple(plain), tuple(steered), tuple(nested)}) == 3
    ends = expected(engine, prompt, None), expected(engine, prompt, outer), expected(engine, prompt, inner)
    for ours, theirs in zip((plain, steered, nested), ends, strict=True):
        assert theirs and ours[: len(theirs)] == theirs


def test_what_does_not_fit_is_refused_and_changes_nothing(
    llama: llama_cpp.Llama, prompt: tuple[int, ...], bundled_vector: SteeringVector
) -> None:
    plain = greedy(llama, prompt)
    other = SteeringVector({1: np.ones(64, dtype=np.float32)}, ModelIdentity("other", "qwen2", 64, 6))
    for vector, words in (
        (other, "of other"),
        (Steering(bundled_vector, 1.0, (0, 1)), "no layer 0"),
        (Steering(bundled_vector, 1.0, (3,), "generated"), "phase 'all'"),
    ):
        with pytest.raises(VectorError, match=words), steer(llama, vector):
            pass
    with pytest.raises(ModelError, match=r"give a llama_cpp\.Llama"), steer("model.gguf", None):
        pass
    assert greedy(llama, prompt) == plain
