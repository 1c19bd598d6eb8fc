"""GGUF against torch on the bundled model: the same place, the same phase, the same strength, and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_steer.backend import Request
from edge_steer.engine import Engine
from edge_steer.errors import EdgeSteerError
from edge_steer.models import quantize
from edge_steer.parity import MECHANISM_TOLERANCE, Text, check, distribution, mechanism, read_texts
from edge_steer.recipes import VectorRecipe
from edge_steer.reference import Reference
from edge_steer.stats import kl_divergence
from edge_steer.tasks import word_problems
from edge_steer.vector import Steering, SteeringVector

ABACUS = Path(__file__).parents[1] / "models" / "abacus"
DENSE = VectorRecipe.load(Path(__file__).parents[1] / "export" / "abacus" / "dense")


@pytest.fixture(scope="module")
def exact(bundled_f32: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f32, kv_type="f32", flash_attention="off") as engine:
        yield engine


@pytest.fixture(scope="module")
def texts(bundled: Reference) -> list[Text]:
    prompts = [bundled.chat(sample.messages) for sample in word_problems("dev", 4)]
    completions = bundled.generate([Request(prompt, 200) for prompt in prompts])
    return [Text(p + c.tokens, len(p)) for p, c in zip(prompts, completions, strict=True)]


def test_mechanism_at_every_layer_phase_and_strength(
    bundled: Reference, exact: Engine, bundled_vector: SteeringVector, texts: list[Text]
) -> None:
    strengths = (0.0, 1.0, -1.0, DENSE.strength)
    rows = mechanism(bundled, exact, bundled_vector, texts[:1], layers=range(1, 6), strengths=strengths)
    assert {(row.layer, row.phase, row.strength) for row in rows} == {
        (layer, phase, strength) for layer in range(1, 6) for phase in ("all", "generated") for strength in strengths
    }
    assert max(row.median for row in rows) <= MECHANISM_TOLERANCE / 2
    assert max(row.max for row in rows) <= 20 * MECHANISM_TOLERANCE
    assert min(row.neighbour for row in rows if row.neighbour is not None) > 100 * MECHANISM_TOLERANCE


def test_what_is_left_is_float32_rounding(
    bundled: Reference, exact: Engine, bundled_vector: SteeringVector, texts: list[Text]
) -> None:
    """Against torch in float64, llama.cpp is typically no further off than torch in float32 is."""
    double = Reference.load(ABACUS, dtype="float64")
    for layer in range(1, 6):
        steering = [Steering(bundled_vector, DENSE.strength, (layer,))]
        for text in texts[:2]:
            exactly = double.logits(text.tokens, text.prompt, steering)
            off = [np.abs(b.logits(text.tokens, text.prompt, steering) - exactly).max(1) for b in (bundled, exact)]
            assert np.median(off[1]) <= 2 * np.median(off[0])


def test_the_other_phase_and_another_strength_do_not_match(
    bundled: Reference, exact: Engine, bundled_vector: SteeringVector, texts: list[Text]
) -> None:
    text = texts[0]
    right = exact.logits(text.tokens, text.prompt, [Steering(bundled_vector, DENSE.strength, (3,), "all")])
    for wrong in (
        Steering(bundled_vector, DENSE.strength, (3,), "generated"),
        Steering(bundled_vector, 1.1 * DENSE.strength, (3,), "all"),
    ):
        assert np.abs(bundled.logits(text.tokens, text.prompt, [wrong]) - right).max() > 100 * MECHANISM_TOLERANCE


def test_distribution_is_that_of_the_logits(
    bundled: Reference, bundled_f16: Path, bundled_vector: SteeringVector, texts: list[Text], tmp_path: Path
) -> None:
    steering = [Steering(bundled_vector, DENSE.strength, (DENSE.layer,))]
    with Engine.load(quantize(bundled_f16, "Q4_K_M", tmp_path / "q4.gguf")) as engine:
        found = distribution(bundled, engine, texts, steering)
        slow = np.concatenate(
            [
                kl_divergence(bundled.logits(t.tokens, t.prompt, steering), engine.logits(t.tokens, t.prompt, steering))
                for t in texts
            ]
        )
    assert found.positions == sum(len(t.tokens) - t.prompt + 1 for t in texts)
    assert found.kl["mean"] == pytest.approx(slow.mean(), rel=1e-3)
    assert 0 < found.kl["mean"] < 0.1
    assert found.effect_cosine is not None
    assert found.effect_cosine > 0.95
    assert found.effect_norm == pytest.approx(1, abs=0.1)


def test_check_passes_the_right_file_and_fails_a_wrong_vector(
    bundled: Reference, exact: Engine, bundled_vector: SteeringVector, texts: list[Text]
) -> None:
    steering = [Steering(bundled_vector.restrict([DENSE.layer]), DENSE.strength)]
    report = check(bundled, exact, texts[:1], steering, "F32")
    assert report.passed
    assert report.steered

    class Shifted(Reference):
        """The real reference, asked for a vector that is one layer off."""

        def logits(self, tokens, prompt, steering=()):  # type: ignore[no-untyped-def]
            moved = {layer - 1: direction for s in steering for layer, direction in s.vector.directions.items()}
            wrong = [Steering(SteeringVector(moved, s.vector.model), s.strength, phase=s.phase) for s in steering]
            return super().logits(tokens, prompt, wrong)

    shifted = Shifted.load(ABACUS)
    assert not check(shifted, exact, texts[:1], steering, "F32").passed
    with pytest.raises(EdgeSteerError, match="no tolerance is known for IQ1_S"):
        check(bundled, exact, texts[:1], steering, "IQ1_S")


def test_texts_are_pairs_or_lines(bundled: Reference, tmp_path: Path) -> None:
    lines = tmp_path / "texts.txt"
    lines.write_text("Mia has 3 apples.\n\nBen has 4.\n")
    assert [bundled.decode(text.tokens) for text in read_texts(lines, bundled)] == ["Mia has 3 apples.", "Ben has 4."]
    told = read_texts(ABACUS / "pairs.jsonl", bundled)
    assert len(told) == 50
    assert all(1 < text.prompt < len(text.tokens) for text in told)
