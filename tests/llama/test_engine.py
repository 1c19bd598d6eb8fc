"""The engine on the bundled model: batched, streamed, stopped and steered answers against plain ones."""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from edge_steer.core.backend import Completion, EngineOptions, FlashAttention, Piece, Recording, Request
from edge_steer.core.errors import EdgeSteerError, ModelError, RequestError, VectorError
from edge_steer.core.sampling import Sampling
from edge_steer.core.steering import LARGEST, Steering
from edge_steer.core.vector import PHASES, Array, ModelIdentity, Phase, SteeringVector
from edge_steer.llama.context import LlamaContext
from edge_steer.llama.engine import Engine
from edge_steer.llama.model import LlamaModel
from edge_steer.llama.quantizer import quantize_file
from edge_steer.reference.model import Reference
from edge_steer.tasks.wordproblems import word_problems


@pytest.fixture(scope="module")
def exact(bundled_f32: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f32, EngineOptions(threads=1, parallel=8, kv_type="f32", flash_attention="off")) as engine:
        yield engine


@pytest.fixture(scope="module")
def requests(exact: Engine) -> list[Request]:
    return [
        Request(exact.chat([{"role": "user", "content": sample.question}]), 200) for sample in word_problems("dev", 12)
    ]


def steered(requests: list[Request], *steering: Steering) -> list[Request]:
    return [Request(r.prompt, r.max_tokens, steering, r.sampling, r.stop) for r in requests]


def test_batched_answers_equal_answers_alone(exact: Engine, requests: list[Request]) -> None:
    together = exact.generate(requests)
    alone = [exact.generate([request])[0] for request in requests]
    assert together == alone
    assert all(re.search(r"\\boxed\{\d+\}", completion.text) for completion in together)
    assert {completion.finish for completion in together} == {"stop"}


def spread(completion: Completion, other: Completion) -> list[float]:
    """The largest difference of a shared token's log-probability at each position."""
    assert completion.tokens == other.tokens
    tops = [(dict(a.top), dict(b.top)) for a, b in zip(completion.logprobs, other.logprobs, strict=True)]
    return [max(abs(ours[token] - theirs[token]) for token in ours.keys() & theirs.keys()) for ours, theirs in tops]


@pytest.fixture(scope="module")
def mixture(requests: list[Request], bundled_vector: SteeringVector) -> list[Request]:
    """Twelve requests: every layer in both phases, strengths of both signs, one of two layers, one unsteered."""
    mixed = []
    for i, request in enumerate(requests):
        strength = (0.1 if i % 6 == 5 else 0.5) * (1 if i < 6 else -1)
        steering = Steering(bundled_vector, strength, (2, 4) if i == 6 else (i % 6,), PHASES[(i + i // 6) % 2])
        mixed.append(Request(request.prompt, 24, () if i == 7 else (steering,), logprobs=100))
    return mixed


def test_a_mixed_batch_gives_each_request_what_it_gets_alone(exact: Engine, mixture: list[Request]) -> None:
    together = exact.generate(mixture)
    for completion, request in zip(together, mixture, strict=True):
        assert max(spread(completion, exact.generate([request])[0])) < 1e-3
    off = [value for i, request in enumerate(mixture) for value in spread(together[i], exact.generate([request])[0])]
    assert np.median(off) < 1e-5


def test_a_mixed_batch_is_what_torch_computes(exact: Engine, mixture: list[Request], bundled: Reference) -> None:
    """Layer 0 included, which llama.cpp's own control vectors do not have."""
    found = [
        spread(ours, theirs) for ours, theirs in zip(exact.generate(mixture), bundled.generate(mixture), strict=True)
    ]
    assert all(np.median(off) < 1e-4 for off in found)
    assert max(map(max, found)) < 1e-3


@pytest.mark.parametrize("phase", ["all", "generated"])
def test_rows_equal_the_native_control_vector(
    exact: Engine, requests: list[Request], bundled_vector: SteeringVector, phase: Phase
) -> None:
    """The same batch, steered alike by rows (the last request differs) and by llama.cpp's control vector."""
    steering = Steering(bundled_vector, 0.5, (3,), phase)
    alike = [Request(r.prompt, 24, (steering,), logprobs=100) for r in requests[:6]]
    native = exact.generate(alike)
    rows = exact.generate([*alike[:5], Request(requests[5].prompt, 24, (Steering(bundled_vector, 0.4, (3,), phase),))])
    assert rows[:5] == native[:5]


def test_layer_0_alone_and_teacher_forced(exact: Engine, requests: list[Request], bundled: Reference) -> None:
    offset = np.random.default_rng(0).normal(size=256).astype(np.float32)
    phases: tuple[Phase, ...] = ("all", "generated")
    for phase in phases:
        steering = (Steering(SteeringVector({0: offset}, exact.model), 1.0, None, phase),)
        request = Request(requests[0].prompt, 24, steering)
        completion = exact.generate([request])[0]
        assert completion.tokens == bundled.generate([request])[0].tokens
        tokens, prompt = request.prompt + completion.tokens, len(request.prompt)
        ours, theirs = exact.logits(tokens, prompt, steering), bundled.logits(tokens, prompt, steering)
        assert np.median(np.abs(ours - theirs).max(axis=1)) < 1e-4
        assert np.abs(ours - exact.logits(tokens, prompt)).max() > 0.1


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


@pytest.mark.parametrize("flash_attention", ["off", "auto"])
def test_the_strongest_steering_spoils_no_later_answer(
    flash_attention: FlashAttention, bundled_f32: Path, requests: list[Request]
) -> None:
    """An overflow would leave NaN in the KV cache, which attention takes in even where it is masked."""
    options = EngineOptions(threads=1, parallel=2, context=256, keep_cache=True, flash_attention=flash_attention)
    with Engine.load(bundled_f32, options) as engine:
        engine.reserve()
        ask = Request(requests[0].prompt, 8)
        before = engine.generate([ask])
        sides = np.where(np.arange(engine.model.hidden_size) % 2, 1, -1).astype(np.float32)
        vector = SteeringVector(dict.fromkeys(range(6), sides), engine.model)
        strongest = Request((*requests[0].prompt, *requests[1].prompt), 8, (Steering(vector, LARGEST),))
        assert [one.finish for one in engine.generate([strongest] * 2)] != ["error"] * 2
        assert engine.generate([ask, ask]) == before * 2
        with pytest.raises(VectorError, match=r"would be added at layer 0; it must be at most 1e\+15"):
            engine.generate([Request(ask.prompt, 8, (Steering(vector, 2 * LARGEST),))])


def test_a_text_is_read_and_scored_alike_whatever_was_answered_before(
    exact: Engine, requests: list[Request], bundled_vector: SteeringVector
) -> None:
    """Of rows in force since the last answers nothing is left."""
    tokens, steering = requests[0].prompt, (Steering(bundled_vector, 1.0, (3,)),)

    def read(steering: tuple[Steering, ...]) -> tuple[Array, Array]:
        recording = Recording((2, 4), tuple(range(len(tokens))))
        logits = [piece.copy() for piece in exact.logit_rows(tokens, len(tokens) // 2, steering, recording)]
        return np.concatenate(logits), np.stack([recording.states[layer] for layer in (2, 4)])

    alone = {some: read(some) for some in ((), steering)}
    for some, (logits, states) in alone.items():
        for unsteered in (4, 8):  # the steered answer ends alone, or both end together
            exact.generate([Request(tokens, unsteered), Request(tokens, 8, steering)])
            again = read(some)
            np.testing.assert_allclose(again[0], logits, atol=1e-4)
            np.testing.assert_allclose(again[1], states, atol=1e-4)


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
    with Engine.load(bundled_f16, EngineOptions(threads=1, context=len(prompt) + 5)) as engine:
        short, cut = engine.generate([Request(prompt, 3), Request(prompt, 100)])
        assert (len(short.tokens), short.finish) == (3, "length")
        assert (len(cut.tokens), cut.finish) == (5, "length")


def test_a_request_that_cannot_be_served_leaves_the_others(bundled_f16: Path, requests: list[Request]) -> None:
    prompt = requests[0].prompt
    heard: list[int] = []
    with Engine.load(bundled_f16, EngineOptions(threads=1, context=len(prompt) + 200)) as engine:
        asked = [Request(prompt * 9), Request(prompt, 200), Request((*prompt, 495))]
        long, good, strange = engine.generate(asked, on_done=lambda index, _completion: heard.append(index))
        assert (long.finish, long.text, long.tokens) == ("error", "", ())
        assert re.fullmatch(r"the prompt has \d+ tokens; the context holds \d+ .* ask for a larger context", long.error)
        assert (strange.finish, strange.error) == ("error", "token 495 is not in the vocabulary of 495")
        assert good == engine.generate([Request(prompt, 200)])[0]
        assert good.finish == "stop"
    assert sorted(heard) == [0, 1, 2]


def test_what_memory_cannot_hold_is_an_error_of_that_request(bundled_f16: Path, requests: list[Request]) -> None:
    with Engine.load(bundled_f16, EngineOptions(threads=1, context=10**12)) as engine:
        good, huge = engine.generate([Request(requests[0].prompt, 40), Request(requests[1].prompt, 10**12)])
    assert len(good.tokens) == 40
    assert re.search(r"need .* GB for their KV cache; .* GB are free", huge.error)


def test_a_common_beginning_is_computed_once(
    exact: Engine, requests: list[Request], bundled_vector: SteeringVector
) -> None:
    """Every strength of a question, more of them than sequences; equal steering shares in phase "all" too."""

    def used(asked: list[Request]) -> tuple[int, int]:
        before = (exact.usage.prefilled, exact.usage.reused)
        exact.generate(asked)
        return exact.usage.prefilled - before[0], exact.usage.reused - before[1]

    heads = [len(request.prompt) - 1 for request in requests[:3]]
    sweep = [
        Request(request.prompt, 30, (Steering(bundled_vector, 0.1 * i, (3,), "generated"),))
        for i in range(-5, 6)
        for request in requests[:3]
    ]
    prefilled, reused = used(sweep)
    assert prefilled <= sum(heads)
    assert prefilled + reused == 11 * sum(heads)
    every = [
        Request(r.prompt, r.max_tokens, (Steering(bundled_vector, r.steering[0].strength, (3,), "all"),)) for r in sweep
    ]
    prefilled, _ = used(every)
    assert prefilled > 10 * sum(heads)
    prefilled, reused = used([every[0]] * 9)
    assert (prefilled, reused) == (heads[0], 8 * heads[0])


def test_a_copied_beginning_changes_no_answer(
    exact: Engine, requests: list[Request], bundled_vector: SteeringVector
) -> None:
    header = exact.encode("A header that every question shares, long enough to be worth a copy. " * 2)
    asked = [
        Request((*header, *request.prompt), 60, steering)
        for request in requests[:6]
        for steering in (
            (),
            (Steering(bundled_vector, 0.5, (3,), "generated"),),
            (Steering(bundled_vector, 0.5, (2,)),),
        )
    ]
    before = exact.usage.reused
    together = exact.generate(asked)
    assert exact.usage.reused - before > 10 * len(header)
    assert together == [exact.generate([request])[0] for request in asked]


def test_long_prompts_are_prefilled_beside_running_sequences(exact: Engine, requests: list[Request]) -> None:
    """Read along, a running answer goes on between the pieces of a long prompt, and none of them changes."""
    long = [Request((*r.prompt[:-4] * 12, *r.prompt), 20) for r in requests[:2]]
    short = [Request(r.prompt, n) for r, n in zip(requests[2:10], (3, 40, 9, 30, 20, 25, 4, 50), strict=True)]
    asked = [*short, *long, *short]
    order: list[int] = []
    streamed = exact.generate(asked, on_text=lambda index, _text: order.append(index))
    assert len(long[0].prompt) > 512
    assert streamed == exact.generate(asked) == [exact.generate([request])[0] for request in asked]


def test_cancelling_frees_the_sequence_at_once(bundled_f16: Path, requests: list[Request]) -> None:
    with Engine.load(bundled_f16, EngineOptions(threads=1, parallel=2)) as engine:
        heard: list[int] = []
        done: dict[int, Completion] = {}

        def hear(index: int, _piece: Piece) -> None:
            heard.append(index)
            if heard.count(0) == 3:
                for other in (0, 2):
                    engine.cancel(tickets[other])

        tickets = [
            engine.submit(request, on_piece=partial(hear, i), on_done=partial(done.__setitem__, i))
            for i, request in enumerate(requests[:4])
        ]
        while engine.step():
            pass
        cancelled, whole, never, last = (done[i] for i in range(4))
        assert cancelled.finish == "cancelled"
        assert len(cancelled.tokens) == 3
        assert engine.decode(cancelled.tokens) == cancelled.text
        assert (never.finish, never.tokens, 2 in heard) == ("cancelled", (), False)
        assert [whole.finish, last.finish] == ["stop", "stop"]
        assert heard.index(3) < len(heard) - 1 - heard[::-1].index(1), "the third sequence ran beside the second"


def test_logprobs_are_those_of_the_logits(
    exact: Engine, requests: list[Request], bundled_vector: SteeringVector
) -> None:
    prompt, steering = requests[0].prompt, (Steering(bundled_vector, 0.5, (3,)),)
    asked = Request(prompt, 30, steering, Sampling(1.5, top_k=20, seed=7), logprobs=5)
    plain, completion = exact.generate([replace(asked, logprobs=None), asked])
    assert (plain.logprobs, plain.tokens) == ((), completion.tokens)
    logits = exact.logits(prompt + completion.tokens, len(prompt), steering).astype(np.float64)
    scores = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for token, entry, row in zip(completion.tokens, completion.logprobs, scores, strict=False):
        assert entry.token == token
        assert entry.logprob == pytest.approx(row[token], abs=1e-3)
        likeliest = np.argsort(-row)[:5]
        assert [other for other, _ in entry.top] == likeliest.tolist()
        assert [score for _, score in entry.top] == pytest.approx(row[likeliest], abs=1e-3)
    assert len(completion.logprobs) == len(completion.tokens)


def test_penalties_follow_their_formula(exact: Engine, requests: list[Request]) -> None:
    """Greedy under penalties, against logits of the whole text penalised by a slow loop."""
    prompt = requests[0].prompt
    sampling = Sampling(repeat_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2, repeat_last_n=20)
    completion = exact.generate([Request(prompt, 40, sampling=sampling)])[0]
    assert completion.tokens != exact.generate([Request(prompt, 40)])[0].tokens
    tokens = prompt + completion.tokens
    for i, row in enumerate(exact.logits(tokens, len(prompt))[: len(completion.tokens)]):
        end = len(prompt) + i
        last = tokens[max(0, end - 20) : end]
        for token in set(last):
            row[token] = row[token] * 1.3 if row[token] <= 0 else row[token] / 1.3
            row[token] -= last.count(token) * 0.4 + 0.2
        assert row.argmax() == tokens[end]


def test_scoring_after_the_first_steering_forgets_nothing_it_needs(
    bundled_f32: Path, requests: list[Request], bundled_vector: SteeringVector, bundled: Reference
) -> None:
    prompt, steering = requests[0].prompt, (Steering(bundled_vector, 0.5, (3,), "generated"),)
    with Engine.load(bundled_f32, EngineOptions(threads=1, kv_type="f32", flash_attention="off")) as engine:
        tokens = prompt + engine.encode("The answer is 12.", start=False)
        for steerings in ((), steering, ()):
            expected = bundled.nll(tokens, len(prompt), steerings)
            np.testing.assert_allclose(engine.nll(tokens, len(prompt), steerings), expected, atol=1e-3)


def test_scoring_reuses_what_the_last_text_shares(exact: Engine, requests: list[Request]) -> None:
    prompt = requests[0].prompt
    answers = [exact.encode(f"The answer is {n}.", start=False) for n in (12, 13, 14)]
    again = [exact.score(prompt + answer, len(prompt)) for answer in answers]
    for answer, (nll, greedy) in zip(answers, again, strict=True):
        logits = exact.logits(prompt + answer, 1)[len(prompt) - 1 : -1]
        exact.generate([Request((5,), 1)])  # nothing of this is shared
        np.testing.assert_allclose(nll, exact.nll(prompt + answer, len(prompt)), atol=1e-4)
        np.testing.assert_array_equal(greedy, logits.argmax(axis=1) == np.array(answer))


def test_more_requests_than_sequences(bundled_f32: Path, exact: Engine, requests: list[Request]) -> None:
    """Sequences that end at different times leave holes, which others move into; every answer stays as it is alone."""
    uneven = [Request(r.prompt, 5 + 17 * (i % 4)) for i, r in enumerate(requests)] + requests
    with Engine.load(bundled_f32, EngineOptions(threads=1, parallel=3, kv_type="f32", flash_attention="off")) as few:
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


def test_an_interrupt_during_a_mixed_batch_is_an_interrupt(
    exact: Engine, requests: list[Request], bundled_vector: SteeringVector
) -> None:
    """llama.cpp calls back into Python then, where an exception would be lost."""
    asked = [Request(r.prompt, 400, (Steering(bundled_vector, 0.1 * i, (0, 3)),)) for i, r in enumerate(requests)]
    for delay in (0.02, 0.05, 0.08, 0.11):
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            exact.generate(asked)
    assert exact.generate(requests[:1])[0].finish == "stop"


def test_what_cannot_be_honoured_is_refused(
    exact: Engine, requests: list[Request], bundled_vector: SteeringVector
) -> None:
    def ask(*steering: Steering) -> None:
        exact.generate(steered(requests[:1], *steering))

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
    with pytest.raises(RequestError, match="token 1000000 is not in the vocabulary"):
        exact.logits([0, 10**6], 1)
    with LlamaContext(exact._model, length=64) as context, pytest.raises(VectorError, match="no layer 0"):
        context.steer({0: np.ones(256, dtype=np.float32)})


def test_tokens_are_those_of_the_hugging_face_tokenizer(exact: Engine) -> None:
    transformers = pytest.importorskip("transformers")
    from edge_steer.models.recipe import bundled_model

    tokenizer = transformers.AutoTokenizer.from_pretrained(bundled_model())
    samples = word_problems("dev", 5)
    for text in [s.question for s in samples] + ["Ünïcode — 12.5%\n\n  <|im_end|>?!\r\n", "a.\n\nb"]:
        assert list(exact.encode(text)) == tokenizer(text)["input_ids"]
        plain = exact.encode(text)
        assert exact.decode(plain) == tokenizer.decode(plain, skip_special_tokens=True)
    for sample in samples:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": sample.question}], add_generation_prompt=True, tokenize=False
        )
        assert list(exact.chat([{"role": "user", "content": sample.question}])) == tokenizer(chat)["input_ids"]


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


def test_a_closed_engine_says_so_and_ends_nothing_else(bundled_f16: Path, bundled_vector: SteeringVector) -> None:
    engine = Engine.load(bundled_f16, EngineOptions(threads=1))
    tokens = engine.encode("Tom has 3 apples.")
    engine.generate([Request(tokens, 2)])
    engine.close()
    engine.close()
    calls: list[Callable[[], object]] = [
        lambda: engine.encode("Tom"),
        lambda: engine.decode([259, 260, 261]),
        lambda: engine.generate([Request(tokens, 2)]),
        lambda: engine.generate([Request(tokens, 2, (Steering(bundled_vector, 0.4),))]),
        lambda: engine.logits(tokens, 1),
        lambda: engine.record(tokens, [2]),
    ]
    for call in calls:
        with pytest.raises(ModelError, match=r"abacus-F16.gguf was closed; load it again"):
            call()
