"""Logits and residual stream of one pass: those of two passes, bit for bit, in both runtimes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_steer.core.backend import Backend, EngineOptions, Recording, Tokens
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.steering import Steering
from edge_steer.core.vector import PHASES, Phase, SteeringVector
from edge_steer.llama.engine import Engine
from edge_steer.reference.model import Reference

LAYERS = (0, 3, 5)


@pytest.fixture(scope="module")
def engine(bundled_f16: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f16, EngineOptions(threads=1)) as engine:
        yield engine


@pytest.fixture(params=["torch", "llama"])
def backend(request: pytest.FixtureRequest, bundled: Reference, engine: Engine) -> Backend:
    backends: dict[str, Backend] = {"torch": bundled, "llama": engine}
    return backends[request.param]


def prompt_and_tokens(backend: Backend) -> tuple[int, Tokens]:
    prompt = backend.chat([{"role": "user", "content": "Mia has 3 apples and buys 4. How many has she?"}])
    return len(prompt), prompt + backend.encode("Mia has 3.\n\nShe buys 4.\n\nSo 7.", start=False)


@pytest.mark.parametrize("phase", PHASES)
def test_one_pass_gives_what_two_give(backend: Backend, bundled_vector: SteeringVector, phase: Phase) -> None:
    prompt, tokens = prompt_and_tokens(backend)
    positions = [0, 2, prompt - 1, prompt, len(tokens) - 1]
    for steering in ([], [Steering(bundled_vector, 0.3, (3,), phase)], [Steering(bundled_vector, 0.3, (0, 5), phase)]):
        recording = Recording(LAYERS, positions)
        rows = [piece.copy() for piece in backend.logit_rows(tokens, prompt, steering, recording)]
        assert np.array_equal(np.concatenate(rows), backend.logits(tokens, prompt, steering))
        states = backend.record(tokens, LAYERS, positions, prompt=prompt, steering=steering)
        assert all(np.array_equal(recording.states[layer], states[layer]) for layer in LAYERS)


def test_positions_are_recorded_in_the_order_asked_and_twice_if_asked_twice(backend: Backend) -> None:
    prompt, tokens = prompt_and_tokens(backend)
    mixed, whole = (backend.record(tokens, [3], positions, prompt=prompt)[3] for positions in ([4, 1, 4], None))
    assert np.array_equal(mixed, whole[[4, 1, 4]])


def test_what_cannot_be_recorded_is_refused(backend: Backend) -> None:
    prompt, tokens = prompt_and_tokens(backend)
    for recording, reason in (Recording([9], [0]), "layer 9"), (Recording([1], [999]), "position 999"):
        with pytest.raises(EdgeSteerError, match=reason):
            next(iter(backend.logit_rows(tokens, prompt, (), recording)))
