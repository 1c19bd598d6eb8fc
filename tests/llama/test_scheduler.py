"""Requests that come while others run: the engine's submit, step and cancel on the bundled model."""

import gc
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from edge_steer.core.backend import Completion, EngineOptions, Piece, Request
from edge_steer.core.errors import OutOfMemory, RequestError, VectorError
from edge_steer.core.steering import Steering
from edge_steer.core.streaming import common_prefix
from edge_steer.core.vector import ModelIdentity, Phase, SteeringVector
from edge_steer.llama.engine import Engine
from edge_steer.llama.prefix_cache import WORTH_COPYING
from edge_steer.tasks.wordproblems import word_problems

EXACT = EngineOptions(threads=1, parallel=4, kv_type="f32", flash_attention="off")
KEEPING = EngineOptions(threads=1, parallel=4, context=512, kv_type="f32", flash_attention="off", keep_cache=True)


@pytest.fixture
def engine(bundled_f32: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f32, EXACT) as loaded:
        yield loaded


@pytest.fixture
def keeping(bundled_f32: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f32, KEEPING) as loaded:
        yield loaded


@pytest.fixture
def prompts(engine: Engine) -> list[tuple[int, ...]]:
    return [engine.chat([{"role": "user", "content": sample.question}]) for sample in word_problems("dev", 6)]


def run(engine: Engine) -> None:
    while engine.step():
        pass


def answer(engine: Engine, request: Request) -> Completion:
    done: list[Completion] = []
    engine.submit(request, on_done=done.append)
    run(engine)
    return done[0]


def test_requests_that_come_later_are_answered_as_alone(
    engine: Engine, prompts: list[tuple[int, ...]], bundled_vector: SteeringVector
) -> None:
    """One after the other, every third step; longer ones, so that the context grows; other steering, so that native
    becomes rows while answers run."""
    steerings = [
        (),
        (),
        (Steering(bundled_vector, 0.5, (3,)),),
        (Steering(bundled_vector, -0.3, (0, 2), "generated"),),
        (),
    ]
    asked = [Request(prompts[i], 60 + 200 * i, steering) for i, steering in enumerate(steerings)]
    alone = [engine.generate([request])[0] for request in asked]
    done: dict[int, Completion] = {}
    shapes = set()
    for index, request in enumerate(asked):
        engine.submit(request, on_done=partial(done.__setitem__, index))
        for _ in range(3):
            engine.step()
        context = engine._contexts.current
        assert context
        shapes.add((context.length, context.sequences, context.hooked))
    run(engine)
    assert [done[index] for index in range(len(asked))] == alone
    assert {hooked for *_, hooked in shapes} == {False, True} and len(shapes) > 2


def test_any_thread_submits_and_cancels(engine: Engine, prompts: list[tuple[int, ...]]) -> None:
    expected = engine.generate([Request(prompt, 30) for prompt in prompts])
    done: dict[int, Completion] = {}

    def submit(index: int) -> None:
        engine.submit(Request(prompts[index], 30), on_done=partial(done.__setitem__, index))
        engine.cancel(engine.submit(Request(prompts[index], 30), on_done=partial(done.__setitem__, ~index)))

    threads = [threading.Thread(target=submit, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    while len(done) < 2 * len(prompts):
        engine.step()
    assert not engine.step()
    assert [done[index] for index in range(len(prompts))] == expected
    assert {done[~index].finish for index in range(len(prompts))} == {"cancelled"}


def test_pieces_make_up_the_text_and_carry_each_token(engine: Engine, prompts: list[tuple[int, ...]]) -> None:
    [whole] = engine.generate([Request(prompts[0], 200, logprobs=2)])
    pieces: list[Piece] = []
    done: list[Completion] = []
    request = Request(prompts[0], 200, stop=("answer is",), logprobs=2)
    engine.submit(request, on_piece=pieces.append, on_done=done.append)
    run(engine)
    [stopped] = done
    assert "".join(piece.text for piece in pieces) == stopped.text == whole.text[: whole.text.index("answer is")]
    assert tuple(piece.token for piece in pieces) == stopped.tokens
    assert tuple(piece.logprobs for piece in pieces) == stopped.logprobs == whole.logprobs[: len(stopped.tokens)]
    assert "" in [piece.text for piece in pieces]
    assert stopped.timings.prompt > 0 and stopped.timings.generation > 0 and stopped.timings.reused == 0


def test_a_callback_that_raises_ends_nothing(engine: Engine, prompts: list[tuple[int, ...]]) -> None:
    expected = engine.generate([Request(prompt, 12) for prompt in prompts[:3]])
    done: dict[int, Completion] = {}

    def hear(_piece: Piece) -> None:
        raise LookupError

    for index, prompt in enumerate(prompts[:3]):
        engine.submit(
            Request(prompt, 12), on_piece=hear if index == 1 else None, on_done=partial(done.__setitem__, index)
        )
    raised = 0
    while len(done) < 3:
        try:
            engine.step()
        except LookupError:
            raised += 1
    assert raised == 12
    assert [done[index] for index in range(3)] == expected


def test_what_cannot_be_served_ends_alone(engine: Engine, prompts: list[tuple[int, ...]]) -> None:
    done: dict[str, Completion] = {}
    engine.submit(Request(prompts[0], 20), on_done=partial(done.__setitem__, "good"))
    engine.step()
    engine.submit(Request((10**6,), 20), on_done=partial(done.__setitem__, "strange"))
    engine.submit(Request(prompts[0] * 99, 20), on_done=partial(done.__setitem__, "long"))
    other = SteeringVector({1: np.ones(64, dtype=np.float32)}, ModelIdentity("other", "qwen2", 64, 6))
    with pytest.raises(VectorError, match="of other"):
        engine.submit(Request(prompts[0], 20, (Steering(other),)))
    with pytest.raises(RequestError, match="answers are being generated"):
        engine.logits(prompts[0], 1)
    run(engine)
    assert (done["good"].finish, done["strange"].finish, done["long"].finish) == ("length", "error", "error")
    assert done["good"] == engine.generate([Request(prompts[0], 20)])[0]


def test_a_conversation_goes_on_from_what_is_cached(keeping: Engine, prompts: list[tuple[int, ...]]) -> None:
    """Two that take turns, so that one's cache has to survive the other's answer."""
    keeping.reserve()
    texts = list(prompts[:2])
    for turn in range(3):
        for index in range(2):
            completion = answer(keeping, Request(texts[index], 20))
            if turn:
                assert completion.timings.reused >= len(texts[index]) - 12
            texts[index] = (*texts[index], *completion.tokens, *prompts[2][:10])
    plain = answer(keeping, Request(texts[0], 20))
    assert plain.timings.reused > 0
    keeping._scheduler.forget()
    fresh = answer(keeping, Request(texts[0], 20))
    assert (fresh.timings.reused, fresh) == (0, plain)


def test_who_runs_alone_leaves_what_others_have_cached_where_it_is(
    keeping: Engine, prompts: list[tuple[int, ...]], bundled_vector: SteeringVector
) -> None:
    """One after the other in sequences of their own; then each goes on, while others of several steerings join it."""
    keeping.reserve()
    first = [answer(keeping, Request(prompt, 20)) for prompt in prompts[:4]]
    context = keeping._contexts.current
    assert context
    filled = [len(keeping._scheduler._prefixes._entries[slot].keys) for slot in range(context.sequences)]
    assert filled == [len(prompt) + 19 for prompt in prompts[:4]], "nobody was copied"
    for index in (2, 3, 0, 1):
        request = Request((*prompts[index], *first[index].tokens[:10]), 30)
        done: dict[str, Completion] = {}
        keeping.submit(request, on_piece=lambda piece: None, on_done=partial(done.__setitem__, "alone"))
        for _ in range(5):
            keeping.step()
        steered = Request(prompts[4], 30, (Steering(bundled_vector, 0.5, (3,)),))
        keeping.submit(steered, on_done=partial(done.__setitem__, "steered"))
        keeping.step()
        keeping.submit(Request(prompts[5], 3), on_done=partial(done.__setitem__, "short"))
        run(keeping)
        assert done["alone"].tokens[:10] == first[index].tokens[10:]
        with Engine.load(keeping._model.path, EXACT) as other:
            expected = other.generate([request, steered, Request(prompts[5], 3)])
        assert [done[name].tokens for name in ("alone", "steered", "short")] == [one.tokens for one in expected]


def test_who_is_left_alone_is_not_steered_as_those_who_left(
    keeping: Engine, prompts: list[tuple[int, ...]], bundled_vector: SteeringVector
) -> None:
    keeping.reserve()
    strengths = (2.0, 0.0)
    requests = [
        Request(prompt, 10 + 30 * index, (Steering(bundled_vector, strength, (3,)),))
        for index, (prompt, strength) in enumerate(zip(prompts, strengths, strict=False))
    ]
    done: dict[int, Completion] = {}
    for index, request in enumerate(requests):
        keeping.submit(request, on_done=partial(done.__setitem__, index))
    run(keeping)
    with Engine.load(keeping._model.path, EXACT) as other:
        assert [done[index].tokens for index in range(2)] == [other.generate([one])[0].tokens for one in requests]


def test_an_edit_keeps_the_conversation_it_branches_from(keeping: Engine, prompts: list[tuple[int, ...]]) -> None:
    keeping.reserve()
    long = (*prompts[0], *answer(keeping, Request(prompts[0], 40)).tokens)
    assert answer(keeping, Request((*long[:-30], *prompts[1][:20]), 5)).timings.reused == len(long) - 30
    assert answer(keeping, Request(long, 5)).timings.reused == len(long) - 1


@pytest.mark.parametrize("phase", ["all", "generated"])
def test_a_cache_belongs_to_the_steering_that_computed_it(
    keeping: Engine, prompts: list[tuple[int, ...]], bundled_vector: SteeringVector, phase: Phase
) -> None:
    head = len(prompts[0]) - 1
    for strength in (0.5, 0.25, 0.25, 0.0, 0.5):
        request = Request(prompts[0], 15, (Steering(bundled_vector, strength, (3,), phase),))
        completion = answer(keeping, request)
        assert completion.timings.reused in (0, head)
        if phase == "generated" and strength != 0.5:
            assert completion.timings.reused == head, "a changed strength keeps the prompt's cache"
        with Engine.load(keeping._model.path, EXACT) as other:
            assert completion.tokens == other.generate([request])[0].tokens


def test_rows_take_over_what_was_cached_natively(
    keeping: Engine, prompts: list[tuple[int, ...]], bundled_vector: SteeringVector
) -> None:
    first = answer(keeping, Request(prompts[0], 20))
    done: dict[int, Completion] = {}
    for index, strength in enumerate((0.0, 0.5)):
        steering = (Steering(bundled_vector, strength, (0,)),)
        keeping.submit(Request(prompts[0], 20, steering), on_done=partial(done.__setitem__, index))
    run(keeping)
    assert keeping._contexts.current and keeping._contexts.current.hooked
    assert done[0] == first and done[0].timings.reused == len(prompts[0]) - 1
    assert done[1].timings.reused == 0


def test_a_context_is_reserved_once_and_for_all(bundled_f16: Path, prompts: list[tuple[int, ...]]) -> None:
    with Engine.load(bundled_f16, EngineOptions(threads=1, parallel=3, context=700)) as engine:
        engine.reserve()
        before = engine._contexts.current
        assert before and (before.length, before.sequences) == (700, 3)
        engine.generate([Request(prompt, 8) for prompt in prompts])
        assert engine._contexts.current is before
    with Engine.load(bundled_f16, EngineOptions(threads=1, context=10**12)) as engine, pytest.raises(OutOfMemory):
        engine.reserve()


def test_ten_thousand_strengths_leave_nothing_behind(keeping: Engine, bundled_vector: SteeringVector) -> None:
    done: list[Completion] = []
    for number in range(10_000):
        steering = Steering(bundled_vector, 0.01 + number / 1e6, (3,))
        ticket = keeping.submit(Request((5,), 1, (steering,)), on_done=done.append)
        if number % 100:
            keeping.cancel(ticket)
        keeping.step()
    run(keeping)
    assert len(done) == 10_000 and sum(completion.finish == "length" for completion in done) == 100
    gc.collect()
    assert len(keeping._steerings) <= keeping.parallel


def test_copies_that_wait_for_a_decode_move_to_a_new_context(
    keeping: Engine, prompts: list[tuple[int, ...]], bundled_vector: SteeringVector
) -> None:
    """A request takes what another sequence has cached, and before anything is decoded the next one, steered
    otherwise, needs another context."""
    keeping.reserve()
    steered = (Steering(bundled_vector, 0.5, (3,)),)
    requests = [Request(prompts[0], 40, steered), Request(prompts[0], 40)]
    alone = [answer(keeping, request) for request in requests]

    def both(prompt: tuple[int, ...]) -> list[Completion]:
        done: dict[int, Completion] = {}
        for i, steering in enumerate((steered, ())):
            keeping.submit(Request(prompt, 40, steering), on_done=partial(done.__setitem__, i))
            keeping.step()
        run(keeping)
        return [done[0], done[1]]

    for _ in range(3):
        for prompt in prompts[1:3]:
            both(prompt)
            assert [completion.text for completion in both(prompts[0])] == [completion.text for completion in alone]


def test_a_long_prompt_is_prefilled_a_batch_a_step(keeping: Engine) -> None:
    long = Request(tuple(keeping.encode("Every apple of the basket is red. " * 40))[:500], 2)
    batch = 128
    keeping.reserve()
    assert keeping._contexts.current
    keeping._contexts.current.batch = batch
    there: list[int] = []
    done: list[Completion] = []
    ticket = keeping.submit(long, on_prefill=there.append, on_done=done.append)
    keeping.step()
    assert there == [0, batch]
    keeping.cancel(ticket)
    run(keeping)
    assert done[0].finish == "cancelled"
    assert there == [0, batch]
    there.clear()
    assert answer(keeping, long).timings.reused == batch


def test_prompts_that_wait_share_a_batch(keeping: Engine, engine: Engine, prompts: list[tuple[int, ...]]) -> None:
    """Of one batch each, with the first token; a prompt that begins like another waits and takes over its cache."""
    asked = [Request(prompt, 12) for prompt in prompts[:3]]
    alone = [engine.generate([request])[0] for request in asked]
    done: dict[int, Completion] = {}
    pieces: list[Piece] = []
    for index, request in enumerate(asked):
        keeping.submit(request, on_piece=pieces.append, on_done=partial(done.__setitem__, index))
    before = keeping.usage.reused
    keeping.step()
    head = min(common_prefix(prompts[0], prompt) for prompt in prompts[1:3])
    assert len(pieces) == (3 if head < WORTH_COPYING else 1)
    run(keeping)
    assert [done[index] for index in range(3)] == alone
    assert keeping.usage.reused - before == (0 if head < WORTH_COPYING else 2 * head)


def test_prompts_steered_otherwise_share_a_batch(
    keeping: Engine, engine: Engine, bundled_vector: SteeringVector, prompts: list[tuple[int, ...]]
) -> None:
    """Of different length, strength and phase; the answers' probabilities are those of each alone, to rounding."""
    steerings: list[tuple[Steering, ...]] = [
        (Steering(bundled_vector, 0.4),),
        (),
        (Steering(bundled_vector, -0.4),),
        (Steering(bundled_vector, 0.4, phase="generated"),),
    ]
    starts = [tuple(range(100 + 20 * index, 120 + 20 * index)) for index in range(4)]  # nothing to take over
    asked = [
        Request((*start, *prompt[index:]), 8, steering, logprobs=1)
        for index, (start, prompt, steering) in enumerate(zip(starts, prompts[:4], steerings, strict=True))
    ]
    alone = [engine.generate([request])[0] for request in asked]
    done: dict[int, Completion] = {}
    pieces: list[Piece] = []
    for index, request in enumerate(asked):
        keeping.submit(request, on_piece=pieces.append, on_done=partial(done.__setitem__, index))
    keeping.step()
    assert len(pieces) == 3  # the last token of a prompt steered from there on joins the next step
    run(keeping)
    for index, one in enumerate(alone):
        assert done[index].tokens == one.tokens
        for mine, its in zip(done[index].logprobs or (), one.logprobs or (), strict=True):
            assert mine.logprob == pytest.approx(its.logprob, abs=2e-4)
    assert len({one.text for one in alone}) == 4


def test_clients_who_differ_find_the_context_as_they_left_it(
    keeping: Engine, bundled_vector: SteeringVector, prompts: list[tuple[int, ...]]
) -> None:
    """After a wave of different strengths the context stays as it is, whatever comes."""
    wave = [Request(prompt, 4, (Steering(bundled_vector, 0.1 * n, (5,)),)) for n, prompt in enumerate(prompts[:3], 1)]
    for request in wave:
        keeping.submit(request)
    run(keeping)
    hooked = keeping._contexts.current
    assert hooked
    assert hooked.hooked
    for request in wave:
        keeping.submit(request)
        keeping.step()  # each comes alone
    run(keeping)
    assert keeping._contexts.current is hooked
    for _ in range(2):
        answer(keeping, Request(prompts[0], 4))
        assert keeping._contexts.current is hooked


def test_an_engine_at_rest_is_plain_again_and_forgets_nothing(
    keeping: Engine, bundled_vector: SteeringVector, prompts: list[tuple[int, ...]]
) -> None:
    for strength in (0.1, 0.2):
        keeping.submit(Request(prompts[0], 4, (Steering(bundled_vector, strength, (5,), "generated"),)))
    keeping.rest()  # something is to do
    run(keeping)
    assert keeping._contexts.current
    assert keeping._contexts.current.hooked
    keeping.rest()
    plain = keeping._contexts.current
    assert not plain.hooked
    answered = answer(keeping, Request(prompts[0], 4))
    assert answered.timings.reused == len(prompts[0]) - 1
    assert keeping._contexts.current is plain


@pytest.mark.parametrize("keep", [False, True])
def test_what_memory_cannot_hold_ends_and_the_rest_goes_on(
    keep: bool, bundled_f16: Path, prompts: list[tuple[int, ...]]
) -> None:
    options = EngineOptions(threads=1, parallel=3, context=10**12, keep_cache=keep)
    with Engine.load(bundled_f16, options) as engine:
        alone = engine.generate([Request(prompts[0], 40)])[0]
        engine._scheduler.forget()
        done: list[Completion] = []
        engine.submit(Request(prompts[0], 40), on_done=done.append)
        for _ in range(9):
            engine.step()
        engine.submit(Request(prompts[1], 10**11), on_done=done.append)
        run(engine)
        assert [one.finish for one in done] == ["error", "length"]
        assert "are free; ask for fewer tokens" in done[0].error
        assert done[1].tokens == alone.tokens


def test_a_cancelled_answer_stays_cached(keeping: Engine, prompts: list[tuple[int, ...]]) -> None:
    pieces: list[Piece] = []
    ticket = keeping.submit(Request(prompts[0], 40), on_piece=pieces.append)
    for _ in range(20):
        keeping.step()
    keeping.cancel(ticket)
    run(keeping)
    tokens = [piece.token for piece in pieces if piece.token is not None]
    assert len(tokens) >= 19
    again = answer(keeping, Request((*prompts[0], *tokens[:15]), 5))
    assert again.timings.reused >= len(prompts[0]) + 14


def test_a_request_may_leave_the_cache_alone(keeping: Engine, prompts: list[tuple[int, ...]]) -> None:
    request = Request(prompts[0], 5)
    first = answer(keeping, request)
    done: list[Completion] = []
    keeping.submit(request, on_done=done.append, reuse=False)
    run(keeping)
    assert done == [first]
    assert done[0].timings.reused == 0
    assert answer(keeping, request).timings.reused == len(prompts[0]) - 1
