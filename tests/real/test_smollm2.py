"""A real model, SmolLM2-135M-Instruct from the package index, in both runtimes and in several types.

Its file is used where it lies in the cache; `make real` or `.ci/run` puts it there.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT

from edge_steer.core.backend import EngineOptions, Message
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.llama.engine import Engine
from edge_steer.models.load import load
from edge_steer.models.quantize import quantize
from edge_steer.models.recipe import ModelRecipe
from edge_steer.parity.compare import distribution
from edge_steer.parity.mechanism import mechanism
from edge_steer.parity.texts import TokenisedText
from edge_steer.parity.tolerances import MECHANISM, tolerance_of
from edge_steer.reference.model import Reference

MODEL = ROOT / "models" / "smollm2-135m-instruct"
EXACT = EngineOptions(context=256, threads=1, kv_type="f32", flash_attention="off")
MESSAGES: list[Message] = [{"role": "user", "content": "A bus has 12 passengers. 5 get off. How many are left?"}]
ANSWER = "To find out, we take 5 from 12:  12 - 5 = 7.\n\nSo 7 passengers are left on the bus."


@pytest.fixture(scope="module")
def source() -> Path:
    file = ModelRecipe.load(MODEL).index
    assert file
    if not file.path.is_file():
        pytest.skip(f"{file.path.name} is not in the cache; edge-steer quantize models/{MODEL.name} F32 fetches it")
    return file.path


@pytest.fixture(scope="module")
def twin(source: Path) -> Iterator[Reference]:
    with load(source, runtime="torch", options=EXACT) as reference:
        yield reference


@pytest.fixture(scope="module")
def f32(source: Path) -> Path:
    return quantize(source, "F32", threads=1)


@pytest.fixture(scope="module")
def exact(f32: Path) -> Iterator[Engine]:
    with load(f32, options=EXACT) as engine:
        yield engine


@pytest.fixture(scope="module")
def text(twin: Reference) -> TokenisedText:
    prompt = twin.chat(MESSAGES)
    return TokenisedText((*prompt, *twin.encode(ANSWER, start=False)), len(prompt))


@pytest.fixture(scope="module")
def vector(twin: Reference) -> SteeringVector:
    """Random directions a tenth as long as the residual stream is there."""
    states = twin.record(twin.chat(MESSAGES), range(twin.model.block_count))
    random = np.random.default_rng(0)
    directions = {}
    for layer, rows in states.items():
        direction = random.standard_normal(twin.model.hidden_size)
        length = 0.1 * np.median(np.linalg.norm(rows, axis=1)) / np.linalg.norm(direction)
        directions[layer] = (direction * length).astype(np.float32)
    return SteeringVector(directions, twin.model)


def test_the_twin_says_which_file_it_is_and_takes_its_tokens_from_it(twin: Reference, exact: Engine) -> None:
    assert twin.model.revision == "dequantised from b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert (twin.model.architecture, twin.model.block_count, twin.model.hidden_size) == ("llama", 30, 576)
    assert twin.chat(MESSAGES) == exact.chat(MESSAGES)
    assert twin.encode("1 +  2\n\n= 3") == exact.encode("1 +  2\n\n= 3")


def test_the_same_weights_are_steered_alike_in_both_runtimes(
    twin: Reference, exact: Engine, vector: SteeringVector, text: TokenisedText
) -> None:
    rows = mechanism(twin, exact, vector, [text], layers=[0, 1, 15, 28], strengths=[1.0])
    assert len(rows) == 8
    for row in rows:
        assert row.median <= MECHANISM
        assert row.neighbour is not None and row.neighbour > 100 * MECHANISM


def test_what_quantising_costs_is_apart_from_what_the_engine_costs(
    twin: Reference, exact: Engine, f32: Path, vector: SteeringVector, text: TokenisedText
) -> None:
    steering = [Steering.of(vector, layers=[15])]
    engine_alone = distribution(twin, exact, [text], steering).kl["mean"]
    with load(quantize(f32, "Q8_0", threads=1), options=EXACT) as quantised:
        with_quantising = distribution(twin, quantised, [text], steering).kl["mean"]
    assert engine_alone <= tolerance_of("F32").kl
    assert 10 * engine_alone < with_quantising <= tolerance_of("Q8_0").kl
