"""Conversations on the bundled model: what a turn computes, how steering changes, files, and what goes wrong."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from paths import DENSE

from edge_steer.chat.conversation import Conversation
from edge_steer.chat.history import Exchange
from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError, RequestError, VectorError
from edge_steer.core.sampling import Sampling
from edge_steer.core.steering import Steering
from edge_steer.llama.engine import Engine
from edge_steer.vectors.named import NamedFile, NamedVectors

TOM = "Tom has 12 apples and buys 7 more. How many apples does Tom have?"
ANN = "Ann has 3 boxes of 4 pens. How many pens does Ann have?"


@pytest.fixture(scope="module")
def engine(bundled_f16: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f16, EngineOptions(threads=1, parallel=4, keep_cache=True)) as loaded:
        yield loaded


@pytest.fixture
def empty_engine(bundled_f16: Path) -> Iterator[Engine]:
    """With nothing in its cache."""
    with Engine.load(bundled_f16, EngineOptions(threads=1, parallel=4, keep_cache=True)) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def vectors(engine: Engine, bundled_vector_gguf: Path) -> NamedVectors:
    files = NamedFile("dense", DENSE), NamedFile("other", bundled_vector_gguf, 0.0)
    return NamedVectors.of(files, engine.model)


@pytest.fixture
def conversation(engine: Engine, vectors: NamedVectors) -> Conversation:
    return Conversation(engine, vectors, max_tokens=64)


def test_an_answer_is_what_the_engine_answers(engine: Engine, conversation: Conversation) -> None:
    pieces: list[str] = []
    completion = conversation.say(TOM, pieces.append)
    alone = engine.ask(TOM, [one.steering for one in conversation.steering], max_tokens=64)
    assert completion.text == alone.text == "".join(pieces)
    assert conversation.messages == [
        {"role": "user", "content": TOM},
        {"role": "assistant", "content": alone.text},
    ]


def test_the_next_turn_computes_only_what_is_new(empty_engine: Engine, vectors: NamedVectors) -> None:
    conversation = Conversation(empty_engine, vectors)
    first = conversation.say(TOM)
    prompt = conversation.last.computed
    assert conversation.last.reused == 0
    conversation.say(ANN)
    assert conversation.last.reused == prompt + len(first.tokens)
    assert conversation.last.computed < len(empty_engine.encode(ANN)) + 20  # the message in its template
    assert conversation.total.answers == 2
    assert conversation.total.computed == prompt + conversation.last.computed
    assert conversation.total.reused == conversation.last.reused
    assert conversation.total.tokens_per_second > 0


def test_a_changed_strength_computes_all_anew_and_changing_back_does_not(
    empty_engine: Engine, vectors: NamedVectors
) -> None:
    conversation = Conversation(empty_engine, vectors, max_tokens=64)
    conversation.say(TOM)
    conversation.steer(strength=0.1)
    conversation.say(ANN)
    assert conversation.last.reused == 0
    conversation.restore("dense")
    conversation.say(ANN)
    assert conversation.last.reused > conversation.last.computed


def test_in_phase_generated_a_changed_strength_keeps_the_prompt(empty_engine: Engine, vectors: NamedVectors) -> None:
    conversation = Conversation(empty_engine, vectors, max_tokens=64)
    conversation.set_phase("generated")
    conversation.say(TOM)
    conversation.clear()
    conversation.steer(strength=0.1)
    conversation.say(TOM)
    assert conversation.last.computed == 1


def test_steering_changes_between_answers(conversation: Conversation) -> None:
    tuned = conversation.steering[0].steering
    conversation.steer("other", strength=0.5)
    assert [(one.name, one.steering.strength) for one in conversation.steering] == [
        ("dense", tuned.strength),
        ("other", 0.5),
    ]
    conversation.steer("dense", strength=0)
    conversation.steer(strength=2)
    conversation.steer(layers=(2, 3))
    conversation.set_phase("generated")
    [other] = conversation.steering
    assert (other.name, other.steering.strength) == ("other", 2)
    assert (other.steering.layers, other.steering.phase) == ((2, 3), "generated")
    assert conversation.vectors[0].steering == replace(tuned, strength=0, phase="generated")


def test_steer_alone_means_the_vector_that_steers(conversation: Conversation) -> None:
    conversation.steer(strength=0)
    assert not conversation.steering
    with pytest.raises(VectorError, match="several vectors: dense, other"):
        conversation.steer(strength=3)
    conversation.steer("dense", strength=3)
    conversation.steer(strength=4)
    assert conversation.steering[0].steering.strength == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda chat: chat.steer("dance", strength=1), "there are: dense, other"),
        (lambda chat: chat.steer(strength=float("nan")), "finite"),
        (lambda chat: chat.steer(layers=(99,)), "99"),
        (lambda chat: chat.steer(layers=()), "layer"),
        (lambda chat: chat.set_phase("prompt"), "phase"),
        (lambda chat: chat.restore("dance"), "there are: dense, other"),
    ],
)
def test_what_cannot_be_honoured_changes_nothing(
    conversation: Conversation, change: Callable[[Conversation], None], message: str
) -> None:
    before = conversation.vectors
    with pytest.raises(VectorError, match=message):
        change(conversation)
    assert conversation.vectors == before


def test_a_conversation_without_vectors_says_so(engine: Engine) -> None:
    conversation = Conversation(engine, max_tokens=4)
    with pytest.raises(VectorError, match="no vectors"):
        conversation.steer(strength=2)
    with pytest.raises(VectorError, match="nothing steers"):
        conversation.compare(TOM)
    assert conversation.say(TOM).text


def test_both_answers_of_a_comparison_are_those_of_each_alone(engine: Engine, conversation: Conversation) -> None:
    conversation.restore("other")
    steering = [one.steering for one in conversation.steering]
    pieces = ["", ""]

    def grow(column: int, text: str) -> None:
        pieces[column] += text

    comparison = conversation.compare(ANN, grow)
    assert [comparison.unsteered.text, comparison.steered.text] == pieces
    assert comparison.unsteered.text == engine.ask(ANN, max_tokens=64).text
    assert comparison.steered.text == engine.ask(ANN, steering, max_tokens=64).text
    assert comparison.steered.text != comparison.unsteered.text
    assert conversation.exchanges == [Exchange(ANN, comparison.steered.text)]


def test_a_comparison_of_the_last_message_replaces_its_answer(conversation: Conversation) -> None:
    with pytest.raises(RequestError, match="no message yet"):
        conversation.compare()
    conversation.say(TOM)
    conversation.say(ANN)
    first, _ = conversation.exchanges
    conversation.steer(strength=1.5)
    comparison = conversation.compare()
    assert conversation.exchanges == [first, Exchange(ANN, comparison.steered.text)]


def test_a_stopped_answer_is_kept_as_far_as_it_came(conversation: Conversation) -> None:
    pieces: list[str] = []

    def stop_after_three(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 3:
            conversation.stop()

    completion = conversation.say(TOM, stop_after_three)
    assert completion.finish == "cancelled"
    assert conversation.exchanges == [Exchange(TOM, completion.text)]
    assert len(completion.tokens) == 3
    assert conversation.say(ANN).finish != "cancelled"


def test_whatever_is_raised_while_an_answer_grows_leaves_no_trace(engine: Engine, conversation: Conversation) -> None:
    def interrupt(_text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversation.say(TOM, interrupt)
    assert conversation.exchanges == []
    assert not engine.step()
    assert conversation.say(TOM).text


def test_a_message_too_long_is_one_error_and_leaves_no_trace(engine: Engine, conversation: Conversation) -> None:
    conversation.say(TOM)
    before = conversation.exchanges
    with pytest.raises(RequestError, match="the context holds"):
        conversation.say("apples " * engine.context)
    assert conversation.exchanges == before


def test_the_system_message_comes_first(engine: Engine, conversation: Conversation) -> None:
    conversation.system = "Answer in numbers."
    conversation.say(TOM)
    assert conversation.messages[0] == {"role": "system", "content": "Answer in numbers."}
    steering = [one.steering for one in conversation.steering]
    alone = engine.ask(TOM, steering, system="Answer in numbers.", max_tokens=64)
    assert conversation.exchanges[0].answer == alone.text


def test_a_saved_conversation_goes_on_elsewhere(engine: Engine, vectors: NamedVectors, tmp_path: Path) -> None:
    before = Conversation(engine, vectors, system="Be brief.", sampling=Sampling(0.7, seed=3), max_tokens=20)
    before.say(TOM)
    before.steer("dense", strength=0)
    before.steer("other", strength=0.5, layers=(2, 3))
    file = before.save(tmp_path / "talk.json")

    after = Conversation(engine, vectors)
    after.load(str(file))
    assert (after.messages, after.steering) == (before.messages, before.steering)
    assert (after.sampling, after.max_tokens) == (before.sampling, 20)
    assert after.say(ANN) == before.say(ANN)


def test_the_file_names_what_steers(conversation: Conversation, tmp_path: Path) -> None:
    conversation.say(TOM)
    saved = json.loads(conversation.save(tmp_path / "talk.json").read_text())
    steering: Steering = conversation.steering[0].steering
    assert saved["messages"][0] == {"role": "user", "content": TOM}
    assert saved["steering"] == [
        {
            "name": "dense",
            "digest": steering.vector.digest,
            "strength": steering.strength,
            "layers": list(steering.layers or ()),
            "phase": steering.phase,
        }
    ]
    assert saved["sampling"]["temperature"] == 0


def test_a_file_that_cannot_be_written_leaves_nothing(conversation: Conversation, tmp_path: Path) -> None:
    with pytest.raises(EdgeSteerError, match="cannot write"):
        conversation.save(tmp_path / "no folder" / "talk.json")
    assert list(tmp_path.iterdir()) == []


def change(key: str, value: object) -> Callable[[dict[str, object]], object]:
    return lambda saved: saved.__setitem__(key, value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("format", "edge-steer conversation 9"), "format"),
        (change("messages", [{"role": "user", "content": "alone"}]), "take turns"),
        (change("messages", [{"role": "robot", "content": "x"}]), r"messages\.0\.role"),
        (change("messages", None), "messages"),
        (change("sampling", {"temperature": -1}), "temperature"),
        (change("note", "x"), "note"),
        (change("max_tokens", 0), "max_tokens"),
        (lambda saved: saved.pop("max_tokens"), "max_tokens"),
        (lambda saved: saved["steering"][0].update(name="gone"), "there are: dense, other"),
        (lambda saved: saved["steering"][0].update(digest="0" * 64), "digest 000000000000"),
        (lambda saved: saved["steering"][0].update(layers=[99]), "99"),
    ],
)
def test_a_broken_file_is_one_line_and_changes_nothing(
    conversation: Conversation, damage: Callable[[dict[str, object]], object], message: str, tmp_path: Path
) -> None:
    conversation.say(TOM)
    before = conversation.messages, conversation.vectors, conversation.sampling
    saved = json.loads(conversation.save(tmp_path / "talk.json").read_text())
    damage(saved)
    (tmp_path / "talk.json").write_text(json.dumps(saved))
    with pytest.raises(EdgeSteerError, match=message) as error:
        conversation.load(tmp_path / "talk.json")
    assert "\n" not in str(error.value)
    assert (conversation.messages, conversation.vectors, conversation.sampling) == before


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", '{"format": "edge-steer conversation 1"'])
def test_no_saved_conversation_is_one_line(conversation: Conversation, text: str, tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text(text)
    with pytest.raises(EdgeSteerError, match="saved conversation") as error:
        conversation.load(tmp_path / "talk.json")
    assert "\n" not in str(error.value)


def test_extreme_sampling_survives_a_file(conversation: Conversation, tmp_path: Path) -> None:
    conversation.sampling = Sampling(logit_bias=((5, float("-inf")), (7, 1.5)), grammar="root ::= [a-z]+")
    before = conversation.sampling
    file = conversation.save(tmp_path / "talk.json")
    conversation.sampling = Sampling()
    conversation.load(file)
    assert conversation.sampling == before
