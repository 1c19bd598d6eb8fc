"""Phase "delimiter", SEAL's: only the blank lines of an answer are steered, in both runtimes alike."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_steer.core.backend import EngineOptions, Request, Tokens
from edge_steer.core.errors import EdgeSteerError, VectorError
from edge_steer.core.steering import Steering
from edge_steer.core.vector import Array, SteeringVector
from edge_steer.llama.engine import Engine
from edge_steer.parity.baseline import LiveReference
from edge_steer.parity.compare import compare_backend
from edge_steer.parity.mechanism import mechanism
from edge_steer.parity.saved import SavedReference, save
from edge_steer.parity.texts import TokenisedText
from edge_steer.parity.tolerances import tolerance_of
from edge_steer.reference.model import Reference
from edge_steer.tasks.wordproblems import word_problems

TOLERANCE = 1e-4  # as tests/parity/test_mechanism.py has it


@pytest.fixture(scope="module")
def exact(bundled_f32: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f32, EngineOptions(threads=1, parallel=4, kv_type="f32", flash_attention="off")) as engine:
        yield engine


@pytest.fixture(scope="module")
def prompts(exact: Engine) -> list[Tokens]:
    questions = [f"Read this.\n\n{sample.question}" for sample in word_problems("dev", 4)]
    return [exact.chat([{"role": "user", "content": question}]) for question in questions]


@pytest.fixture(scope="module")
def texts(exact: Engine, prompts: list[Tokens]) -> list[TokenisedText]:
    answers = exact.generate([Request(prompt, 120) for prompt in prompts[:2]])
    return [
        TokenisedText(prompt + answer.tokens, len(prompt)) for prompt, answer in zip(prompts[:2], answers, strict=True)
    ]


def at_delimiters(vector: SteeringVector, strength: float, *layers: int) -> Steering:
    return Steering(vector, strength, layers, "delimiter")


def delimiters(text: TokenisedText, engine: Engine) -> list[int]:
    """The positions of the answer's blank lines."""
    return [at for at in range(text.prompt, len(text.tokens)) if "\n\n" in engine.decode([text.tokens[at]])]


def test_both_runtimes_know_the_same_delimiters(exact: Engine, bundled: Reference) -> None:
    assert exact.delimiters == bundled.delimiters
    assert [exact.decode([token]) for token in exact.delimiters] == ["\n\n"]


@pytest.mark.parametrize("layer", [0, 3, 5])
def test_the_offset_is_added_at_the_answers_delimiters_and_nowhere_else(
    exact: Engine, bundled: Reference, texts: list[TokenisedText], bundled_vector: SteeringVector, layer: int
) -> None:
    text = texts[0]
    assert exact.delimiters[0] in text.tokens[: text.prompt - 1], "the prompt has one too, which is left as it is"
    steering = [at_delimiters(bundled_vector, 1.5, layer)]
    added = np.zeros((len(text.tokens), exact.model.hidden_size), dtype=np.float32)
    added[delimiters(text, exact)] = steering[0].offsets()[layer]
    for backend in (exact, bundled):
        before, after = (
            backend.record(text.tokens, [layer], prompt=text.prompt, steering=one)[layer] for one in ((), steering)
        )
        np.testing.assert_allclose(after - before, added, atol=2e-3)


def test_a_last_prompt_token_that_is_a_delimiter_is_steered(exact: Engine, bundled: Reference) -> None:
    tokens = exact.encode("Once more.\n\n")
    vector = SteeringVector({2: np.ones(exact.model.hidden_size, dtype=np.float32)}, exact.model)
    for backend in (exact, bundled):
        plain, steered, too_late = (
            backend.logits(tokens, len(tokens) - early, steering)[0]
            for early, steering in ((0, ()), (0, [at_delimiters(vector, 5, 2)]), (1, [at_delimiters(vector, 5, 2)]))
        )
        assert np.abs(steered - plain).max() > 0.1
        np.testing.assert_array_equal(too_late, backend.logits(tokens, len(tokens) - 1)[0])


def test_the_mechanism_is_the_same_at_every_layer(
    exact: Engine, bundled: Reference, texts: list[TokenisedText], bundled_vector: SteeringVector
) -> None:
    rows = mechanism(
        bundled, exact, bundled_vector, texts[:1], layers=range(6), strengths=[0.5, -0.5], phases=["delimiter"]
    )
    assert len(rows) == 12
    assert max(row.median for row in rows) <= TOLERANCE
    assert min(row.neighbour or 0 for row in rows) > 10 * TOLERANCE


def test_a_long_text_is_steered_in_pieces_as_in_one(
    exact: Engine, texts: list[TokenisedText], bundled_vector: SteeringVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, steering = texts[0], [at_delimiters(bundled_vector, 1.0, 2, 4)]
    whole = exact.logits(text.tokens, text.prompt, steering)
    monkeypatch.setattr("edge_steer.llama.engine.LOGITS_BYTES", 4 * exact.vocab_size * 5)
    np.testing.assert_allclose(exact.logits(text.tokens, text.prompt, steering), whole, atol=TOLERANCE)


def test_answers_of_a_mixed_batch_are_those_of_torch_and_of_the_teacher_forced_logits(
    exact: Engine, bundled: Reference, prompts: list[Tokens], bundled_vector: SteeringVector
) -> None:
    steering = (at_delimiters(bundled_vector, 6, 3),)
    requests = [
        Request(prompts[0], 60, steering),
        Request(prompts[0], 60),
        Request(prompts[1], 60, (Steering(bundled_vector, 0.3, (2,), "generated"),)),
        Request(prompts[2], 60, (at_delimiters(bundled_vector, -1.0, 0, 4),)),
    ]
    answers = exact.generate(requests)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in bundled.generate(requests)]
    assert answers == [exact.generate([request])[0] for request in requests]
    logits: Array = exact.logits(prompts[0] + answers[0].tokens, len(prompts[0]), steering)
    assert tuple(logits.argmax(axis=1)[: len(answers[0].tokens)]) == answers[0].tokens
    first = answers[1].tokens.index(exact.delimiters[0])
    assert answers[0].tokens[: first + 1] == answers[1].tokens[: first + 1]
    assert answers[0].tokens != answers[1].tokens


def test_a_cached_prompt_is_shared_with_every_strength(
    exact: Engine, prompts: list[Tokens], bundled_vector: SteeringVector
) -> None:
    before = exact.usage.reused
    exact.generate([Request(prompts[3], 4, (at_delimiters(bundled_vector, 0.1 * i, 3),)) for i in range(1, 5)])
    assert exact.usage.reused - before == 3 * (len(prompts[3]) - 1)


def test_a_vocabulary_without_a_blank_line_is_refused(
    exact: Engine, prompts: list[Tokens], bundled_vector: SteeringVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(exact.vocabulary.__dict__, "delimiters", ())
    with pytest.raises(VectorError, match="no token of abacus holds a blank line; phase 'delimiter'"):
        exact.generate([Request(prompts[0], 4, (at_delimiters(bundled_vector, 1.0, 3),))])


def test_parity_of_a_delimiter_steering(
    exact: Engine, bundled: Reference, texts: list[TokenisedText], bundled_vector: SteeringVector, tmp_path: Path
) -> None:
    """Also against a saved reference; the mechanism is checked at the delimiters too."""
    steering = [at_delimiters(bundled_vector, 1.0, 5)]  # the last block, where nothing but delimiters changes
    live = LiveReference(bundled, texts, texts, steering)
    save(tmp_path / "reference", live, {}, {})
    report = compare_backend(live, exact, steering, "F32", tolerance_of("F32"))
    saved = compare_backend(SavedReference(tmp_path / "reference"), exact, steering, "F32", tolerance_of("F32"))
    assert {row.phase for row in report.mechanism} == {"all", "generated", "delimiter"}
    assert report.passed and report.effect and saved.effect
    assert report.effect.cosine > 0.9999 and abs(report.effect.norm - 1) < 1e-3
    assert report.effect.placed_cosine > 0.999999 and abs(report.effect.placed_norm - 1) < 1e-4
    assert saved.effect.placed_norm == pytest.approx(report.effect.placed_norm)
    wrong = compare_backend(live, exact, [replace(steering[0], phase="generated")], "F32", tolerance_of("F32"))
    assert not wrong.passed


def test_texts_without_a_delimiter_are_refused(
    bundled: Reference, texts: list[TokenisedText], bundled_vector: SteeringVector
) -> None:
    short = [replace(texts[0], tokens=texts[0].tokens[: texts[0].prompt + 3])]
    with pytest.raises(EdgeSteerError, match="phase 'delimiter' steers none of the texts"):
        LiveReference(bundled, short, short, [at_delimiters(bundled_vector, 1.0, 3)])
