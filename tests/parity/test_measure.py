"""What is measured of a file is kept piece by piece; a stopped comparison goes on where it was."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edge_steer.core.backend import EngineOptions
from edge_steer.core.progress import Progress
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.llama.engine import Engine
from edge_steer.parity.baseline import LiveReference, SteeredTexts
from edge_steer.parity.measure import measure_mechanism, measure_texts
from edge_steer.parity.texts import TokenisedText
from edge_steer.reference.model import Reference
from edge_steer.storage.records import Store

HEADER = {"format": "test"}


class StoppedAt(Progress):
    """Ctrl-C once `done` pieces are done."""

    def __init__(self, done: int) -> None:
        self._done = done

    def __call__(self, doing: str, done: int = 0, total: int = 1) -> None:
        if done == self._done:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def exact(bundled_f32: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f32, EngineOptions(kv_type="f32", flash_attention="off", threads=1)) as engine:
        yield engine


@pytest.fixture(scope="module")
def steering(bundled_vector: SteeringVector) -> list[Steering]:
    return [Steering(bundled_vector, 0.325, (3,))]


@pytest.fixture(scope="module")
def live(bundled: Reference, steering: Sequence[Steering]) -> LiveReference:
    prompt = bundled.chat([{"role": "user", "content": "Mia has 3 apples and buys 4. How many has she?"}])
    answers = ("Mia has 3 apples.\n\nShe buys 4, so she has 7.", "She has 3 + 4 = 7.")
    texts = [TokenisedText(prompt + bundled.encode(answer, start=False), len(prompt)) for answer in answers]
    return LiveReference(bundled, texts, texts, steering)


def test_texts_go_on_where_they_stopped(
    live: LiveReference, exact: Engine, steering: Sequence[Steering], tmp_path: Path
) -> None:
    path = tmp_path / "texts.jsonl"
    whole = measure_texts(live, exact, steering)
    with Store.open(path, HEADER) as store, pytest.raises(KeyboardInterrupt):
        measure_texts(live, exact, steering, store=store, progress=StoppedAt(3))
    lines = path.read_text().splitlines()
    assert [(record["index"], record["steered"]) for record in map(json.loads, lines[1:])] == [
        (0, False), (0, True), (1, False)
    ]  # fmt: skip
    with Store.open(path, HEADER) as store:
        assert measure_texts(live, exact, steering, store=store) == whole
        assert len(store.records) == 4
    first = json.loads(lines[1])
    first["positions"]["kl"][0] = 5.0
    path.write_text("\n".join([lines[0], json.dumps(first), *lines[2:]]) + "\n")
    with Store.open(path, HEADER) as store:
        assert measure_texts(live, exact, steering, store=store).unsteered.kl["max"] == 5.0, "what is there is used"


def test_the_mechanism_goes_on_where_it_stopped(
    live: LiveReference, exact: Engine, steering: Sequence[Steering], tmp_path: Path
) -> None:
    path = tmp_path / "mechanism.jsonl"
    with Store.open(path, HEADER) as store, pytest.raises(KeyboardInterrupt):
        measure_mechanism(live, exact, steering, store=store, progress=StoppedAt(2))
    with Store.open(path, HEADER) as store:
        assert len(store.records) == 2
        rows = measure_mechanism(live, exact, steering, store=store)
        assert len(store.records) == len(rows) == 2 * (3 + 5 * 2), "six blocks, two phases, both signs, once unsteered"
    with Store.open(path, HEADER) as store:
        assert measure_mechanism(live, exact, steering, store=store, progress=StoppedAt(-1)) == rows
    assert {(row.layer, row.phase, row.strength) for row in rows} == {
        (layer, phase, strength)
        for layer in range(6)
        for phase in ("all", "generated")
        for strength in (-0.325, 0.0, 0.325)
        if strength or not layer
    }


def test_the_effect_of_two_passes_is_that_of_the_runs_themselves(
    live: LiveReference, exact: Engine, steering: Sequence[Steering]
) -> None:
    """Whether the logits of a text were given before or not, and whatever came between."""
    texts, other = SteeredTexts(exact, steering, live.steered, live.steering), replace(live.steered[0], prompt=3)
    text = live.steered[0]
    alone = texts.effect(text)
    for one, steered in ((text, False), (other, False), (text, True)):
        rows = [piece.copy() for piece in texts.rows(one, steered=steered)]
    after = texts.effect(text)
    assert (alone.logits == after.logits).all()
    assert (alone.states == after.states).all()
    assert (alone.at_first_block == after.at_first_block).all()
    expected = rows[0][text.effect_rows] - exact.logits(text.tokens[:-1], text.prompt)[text.effect_rows]
    assert (after.logits == expected).all()
