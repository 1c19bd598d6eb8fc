import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from heard import Heard
from paths import ABACUS

from edge_steer.core.backend import EngineOptions, Request, Tokens
from edge_steer.core.errors import EdgeSteerError, RequestError, VectorError
from edge_steer.core.stats import cosine
from edge_steer.core.steering import Steering
from edge_steer.core.vector import Array, SteeringVector
from edge_steer.extraction.extract import _new_states, extract, record, reduce
from edge_steer.extraction.methods import METHODS
from edge_steer.llama.engine import Engine
from edge_steer.models import convert
from edge_steer.models.quantize import quantize
from edge_steer.pairs.pair import Pair, digest_pairs, read_pairs
from edge_steer.reference.model import Reference
from edge_steer.storage.digests import digest
from edge_steer.vectors import native

PAIRS = [
    Pair("Mia has 3 apples. Mia buys 4 more apples.", "3 + 4 = 7. \\boxed{7}.", "Mia has 3.\n\n3 + 4 = 7.\n\n7."),
    Pair("Ben has 9 cups.", "\\boxed{9}.", "Ben has 9 cups.\n\nThe answer is \\boxed{9}. This is the final result."),
    Pair("How many?", "None", "Nothing at all"),
    Pair("Zoe loses 2 of 5 pens. How many pens does Zoe have now?", "5 - 2 = 3.", "Zoe has 5.\n\nZoe loses 2."),
]
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
ARCHITECTURES: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**SHAPE),
    "gpt2": transformers.GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=256, initializer_range=0.2),
    "gemma2-window": transformers.Gemma2Config(**SHAPE, head_dim=8, sliding_window=40),
    "bloom": transformers.BloomConfig(hidden_size=32, n_layer=3, n_head=4, initializer_range=0.2),
    "mamba": transformers.MambaConfig(hidden_size=32, num_hidden_layers=3, state_size=4, initializer_range=0.2),
}


def make(kind: str, tiny_folder: Path, tmp_path: Path) -> Reference:
    folder = tmp_path / kind
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_folder / name, folder)
    config = ARCHITECTURES[kind]
    config.vocab_size = len(transformers.AutoTokenizer.from_pretrained(folder))
    config.eos_token_id, config.pad_token_id, config.bos_token_id = 2, 0, None
    torch.manual_seed(1)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return Reference.load(folder)


def plain(reference: Reference, pairs: list[Pair], layer: int) -> Array:
    """The formula, one answer at a time: 1/N sum(h(x+) - h(x-)) of the last token, by record()."""

    def last(question: str, answer: str) -> np.ndarray[Any, Any]:
        prompt = reference.chat([{"role": "user", "content": question}])
        tokens: Tokens = prompt + reference.encode(answer, start=False)
        state: np.ndarray[Any, Any] = reference.record(tokens, [layer])[layer][-1].astype(np.float64)
        return state

    differences = [last(pair.question, pair.positive) - last(pair.question, pair.negative) for pair in pairs]
    mean: Array = np.mean(differences, axis=0).astype(np.float32)
    return mean


def averaged(reference: Reference, pair: Pair, answer: str, layer: int, chosen: slice) -> np.ndarray[Any, Any]:
    """The mean state of the answer's tokens `chosen`, by record()."""
    prompt = reference.chat([{"role": "user", "content": pair.question}])
    states = reference.record(prompt + reference.encode(answer, start=False), [layer])[layer]
    mean: np.ndarray[Any, Any] = states[len(prompt) :][chosen].astype(np.float64).mean(axis=0)
    return mean


def scale(reference: Reference, layer: int) -> float:
    tokens = reference.chat([{"role": "user", "content": PAIRS[0].question}])
    return float(np.linalg.norm(reference.record(tokens, [layer])[layer], axis=-1).mean())


@pytest.mark.parametrize("batch_tokens", [1, 200, 4096])
def test_every_layer_equals_the_plain_formula_for_every_batch_size(tiny: Reference, batch_tokens: int) -> None:
    vector = extract(tiny, PAIRS, batch_tokens=batch_tokens)
    assert vector.layers == tuple(range(tiny.model.block_count))
    for layer in vector.layers:
        error = np.abs(vector.directions[layer] - plain(tiny, PAIRS, layer)).max()
        assert error <= 1e-5 * scale(tiny, layer)


def test_a_neighbouring_layer_does_not_equal_the_formula(tiny: Reference) -> None:
    vector = extract(tiny, PAIRS, layers=[1, 2, 3])
    slow = plain(tiny, PAIRS, 2)
    assert np.abs(vector.directions[2] - slow).max() <= 1e-5 * scale(tiny, 2)
    for neighbour in (1, 3):
        assert np.abs(vector.directions[neighbour] - slow).max() > 0.01 * scale(tiny, 2)


def test_formula_by_transformers_own_hidden_states(tiny: Reference, tiny_folder: Path) -> None:
    """Another route: output_hidden_states, whose entry N + 1 is block N's output for all but the last block."""
    network = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)
    total = np.zeros(64)
    for pair in PAIRS:
        for answer, sign in ((pair.positive, 1), (pair.negative, -1)):
            ids = tiny.encode(f"<|im_start|>user\n{pair.question}<|im_end|>\n<|im_start|>assistant\n{answer}")
            with torch.no_grad():
                states = network(torch.tensor([ids]), output_hidden_states=True).hidden_states
            total += sign * states[3 + 1][0, -1].double().numpy()
    direction = extract(tiny, PAIRS, layers=[3]).directions[3]
    assert np.abs(direction - total / len(PAIRS)).max() <= 1e-5 * scale(tiny, 3)


def test_only_the_blocks_that_are_needed_run_and_no_head(tiny: Reference) -> None:
    ran: list[str] = []
    watched = {f"block {number}": block for number, block in enumerate(tiny._blocks)}
    watched["head"] = tiny._network.lm_head
    handles = [m.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, m in watched.items()]
    try:
        extract(tiny, PAIRS, layers=[0, 2])
    finally:
        for handle in handles:
            handle.remove()
    assert set(ran) == {"block 0", "block 1", "block 2"}


@pytest.mark.parametrize(
    ("pooling", "chosen"),
    [
        ("last", slice(-1, None)),
        ("last:1", slice(-1, None)),
        ("last:2", slice(-2, None)),
        ("mean", slice(None)),
        ("token:0", slice(0, 1)),
        ("token:1", slice(1, 2)),
        ("token:-2", slice(-2, -1)),
    ],
)
def test_poolings_average_the_tokens_they_name(tiny: Reference, pooling: str, chosen: slice) -> None:
    states = record(tiny, PAIRS, layers=[2], pooling=pooling)
    for number, pair in enumerate(PAIRS):
        for found, answer in ((states.positive, pair.positive), (states.negative, pair.negative)):
            error = np.abs(found[0, number] - averaged(tiny, pair, answer, 2, chosen)).max()
            assert error <= 1e-5 * scale(tiny, 2)


SIDES = [
    Pair("Are you well?", "Yes.", "Yes.", system="You are merry.", negative_system="You are sad and slow."),
    Pair("Are you well?", "Yes, I am.", "No.", system="You are merry.", negative_system=""),
    Pair("What is 3 + 4?", "It is 7.", "It is 9.", negative_question="What is 3 + 6? Tell me."),
    Pair("Mia has ", "3 apples.", "4 apples and 2 cups.", raw=True),
    Pair("", "Mia is merry.", "Ben is sad.", raw=True),
]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_each_side_stands_behind_its_own_prompt(engine: Engine, bundled: Reference, pooling: str) -> None:
    ours, theirs = record(engine, SIDES, pooling=pooling), record(bundled, SIDES, pooling=pooling)
    for number, pair in enumerate(SIDES):
        both = (ours.positive, ours.negative), (theirs.positive, theirs.negative)
        for mine, packed, side in zip(*both, pair.sides, strict=True):
            prompt, answer = side.tokens(bundled)
            states = bundled.record((*prompt, *answer), range(6))
            for layer, all_states in states.items():
                answer_states = all_states[len(prompt) :]
                expected = answer_states[-1] if pooling == "last" else answer_states.mean(axis=0)
                size = np.linalg.norm(expected)
                assert np.abs(packed[layer, number] - expected).max() / size < 1e-5
                assert np.abs(mine[layer, number] - expected).max() / size < 2e-5


def test_states_in_a_file_are_those_in_memory(tiny: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    held = record(tiny, PAIRS)
    monkeypatch.setattr("edge_steer.extraction.extract.MAX_BYTES_IN_MEMORY", 0)
    filed = record(tiny, PAIRS)
    assert isinstance(filed.positive, np.memmap) and not isinstance(held.positive, np.memmap)
    assert np.array_equal(filed.positive, held.positive) and np.array_equal(filed.negative, held.negative)
    assert reduce(filed).digest == reduce(held).digest
    with pytest.raises(
        EdgeSteerError, match=r"states of 1000000 pairs at 1000000 layers take 80000000\.0 GB; .* GB free"
    ):
        _new_states((2, 10**6, 10**6, 10**4))


def test_recorded_once_reduced_by_every_method(tiny: Reference) -> None:
    states = record(tiny, PAIRS, layers=[1, 3])
    for method, direct in METHODS.items():
        vector = reduce(states, method)
        assert (vector.method, vector.pairs, vector.layers) == (method, 4, (1, 3))
        expected = direct(states.positive[1], states.negative[1]).astype(np.float32)
        assert np.array_equal(vector.directions[3], expected)
    assert reduce(states).digest == extract(tiny, PAIRS, layers=[1, 3]).digest


@pytest.fixture(scope="module")
def engine(bundled_f32: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f32, EngineOptions(threads=1, kv_type="f32", flash_attention="off")) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def some() -> tuple[Pair, ...]:
    return read_pairs(ABACUS / "pairs.jsonl")[:8]


@pytest.mark.parametrize("pooling", ["last", "last:3", "mean", "token:2"])
def test_a_gguf_gives_the_states_that_torch_gives(
    engine: Engine, bundled: Reference, some: tuple[Pair, ...], pooling: str
) -> None:
    """F32 weights and cache, so only rounding is left; it is held against how far neighbouring layers are apart."""
    ours, theirs = record(engine, some, pooling=pooling), record(bundled, some, pooling=pooling)
    assert ours.layers == theirs.layers == tuple(range(6))
    for mine, other in ((ours.positive, theirs.positive), (ours.negative, theirs.negative)):
        norms = np.linalg.norm(other, axis=-1)
        assert (np.linalg.norm(mine - other, axis=-1) / norms).max() < 2e-5
        assert (np.linalg.norm(mine[1:] - other[:-1], axis=-1) / norms[:-1]).min() > 0.05
    assert ours.pairs_digest == theirs.pairs_digest


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_K_M"])
def test_a_quantised_gguf_gives_nearly_the_vector_of_torch(
    bundled_f16: Path, bundled: Reference, some: tuple[Pair, ...], quant: str, tmp_path: Path
) -> None:
    path = quantize(bundled_f16, quant, tmp_path / "quantised.gguf", threads=1)
    with Engine.load(path, EngineOptions(threads=1)) as loaded:
        ours = extract(loaded, some)
    theirs = extract(bundled, some)
    for layer in theirs.layers:
        assert cosine(ours.directions[layer], theirs.directions[layer]) > {"Q8_0": 0.999, "Q4_K_M": 0.99}[quant]


def test_in_a_gguf_batches_neighbours_and_layers_do_not_matter(engine: Engine, some: tuple[Pair, ...]) -> None:
    some = some[:4]
    whole = record(engine, some, pooling="mean")
    size = np.linalg.norm(whole.positive, axis=-1).mean(axis=1)[:, None, None]
    pieces = record(engine, some, pooling="mean", batch_tokens=7)
    assert (np.abs(pieces.positive - whole.positive) / size).max() < 1e-5
    for number, pair in enumerate(some[:3]):
        alone = record(engine, [pair], pooling="mean")
        assert (np.abs(alone.negative[:, 0] - whole.negative[:, number]) / size[:, 0]).max() < 1e-5
    few = record(engine, some, pooling="mean", layers=[1, 3])
    assert np.array_equal(few.positive, whole.positive[[1, 3]])
    assert np.array_equal(few.negative, whole.negative[[1, 3]])


def test_recording_and_generating_do_not_disturb_each_other(
    engine: Engine, bundled_vector: SteeringVector, some: tuple[Pair, ...]
) -> None:
    prompt = engine.chat([{"role": "user", "content": some[0].question}])
    steering = Steering(bundled_vector, 1.5, (0, 3))
    mixed = [Request(prompt, 24, steering=(steering,)), Request(prompt, 24)]
    before = record(engine, some[:2])
    texts = [completion.tokens for completion in engine.generate(mixed)]
    scores = engine.nll((*prompt, *texts[1]), len(prompt), (steering,))
    after = record(engine, some[:2])
    assert np.array_equal(before.positive, after.positive) and np.array_equal(before.negative, after.negative)
    np.testing.assert_array_equal(engine.nll((*prompt, *texts[1]), len(prompt), (steering,)), scores)
    assert [completion.tokens for completion in engine.generate(mixed)] == texts
    assert texts[0] != texts[1]


def test_a_gguf_refuses_what_does_not_fit(bundled_f16: Path, some: tuple[Pair, ...]) -> None:
    with Engine.load(bundled_f16, EngineOptions(threads=1, context=64)) as small:
        with pytest.raises(RequestError, match=r"tokens with its question; the context holds 64"):
            record(small, some)
        with pytest.raises(VectorError, match="layer 6 asked; abacus has blocks 0-5"):
            record(small, some, layers=[6])


def test_extraction_from_a_gguf_loads_no_torch(bundled_f16: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom edge_steer.commands.main import main\n"
        f"try: main(['extract', {str(bundled_f16)!r}, {str(ABACUS / 'pairs.jsonl')!r}, '-o', 'v.safetensors', "
        "'--threads', '1'])\nexcept SystemExit as end: print(end.code)\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["0", "[]"]
    assert native.load(tmp_path / "v.safetensors").pairs == 50


def test_a_mixture_of_experts_from_its_gguf(tmp_path: Path) -> None:
    """Random weights of Qwen3-MoE's kind, converted by llama.cpp's converter."""
    if not convert.converter_folder().is_dir():
        pytest.skip("llama.cpp's converter is not in the cache; edge-steer convert --fetch-converter fetches it")
    folder = tmp_path / "experts"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ABACUS / name, folder)
    torch.manual_seed(0)
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 8}
    experts["norm_topk_prob"] = True  # what llama.cpp takes for granted in this architecture
    ids = {"vocab_size": 768, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None}
    config = transformers.Qwen3MoeConfig(**SHAPE, **experts, **ids)
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(folder)
    path = convert.convert(folder, tmp_path / "experts.gguf")
    theirs = record(Reference.load(folder), PAIRS, pooling="mean")
    with Engine.load(path, EngineOptions(threads=1, kv_type="f32", flash_attention="off")) as loaded:
        assert loaded.model.architecture == theirs.model.architecture == "qwen3moe"
        ours = record(loaded, PAIRS, pooling="mean")
    size = np.linalg.norm(theirs.positive, axis=-1, keepdims=True)
    assert (np.abs(ours.positive - theirs.positive) / size).max() < 1e-5
    assert (np.abs(ours.positive[1:] - theirs.positive[:-1]) / size[:-1]).max() > 0.01


@pytest.mark.parametrize(
    ("kind", "shares"), [("llama", True), ("gpt2", True), ("gemma2-window", True), ("bloom", False), ("mamba", False)]
)
def test_exact_in_other_architectures_and_says_when_questions_are_not_shared(
    kind: str, shares: bool, tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference = make(kind, tiny_folder, tmp_path)
    with caplog.at_level(logging.WARNING, "edge_steer"):
        vector = extract(reference, PAIRS)
    assert ("cannot share a question" in caplog.text) != shares
    for layer in vector.layers:
        error = np.abs(vector.directions[layer] - plain(reference, PAIRS, layer)).max()
        assert error <= 1e-5 * scale(reference, layer)


def test_the_vector_says_how_it_was_made(tiny: Reference) -> None:
    heard = Heard()
    vector = extract(tiny, PAIRS, layers=[3, 1, 3], batch_tokens=1, progress=heard)
    assert vector.layers == (1, 3)
    assert (vector.method, vector.pooling, vector.pairs, vector.normalised) == ("mean_difference", "last", 4, False)
    assert vector.pairs_digest == digest_pairs(PAIRS)
    assert vector.model == tiny.model
    assert heard.steps == [("recording states", done, 4) for done in range(1, 5)]


def test_a_vector_of_a_gguf_names_its_file(engine: Engine, bundled_f32: Path, bundled: Reference) -> None:
    pairs = read_pairs(str(ABACUS / "pairs.jsonl"))[:2]
    ours, theirs = extract(engine, pairs, layers=[2]), extract(bundled, pairs, layers=[2])
    assert engine.model.revision is None and ours.model.revision == digest(bundled_f32)
    assert theirs.model.revision == bundled.model.revision


def test_normalise_keeps_the_direction_and_makes_its_norm_1(tiny: Reference) -> None:
    raw, unit = extract(tiny, PAIRS, layers=[2]), extract(tiny, PAIRS, layers=[2], normalise=True)
    assert unit.normalised and unit.norms[2] == pytest.approx(1)
    np.testing.assert_allclose(unit.directions[2] * raw.norms[2], raw.directions[2], rtol=1e-5)


def test_swapped_pairs_give_the_negated_vector(tiny: Reference) -> None:
    swapped = [Pair(pair.question, pair.negative, pair.positive) for pair in PAIRS]
    forward, back = extract(tiny, PAIRS, layers=[2]), extract(tiny, swapped, layers=[2])
    np.testing.assert_allclose((-back).directions[2], forward.directions[2], atol=1e-5 * scale(tiny, 2))


def test_what_cannot_be_extracted_is_refused(tiny: Reference) -> None:
    with pytest.raises(VectorError, match="no pairs"):
        extract(tiny, [])
    with pytest.raises(EdgeSteerError, match="str is no Pair; read a file of pairs by read_pairs"):
        extract(tiny, "pairs.jsonl")  # type: ignore[arg-type]
    with pytest.raises(VectorError, match="layer 5 asked; tiny has blocks 0-4"):
        extract(tiny, PAIRS, layers=[1, 5])
    with pytest.raises(VectorError, match="no layer asked"):
        extract(tiny, PAIRS, layers=[])
    with pytest.raises(
        VectorError, match="no method 'median'; methods are mean_difference, pca, pca_centred, logistic"
    ):
        extract(tiny, PAIRS, method="median")
    with pytest.raises(VectorError, match="no pooling 'first'; poolings are last, last:K, mean, token:I"):
        extract(tiny, PAIRS, pooling="first")
    with pytest.raises(RequestError, match=r"^pair 1: an answer of 14 tokens is too short for pooling token:20; use"):
        extract(tiny, PAIRS, pooling="token:20")
    with pytest.raises(RequestError, match=r"^long has \d+ tokens with its question; the context holds 512"):
        extract(tiny, [*PAIRS, Pair("q", "yes " * 600, "no", id="long")])


def test_a_vector_in_residual_units_has_the_norm_of_the_states(tiny: Reference) -> None:
    pairs = PAIRS
    states = record(tiny, pairs, layers=[1, 3])
    plain, scaled = reduce(states), reduce(states, normalise="residual")
    for row, layer in enumerate((1, 3)):
        both = np.concatenate([states.positive[row], states.negative[row]])
        assert scaled.norms[layer] == pytest.approx(np.linalg.norm(both, axis=1).mean(), rel=1e-5)
        assert cosine(plain.directions[layer], scaled.directions[layer]) == pytest.approx(1, abs=1e-6)
    assert not scaled.normalised
    assert scaled.provenance == ("each direction has the mean norm of the states at its layer",)
