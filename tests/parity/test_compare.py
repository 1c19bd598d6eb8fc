"""GGUF against torch on the bundled model: the same place, the same phase, the same strength, and nothing else."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from paths import ABACUS, ROOT

from edge_steer.core.backend import Backend, EngineOptions, Request
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.stats import log_softmax
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.extraction.extract import extract
from edge_steer.llama.engine import Engine
from edge_steer.models.quantize import quantize
from edge_steer.pairs.pair import read_pairs
from edge_steer.parity.baseline import EFFECT_TEXTS, LiveReference
from edge_steer.parity.compare import Report, compare_backend, distribution
from edge_steer.parity.mechanism import everywhere, mechanism, rounding
from edge_steer.parity.saved import SavedReference, save
from edge_steer.parity.texts import TokenisedText, read_texts
from edge_steer.parity.tolerances import MECHANISM, ROUNDINGS, tolerance_of
from edge_steer.recipes.recipe import VectorRecipe
from edge_steer.reference.model import Reference
from edge_steer.tasks.wordproblems import word_problems

DENSE = VectorRecipe.load(ROOT / "export" / "abacus" / "dense")
MIDDLE = 3  # a layer where the phases differ: at the last one they are the same thing


@pytest.fixture(scope="module")
def exact(bundled_f32: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f32, EngineOptions(kv_type="f32", flash_attention="off", threads=1)) as engine:
        yield engine


@pytest.fixture(scope="module")
def q4(bundled_f16: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = quantize(bundled_f16, "Q4_K_M", tmp_path_factory.mktemp("q4") / "q4.gguf")
    with Engine.load(path, EngineOptions(threads=1)) as engine:
        yield engine


@pytest.fixture(scope="module")
def texts(bundled: Reference) -> list[TokenisedText]:
    return answers(bundled, EFFECT_TEXTS, ())


@pytest.fixture(scope="module")
def steered_texts(bundled: Reference, right: Sequence[Steering]) -> list[TokenisedText]:
    return answers(bundled, EFFECT_TEXTS, right)


@pytest.fixture(scope="module")
def right(bundled_vector: SteeringVector) -> list[Steering]:
    return [Steering(bundled_vector, DENSE.strength, (MIDDLE,))]


@pytest.fixture(scope="module")
def saved(
    bundled: Reference,
    texts: list[TokenisedText],
    steered_texts: list[TokenisedText],
    right: Sequence[Steering],
    tmp_path_factory: pytest.TempPathFactory,
) -> SavedReference:
    """What the reference says, computed once."""
    path = tmp_path_factory.mktemp("said") / "reference"
    save(path, LiveReference(bundled, texts, steered_texts, right), {}, {})
    return SavedReference(path)


def answers(reference: Reference, count: int, steering: Sequence[Steering]) -> list[TokenisedText]:
    prompts = [reference.chat([{"role": "user", "content": sample.question}]) for sample in word_problems("dev", count)]
    completions = reference.generate([Request(prompt, 200, tuple(steering)) for prompt in prompts])
    return [TokenisedText(p + c.tokens, len(p)) for p, c in zip(prompts, completions, strict=True)]


def test_mechanism_at_every_block_phase_and_sign(
    bundled: Reference, exact: Engine, bundled_vector: SteeringVector, texts: list[TokenisedText]
) -> None:
    strengths = (0.0, DENSE.strength, -DENSE.strength)
    rows = mechanism(bundled, exact, bundled_vector, texts[:1], layers=range(6), strengths=strengths)
    assert {(row.layer, row.phase, row.strength) for row in rows} == {
        (layer, phase, strength) for layer in range(6) for phase in ("all", "generated") for strength in strengths
    }
    assert max(row.median for row in rows) <= MECHANISM / 2
    assert max(row.max for row in rows) <= 20 * MECHANISM
    assert max(row.residual for row in rows) <= 1e-4
    assert min(row.neighbour for row in rows if row.neighbour is not None) > 100 * MECHANISM


def test_the_largest_difference_is_a_few_roundings(
    bundled: Reference, exact: Engine, bundled_vector: SteeringVector, texts: list[TokenisedText]
) -> None:
    one = Steering(bundled_vector, DENSE.strength, (MIDDLE,))
    text = texts[0].shortened(16, 16)
    before = bundled.logits(text.tokens, text.prompt, [one])
    unit = rounding(bundled, text, one)
    assert unit is not None
    assert 1e-6 < unit < 1e-3
    assert (bundled.logits(text.tokens, text.prompt, [one]) == before).all(), "float32 again, bit for bit"
    rows = mechanism(bundled, exact, bundled_vector, [text], layers=range(6), strengths=(-DENSE.strength, 0.0))
    assert max(row.max for row in rows) <= ROUNDINGS * unit
    assert rounding(exact, text, one) is None


def test_steering_that_begins_a_position_late_is_many_roundings_off(
    bundled: Reference, bundled_vector: SteeringVector, texts: list[TokenisedText]
) -> None:
    one = Steering(bundled_vector, DENSE.strength, (MIDDLE,), "generated")
    text = texts[0].shortened(16, 16)
    late = bundled.logits(text.tokens, text.prompt + 1, [one])
    apart = np.abs(bundled.logits(text.tokens, text.prompt, [one])[1:] - late).max(axis=1)
    unit = rounding(bundled, text, one)
    assert unit is not None
    assert apart.max() > 10 * ROUNDINGS * unit


def test_a_vector_of_one_layer_is_tried_at_every_block(bundled_vector: SteeringVector) -> None:
    spread = everywhere(bundled_vector.at([1, 5]), 6)
    assert spread.layers == tuple(range(6))
    for block, nearest in enumerate((1, 1, 1, 1, 5, 5)):
        assert (spread.directions[block] == bundled_vector.directions[nearest]).all()


def test_what_is_left_is_float32_rounding(
    bundled: Reference, exact: Engine, bundled_vector: SteeringVector, texts: list[TokenisedText]
) -> None:
    """Against torch in float64, llama.cpp is typically no further off than twice what torch in float32 is.

    Over all layers: at one of them the order in which a processor sums decides which of the two is nearer.
    """
    double = Reference.load(ABACUS, dtype="float64")
    backends: tuple[Backend, ...] = (bundled, exact)
    off: list[list[float]] = [[], []]
    for layer in range(1, 6):
        steering = [Steering(bundled_vector, DENSE.strength, (layer,))]
        for text in texts[:2]:
            exactly = double.logits(text.tokens, text.prompt, steering)
            for found, backend in zip(off, backends, strict=True):
                found += np.abs(backend.logits(text.tokens, text.prompt, steering) - exactly).max(1).tolist()
    assert np.median(off[1]) <= 2 * np.median(off[0])


def test_both_record_the_same_steered_residual_stream(
    bundled: Reference, exact: Engine, bundled_vector: SteeringVector, texts: list[TokenisedText]
) -> None:
    text = texts[0]
    chosen = [text.prompt + 3, 0, text.prompt - 1]
    for phase in ("all", "generated"):
        for steered in (0, 2, 5):
            steering = [Steering(bundled_vector, 1.0, (steered,), phase)]
            ours, theirs = (
                b.record(text.tokens, [0, 2, 4, 5], chosen, prompt=text.prompt, steering=steering)
                for b in (bundled, exact)
            )
            for block in (0, 2, 4, 5):
                assert theirs[block].shape == (3, bundled.model.hidden_size)
                assert np.abs(ours[block] - theirs[block]).max() <= 1e-4 * np.abs(ours[block]).max()
    plain = exact.record(text.tokens, [1], chosen, prompt=text.prompt, steering=[Steering(bundled_vector, 9.0, (5,))])
    assert (plain[1] == exact.record(text.tokens, [1], chosen)[1]).all()
    with pytest.raises(EdgeSteerError, match="position 9999"):
        exact.record(text.tokens, [1], [9999])


def test_distribution_is_that_of_the_logits(
    bundled: Reference, q4: Engine, right: Sequence[Steering], texts: list[TokenisedText]
) -> None:
    texts = texts[:5]
    found = distribution(bundled, q4, texts, right)
    slow = []
    for t in texts:
        p, q = (log_softmax(b.logits(t.tokens, t.prompt, right)[:-1]) for b in (bundled, q4))
        slow += (np.exp(p) * (p - q)).sum(axis=1).tolist()
    assert found.positions == sum(len(t.tokens) - t.prompt for t in texts) == len(slow)
    assert found.kl["mean"] == pytest.approx(np.mean(slow), rel=1e-3)
    nll = [np.concatenate([b.nll(t.tokens, t.prompt, right) for t in texts]).mean() for b in (bundled, q4)]
    assert found.perplexity_ratio == pytest.approx(np.exp(nll[1] - nll[0]), rel=1e-4)


def test_the_right_vector_passes(saved: SavedReference, exact: Engine, q4: Engine, right: Sequence[Steering]) -> None:
    for engine, quant in ((exact, "F16"), (q4, "Q4_K_M")):
        report = compare_backend(saved, engine, right, quant, tolerance_of(quant))
        assert report.verdict == "pass", failures(report)
        assert report.effect
        assert report.effect.placed_cosine == pytest.approx(1, abs=1e-6)
        assert report.effect.placed_norm == pytest.approx(1, abs=1e-5)
        assert report.effect.cosine > 0.9
        assert report.steered
        assert report.kl_ratio == pytest.approx(1, abs=3)


@pytest.fixture(scope="module")
def wrong(bundled: Reference, bundled_vector: SteeringVector, right: Sequence[Steering]) -> dict[str, list[Steering]]:
    one = right[0]
    layers = {MIDDLE + 1: bundled_vector.directions[MIDDLE]}
    rng = np.random.default_rng(1)
    every = read_pairs(ABACUS / "pairs.jsonl")
    drawn = [every[i] for i in rng.choice(len(every), len(every) // 5, replace=False)]
    return {
        "shifted by one layer": [Steering(SteeringVector(layers, bundled_vector.model), one.strength)],
        "scaled by 1.1": [Steering(bundled_vector, 1.1 * one.strength, one.layers)],
        "in the other phase": [Steering(bundled_vector, one.strength, one.layers, "generated")],
        "of another seed": [Steering(extract(bundled, drawn), one.strength, one.layers)],
    }


@pytest.mark.parametrize("how", ["shifted by one layer", "scaled by 1.1", "in the other phase", "of another seed"])
@pytest.mark.parametrize("quant", ["F32", "Q4_K_M"])
def test_a_wrong_vector_fails(
    saved: SavedReference, exact: Engine, q4: Engine, wrong: dict[str, list[Steering]], how: str, quant: str
) -> None:
    engine = {"F32": exact, "Q4_K_M": q4}[quant]
    # the exact file as another type, since the mechanism takes one steering for both sides
    report = compare_backend(saved, engine, wrong[how], "F16" if quant == "F32" else quant, tolerance_of(quant))
    assert report.verdict == "fail", failures(report)
    assert not report.passed
    assert any(found.verdict == "fail" for found in report.findings if found.name.startswith("what is added"))
    assert not any(found.verdict == "fail" for found in report.findings if found.name.startswith("unsteered"))


def test_another_model_or_no_tolerance_is_refused(
    saved: SavedReference,
    tiny_engine: Engine,
    right: Sequence[Steering],
    bundled: Reference,
    exact: Engine,
    texts: list[TokenisedText],
) -> None:
    with pytest.raises(EdgeSteerError, match="compare the same model"):
        compare_backend(saved, tiny_engine, (), "F32", tolerance_of("F32"))
    with pytest.raises(EdgeSteerError, match="no tolerance is known for IQ1_S"):
        tolerance_of("IQ1_S")
    live = LiveReference(bundled, texts[:1], texts[:1], right)
    few = compare_backend(live, exact, right, "IQ1_S", tolerance_of("IQ1_S", {"kl": 1.0}))
    assert (few.verdict, few.passed) == ("not enough data", True)


@pytest.fixture(scope="module")
def tiny_engine(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    from edge_steer.models.convert import convert

    with Engine.load(
        convert(tiny_folder, tmp_path_factory.mktemp("tiny") / "tiny.gguf"), EngineOptions(threads=1)
    ) as engine:
        yield engine


def test_texts_are_pairs_or_lines(bundled: Reference, tmp_path: Path) -> None:
    lines = tmp_path / "texts.txt"
    lines.write_text("Mia has 3 apples.\n\nBen has 4.\n")
    assert [bundled.decode(text.tokens) for text in read_texts(lines, bundled)] == ["Mia has 3 apples.", "Ben has 4."]
    answers = read_texts(ABACUS / "pairs.jsonl", bundled)
    assert len(answers) == 50
    assert all(1 < text.prompt < len(text.tokens) for text in answers)


def failures(report: Report) -> list[object]:
    return [found for found in report.findings if found.verdict != "pass"]
