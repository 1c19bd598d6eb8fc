"""The lens: a row is read as its token, both kinds of files alike, the last layer as the model's own logits."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_models
from paths import ABACUS

from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError, ModelError, VectorError
from edge_steer.core.stats import log_softmax
from edge_steer.core.steering import Steering
from edge_steer.core.vector import Array, ModelIdentity, SteeringVector
from edge_steer.lens.in_context import read_in_context
from edge_steer.lens.reading import read_vector
from edge_steer.lens.scores import NullChoice, checked_score, cosine, norm_gain
from edge_steer.lens.unembedding import Unembedding, read_unembedding
from edge_steer.lens.vocabulary import TOKENS
from edge_steer.llama.engine import Engine
from edge_steer.models.quantize import quantize
from edge_steer.reference.model import Reference
from edge_steer.storage.gguf_header import read_header

EXACT = EngineOptions(threads=1, kv_type="f32", flash_attention="off", gpu_layers=0)
FEW = NullChoice(directions=3)


@pytest.fixture(scope="module")
def unembedding() -> Unembedding:
    return read_unembedding(ABACUS / "abacus-F16.gguf")


def rows(unembedding: Unembedding, tokens: dict[int, int]) -> SteeringVector:
    """A vector whose direction at each layer is a token's row."""
    matrix = unembedding.tensor.whole()
    return SteeringVector({layer: matrix[token] for layer, token in tokens.items()}, unembedding.model)


def random_direction(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(256).astype(np.float32)


def test_a_row_of_the_unembedding_finds_its_own_token(unembedding: Unembedding) -> None:
    tokens = {0: 40, 3: 123, 5: 400}
    reading = read_vector(rows(unembedding, tokens), unembedding, top=5)
    for layer in reading.layers:
        first = layer.top[0]
        assert first.token == tokens[layer.layer]
        assert first.score == pytest.approx(1, abs=1e-6)
        assert layer.null is not None
        assert first.score > layer.null.largest > layer.null.kth > 0
        assert layer.beyond >= 1


def test_a_random_direction_does_not_pass_its_own_line_more_often_than_said(unembedding: Unembedding) -> None:
    drawn = NullChoice(directions=400, seed=1).draw(unembedding.model.hidden_size)
    line = read_vector(rows(unembedding, {2: 50}), unembedding, top=10, null=NullChoice(400, 0, 0.95)).layers[0].null
    assert line is not None
    assert 0.01 < np.mean(cosine(unembedding, drawn).max(axis=1) > line.largest) < 0.10


def test_the_same_seed_draws_the_same_line(unembedding: Unembedding) -> None:
    vector = rows(unembedding, {2: 50})
    lines = [read_vector(vector, unembedding, null=NullChoice(4, seed)).layers[0].null for seed in (0, 0, 1)]
    assert lines[0] == lines[1] != lines[2]


def test_the_line_of_products_grows_with_the_vector_and_that_of_cosines_does_not(unembedding: Unembedding) -> None:
    vector = rows(unembedding, {2: 50})
    for score, factor in (("cosine", 1.0), ("norm-gain", 3.0)):
        one, three = (
            read_vector(v, unembedding, checked_score(score), null=FEW).layers[0] for v in (vector, vector * 3)
        )
        assert one.null and three.null
        assert three.null.largest == pytest.approx(factor * one.null.largest, rel=1e-5)
        assert three.top[0].score == pytest.approx(factor * one.top[0].score, rel=1e-5)


def test_the_product_is_what_the_vector_adds_to_logits_times_the_rms(unembedding: Unembedding) -> None:
    """To first order: a small vector on a stream of a known length."""
    matrix = unembedding.tensor.whole()
    stream = np.random.default_rng(0).standard_normal((1, unembedding.model.hidden_size)).astype(np.float32)
    direction = np.random.default_rng(1).standard_normal(stream.shape).astype(np.float32)
    direction -= (direction @ stream.T) / (stream @ stream.T) * stream  # leaves the length as it is
    rms = float(np.sqrt((stream**2).mean()))
    added = unembedding.logits(stream + 1e-3 * direction, matrix) - unembedding.logits(stream, matrix)
    assert np.allclose(added * rms / 1e-3, norm_gain(unembedding, direction), atol=0.05, rtol=0.02)


def test_hugging_face_files_say_what_the_gguf_says(unembedding: Unembedding) -> None:
    other = read_unembedding(ABACUS)
    assert other.vocabulary == unembedding.vocabulary
    assert np.array_equal(other.tensor.whole(), unembedding.tensor.whole())
    vector = rows(unembedding, {4: 77})
    for score in ("cosine", "norm-gain"):
        by_files = [read_vector(vector, one, checked_score(score)).layers for one in (other, unembedding)]
        assert by_files[0] == by_files[1]


def test_a_quantised_unembedding_is_read_and_nearly_the_same(unembedding: Unembedding, tmp_path: Path) -> None:
    quantised = read_unembedding(quantize(ABACUS / "abacus-F16.gguf", "Q8_0", tmp_path / "q8.gguf"))
    vector = SteeringVector({3: random_direction(0)}, unembedding.model)
    tops = [{one.token for one in read_vector(vector, u).layers[0].top} for u in (unembedding, quantised)]
    assert quantised.tensor.kind == "Q8_0"
    assert len(tops[0] & tops[1]) >= 48


def test_an_untied_unembedding_is_read_from_its_own_tensor(tiny_folder: Path, tmp_path: Path) -> None:
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder, tie_word_embeddings=False)
    network.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tiny_folder / "tokenizer.json").read_bytes())
    untied, tied = read_unembedding(tmp_path), read_unembedding(tiny_folder)
    assert (untied.tied, tied.tied) == (False, True)
    assert np.array_equal(untied.tensor.whole(), network.lm_head.weight.detach().numpy())
    assert not np.array_equal(untied.tensor.whole(), tied.tensor.whole())


def test_a_zero_layer_says_nothing_and_the_others_are_read(unembedding: Unembedding) -> None:
    vector = SteeringVector({1: np.zeros(256, np.float32), 2: np.ones(256, np.float32)}, unembedding.model)
    reading = read_vector(vector, unembedding, top=3)
    assert (reading.layers[0].top, reading.layers[0].null) == ((), None)
    assert len(reading.layers[1].top) == 3
    assert reading.geometry.cosines[0] == (None, None)
    with pytest.raises(VectorError, match="zero at every layer"):
        read_vector(vector.at(1), unembedding)


def test_the_geometry_is_that_of_known_vectors(unembedding: Unembedding) -> None:
    first, second = np.eye(256, dtype=np.float32)[:2]
    vector = SteeringVector({0: first, 1: 2 * first, 2: second}, unembedding.model)
    geometry = read_vector(vector, unembedding, top=1).geometry
    assert geometry.norms == pytest.approx((1, 2, 1))
    assert geometry.cosines[0] == pytest.approx((1, 1, 0))
    assert geometry.stable_rank == pytest.approx(6 / 5)


def test_what_cannot_be_read_is_refused_in_a_line(unembedding: Unembedding, tmp_path: Path) -> None:
    other = SteeringVector({0: np.ones(64, np.float32)}, ModelIdentity("other", "llama", 64, 4))
    with pytest.raises(VectorError, match="is of other"):
        read_vector(other, unembedding)
    with pytest.raises(EdgeSteerError, match="no score 'dot'"):
        read_vector(rows(unembedding, {1: 2}), unembedding, "dot")  # type: ignore[arg-type]
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((ABACUS / "abacus-F16.gguf").read_bytes()[:60_000])
    with pytest.raises(ModelError, match="ends within"):
        read_unembedding(cut)


def test_at_the_last_layer_the_lens_is_the_model(bundled_f32: Path) -> None:
    unembedding = read_unembedding(bundled_f32)
    steering = (Steering(SteeringVector({2: random_direction(0) * 40}, unembedding.model)),)
    with Engine.load(bundled_f32, EXACT) as engine:
        prompt = engine.encode("Tom has 3 apples and buys 4 more.")
        reading = read_in_context(engine, unembedding, prompt, steering, top=3, null=FEW)
        before, after = (engine.logits(prompt, 1, steer) for steer in ((), steering))
    assert reading.layers == (2, 3, 4, 5)
    for position, cell in enumerate(reading.cells[-1]):
        difference = after[position] - before[position]
        assert cell.raised[0].score == pytest.approx(difference.max(), abs=1e-3)
        unsteered, steered = log_softmax(before[position]), log_softmax(after[position])
        assert cell.kl == pytest.approx((np.exp(unsteered) * (unsteered - steered)).sum(), rel=1e-3, abs=1e-5)


def test_positions_before_a_generated_phase_are_left_as_they_are(bundled_f32: Path) -> None:
    unembedding = read_unembedding(bundled_f32)
    vector = rows(unembedding, {2: 60}) * 100
    with Engine.load(bundled_f32, EXACT) as engine:
        prompt = engine.encode("Tom has 3 apples.")
        steering = (Steering(vector, phase="generated"),)
        cells = read_in_context(engine, unembedding, prompt, steering, top=1, null=FEW).cells[0]
    assert [cell.kl > 1e-6 for cell in cells] == [False] * (len(prompt) - 1) + [True]


def test_a_long_vocabulary_is_read_where_it_is_asked_for(tmp_path: Path) -> None:
    path, texts = tmp_path / "long.gguf", [f"word{number}" for number in range(3000)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array(TOKENS, texts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert TOKENS not in read_header(path).metadata
    assert read_header(path, whole=[TOKENS]).metadata[TOKENS] == tuple(texts)


@pytest.mark.parametrize("family", ["gemma2", "nemotron", "phi2"])
def test_norms_from_one_layer_norms_soft_caps_and_biases_are_those_of_the_model(family: str, tmp_path: Path) -> None:
    folder = tiny_models.make(family, tmp_path / family)
    reference, unembedding = Reference.load(folder), read_unembedding(folder)
    tokens, last = range(5, 25), reference.model.block_count - 1
    states = reference.record(tokens, [last])[last]
    logits = unembedding.logits(states, unembedding.tensor.whole())
    assert np.abs(logits - reference.logits(tokens, 1)).max() < 1e-4


def test_a_model_that_scales_its_logits_is_read_by_cosine_alone(tmp_path: Path) -> None:
    unembedding = read_unembedding(tiny_models.make("granite", tmp_path / "granite"))
    matrix = unembedding.tensor.whole()
    vector = SteeringVector({1: matrix[9]}, unembedding.model)
    assert read_vector(vector, unembedding, top=1).layers[0].top[0].token == 9
    with pytest.raises(ModelError, match="granite scales its logits"):
        unembedding.logits(matrix[:1], matrix)
