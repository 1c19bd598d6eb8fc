"""The engine on the bundled model: batched, streamed, stopped and steered answers against plain ones."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_steer.backend import Request, Sampling
from edge_steer.engine import Engine
from edge_steer.errors import EdgeSteerError, ModelError, RequestError, VectorError
from edge_steer.llama import LlamaContext, LlamaModel, quantize_file
from edge_steer.tasks import word_problems
from edge_steer.vector import ModelIdentity, Steering, SteeringVector


@pytest.fixture(scope="module")
def exact(bundled_f32: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f32, parallel=8, kv_type="f32", flash_attention="off") as engine:
        yield engine


@pytest.fixture(scope="module")
def requests(exact: Engine) -> list[Request]:
    return [Request(exact.chat(sample.messages), 200) for sample in word_problems("dev", 12)]


def steered(requests: list[Request], *steering: Steering) -> list[Request]:
    return [Request(r.prompt, r.max_tokens, steering, r.sampling, r.stop) for r in requests]


def test_batched_answers_equal_answers_alone(exact: Engine, requests: list[Request]) -> None:
    together = exact.generate(requests)
    alone = [exact.generate([request])[0] for request in requests]
    assert together == alone
    assert all(re.search(r"\\boxed\{\d+\}", completion.text) for completion in together)
    assert {completion.finish for completion in together} == {"stop"}


@pytest.mark.parametrize("phase", ["all", "generated"])
def test_requests_of_mixed_steering_keep_their_own(
    exact: Engine, requests: list[Request], bundled_vector: SteeringVector, phase: str
) -> None:
    steering = Steering(bundled_vector, 1.0, (3,), phase)  # type: ignore[arg-type]
    mixed = exact.generate([*requests[:4], *steered(requests[:4], steering)])
    plain, changed = exact.generate(requests[:4]), exact.generate(steered(requests[:4], steering))
    assert mixed == [*plain, *changed]
    assert plain != changed


def test_generation_follows_the_teacher_forced_logits(
    exact: Engine, requests: list[Request], bundled_vector: SteeringVector
) -> None:
    for phase in ("all", "generated"):
        steering = (Steering(bundled_vector, 1.0, (2, 4), phase),)
        completion = exact.generate(steered(requests[:1], *steering))[0]
        prompt = requests[0].prompt
        logits = exact.logits(prompt + completion.tokens, len(prompt), steering)
        assert tuple(logits.argmax(axis=1)[:-1]) == completion.tokens


def test_the_phases_differ_exactly_in_the_prompt(
    exact: Engine, requests: list[Request], bundled_vector: SteeringVector
) -> None:
    tokens = requests[0].prompt
    every = exact.logits(tokens, 1, [Steering(bundled_vector, 1.0, (3,), "all")])
    from_first = exact.logits(tokens, 1, [Steering(bundled_vector, 1.0, (3,), "generated")])
    only_last = exact.logits(tokens, len(tokens), [Steering(bundled_vector, 1.0, (3,), "generated")])
    np.testing.assert_allclose(every, from_first, atol=1e-4)
    assert np.abs(only_last[-1] - every[-1]).max() > 1e-3


def test_clearing_the_vector_restores_the_model(
    exact: Engine, requests: list[Request], bundled_vector: SteeringVector
) -> None:
    before = exact.logits(requests[0].prompt, 1)
    exact.generate(steered(requests[:1], Steering(bundled_vector, 2.0, (1, 5))))
    np.testing.assert_array_equal(exact.logits(requests[0].prompt, 1), before)


def test_several_vectors_add_up(exact: Engine, requests: list[Request], bundled_vector: SteeringVector) -> None:
    tokens = requests[0].prompt
    both = exact.logits(tokens, 1, [Steering(bundled_vector, 0.5, (3,)), Steering(bundled_vector, 0.25, (3,))])
    sum_ = exact.logits(tokens, 1, [Steering(bundled_vector, 0.75, (3,))])
    np.testing.assert_allclose(both, sum_, atol=1e-4)


def test_nll_is_that_of_the_logits(exact: Engine, requests: list[Request]) -> None:
    prompt = requests[0].prompt
    tokens = prompt + exact.generate(requests[:1])[0].tokens
    logits = exact.logits(tokens, len(prompt)).astype(np.float64)[:-1]
    wanted = np.array(tokens[len(prompt) :])
    slow = [-(row[token] - np.log(np.exp(row).sum())) for row, token in zip(logits, wanted, strict=True)]
    np.testing.assert_allclose(exact.nll(tokens, len(prompt)), slow, atol=1e-6)


def test_sampling_belongs_to_the_request(exact: Engine, requests: list[Request]) -> None:
    hot = [Request(requests[0].prompt, 60, sampling=Sampling(1.0, seed=seed)) for seed in (1, 2, 1)]
    first, second, again = exact.generate(hot)
    assert first == again
    assert first != second
    assert exact.generate(hot[1:2]) == [second]


def test_streamed_text_is_the_text(exact: Engine, requests: list[Request]) -> None:
    heard = {0: "", 1: "", 2: ""}

    def hear(index: int, text: str) -> None:
        heard[index] += text

    completions = exact.generate(requests[:3], on_text=hear)
    assert list(heard.values()) == [completion.text for completion in completions]


def test_a_stop_string_ends_the_text_before_itself(exact: Engine, requests: list[Request]) -> None:
    heard: list[str] = []
    whole = exact.generate(requests[:1])[0]
    request = Request(requests[0].prompt, 200, stop=("answer is", "never said"))
    stopped = exact.generate([request], on_text=lambda _index, text: heard.append(text))[0]
    assert stopped.text == whole.text[: whole.text.index("answer is")] == "".join(heard)
    assert stopped.finish == "stop"


def test_max_tokens_and_the_context_end_a_text(bundled_f16: Path, requests: list[Request]) -> None:
    prompt = requests[0].prompt
    with Engine.load(bundled_f16, context=len(prompt) + 5) as engine:
        short, cut = engine.generate([Request(prompt, 3), Request(prompt, 100)])
        assert (len(short.tokens), short.finish) == (3, "length")
        assert (len(cut.tokens), cut.finish) == (5, "length")
        with pytest.raises(RequestError, match=r"prompt 1 has .* tokens; the context holds"):
            engine.generate([Request((*prompt, *prompt))])


def test_more_requests_than_sequences(bundled_f32: Path, exact: Engine, requests: list[Request]) -> None:
    """Sequences that end at different times leave holes, which others move into; every answer stays as it is alone."""
    uneven = [Request(r.prompt, 5 + 17 * (i % 4)) for i, r in enumerate(requests)] + requests
    with Engine.load(bundled_f32, parallel=3, kv_type="f32", flash_attention="off") as few:
        order: list[int] = []
        completions = few.generate(uneven, on_done=lambda index, _completion: order.append(index))
    assert sorted(order) == list(range(24))
    assert order != sorted(order)
    assert completions == [exact.generate([request])[0] for request in uneven]


def test_an_abandoned_run_leaves_the_engine_whole(exact: Engine, requests: list[Request]) -> None:
    def interrupt(_index: int, _text: str) -> None:
        raise KeyboardInterrupt

    expected = exact.generate(requests[:2])
    with pytest.raises(KeyboardInterrupt):
        exact.generate(requests[:4], on_text=interrupt)
    assert exact.generate(requests[:2]) == expected


def test_what_cannot_be_honoured_is_refused(
    exact: Engine, requests: list[Request], bundled_vector: SteeringVector
) -> None:
    def ask(*steering: Steering) -> None:
        exact.generate(steered(requests[:1], *steering))

    with pytest.raises(VectorError, match="no layer 0"):
        ask(Steering(bundled_vector, 1.0, (0, 1)))
    other = ModelIdentity("other", "qwen2", 64, 6)
    with pytest.raises(VectorError, match=r"of other .* not of"):
        ask(Steering(SteeringVector({1: np.ones(64, dtype=np.float32)}, other)))
    deep = ModelIdentity("unknown", None, 256, 0)
    with pytest.raises(VectorError, match="blocks 0-5"):
        ask(Steering(SteeringVector({6: np.ones(256, dtype=np.float32)}, deep)))
    with pytest.raises(VectorError, match="phase"):
        ask(Steering(bundled_vector, 1.0, (1,), "all"), Steering(bundled_vector, 1.0, (1,), "generated"))
    with pytest.raises(RequestError):
        exact.logits(requests[0].prompt, 0)
    with pytest.raises(ModelError, match="token ids"):
        exact.logits([0, 10**6], 1)


def test_tokens_are_those_of_the_hugging_face_tokenizer(exact: Engine) -> None:
    transformers = pytest.importorskip("transformers")
    from edge_steer.recipes import bundled_model

    tokenizer = transformers.AutoTokenizer.from_pretrained(bundled_model())
    samples = word_problems("dev", 5)
    for text in [s.question for s in samples] + ["Ünïcode — 12.5%\n\n  <|im_end|>?!\r\n", "a.\n\nb"]:
        assert list(exact.encode(text)) == tokenizer(text)["input_ids"]
        plain = exact.encode(text)
        assert exact.decode(plain) == tokenizer.decode(plain, skip_special_tokens=True)
    for sample in samples:
        chat = tokenizer.apply_chat_template(sample.messages, add_generation_prompt=True, tokenize=False)
        assert list(exact.chat(sample.messages)) == tokenizer(chat)["input_ids"]


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "half", "vector"])
def test_a_bad_model_file_is_one_line(
    damage: str, tmp_path: Path, bundled_f16: Path, bundled_vector_gguf: Path
) -> None:
    path = tmp_path / "bad.gguf"
    content = {
        "empty": b"",
        "text": b"no model at all",
        "half": bundled_f16.read_bytes()[: bundled_f16.stat().st_size // 2],
        "vector": bundled_vector_gguf.read_bytes(),
    }
    if damage != "missing":
        path.write_bytes(content[damage])
    with pytest.raises(EdgeSteerError) as caught:
        LlamaModel(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_settings_llama_cpp_would_abort_on_are_refused(bundled_f16: Path, tmp_path: Path) -> None:
    with LlamaModel(bundled_f16) as model:
        with pytest.raises(ModelError, match="threads"):
            LlamaContext(model, length=64, threads=100_000)
        with pytest.raises(ModelError, match="sequences"):
            LlamaContext(model, length=64, sequences=300)
        with pytest.raises(ModelError, match="flash attention"):
            LlamaContext(model, length=64, kv_type="q8_0", flash_attention="off")
        with LlamaContext(model, length=64) as context, pytest.raises(ModelError, match="64 positions"):
            context.decode([1], [64], [0], [1])
    with pytest.raises(ModelError, match="no quant 'Q9_K'; allowed are"):
        quantize_file(bundled_f16, tmp_path / "out.gguf", "Q9_K")
    assert not list(tmp_path.iterdir())
