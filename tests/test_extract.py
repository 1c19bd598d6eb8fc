import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from edge_steer import pairs as pairs_module
from edge_steer.backend import Tokens
from edge_steer.errors import RequestError, VectorError
from edge_steer.extract import extract
from edge_steer.pairs import Pair
from edge_steer.reference import Reference
from edge_steer.vector import Array

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
    told: list[tuple[int, int]] = []
    vector = extract(tiny, PAIRS, layers=[3, 1, 3], batch_tokens=1, progress=lambda done, of: told.append((done, of)))
    assert vector.layers == (1, 3)
    assert (vector.method, vector.pooling, vector.pairs, vector.normalised) == ("mean_difference", "last", 4, False)
    assert vector.pairs_digest == pairs_module.digest(PAIRS)
    assert vector.model == tiny.model
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


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
    with pytest.raises(VectorError, match="layer 5 asked; tiny has blocks 0-4"):
        extract(tiny, PAIRS, layers=[1, 5])
    with pytest.raises(VectorError, match="no layer asked"):
        extract(tiny, PAIRS, layers=[])
    with pytest.raises(VectorError, match="methods are mean_difference, poolings last"):
        extract(tiny, PAIRS, method="median")
    with pytest.raises(VectorError, match="poolings last"):
        extract(tiny, PAIRS, pooling="first")
    with pytest.raises(RequestError, match=r"^long has \d+ tokens with its question; the context holds 512"):
        extract(tiny, [*PAIRS, Pair("q", "yes " * 600, "no", id="long")])
