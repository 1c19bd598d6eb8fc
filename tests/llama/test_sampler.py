"""llama.cpp's sampler chain and its grammars, on the bundled model."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge_steer.core.backend import EngineOptions, Request
from edge_steer.core.errors import RequestError
from edge_steer.core.sampling import GREEDY, Dry, Mirostat, Sampling, Xtc
from edge_steer.llama.engine import Engine

WARM = Sampling(temperature=1.0, seed=7)
HOSTILE = {
    "too deep": "root ::= " + "(" * 50_000 + '"a"' + ")" * 50_000,
    "deep behind quotes": 'root ::= "(" ' + '( ")" ' * 50_000,
    "left recursion": 'root ::= root "a" | "a"',
    "loop of nothing": 'root ::= ("a" | "")*',
    "no root": 'answer ::= "a"',
    "not there": "root ::= other",
    "open string": 'root ::= "abc',
    "open class": "root ::= [abc",
    "escape at the end": 'root ::= "\\',
    "too often": 'root ::= "a"{1,1000000000000000000000}',
    "nothing but words": "this is no grammar",
    "only a comment": "# nothing",
    "NUL": 'root ::= "a\0b"',
    "token beyond the vocabulary": "root ::= <[99999999999]>",
    "llguidance": '%llguidance {}\nstart: "a"',
    "too long": 'root ::= "' + "a" * 200_000 + '"',
}


@pytest.fixture(scope="module")
def engine(bundled_f16: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f16, EngineOptions(threads=1, parallel=4)) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def request_(engine: Engine) -> Request:
    return Request(engine.chat([{"role": "user", "content": "Tom has 3 apples and buys 4. How many?"}]), 24)


def answer(engine: Engine, request: Request, sampling: Sampling) -> tuple[int, ...]:
    return engine.generate([replace(request, sampling=sampling)])[0].tokens


@pytest.mark.parametrize(
    "sampling",
    [
        replace(WARM, typical_p=0.3),
        replace(WARM, top_n_sigma=0.5),
        replace(WARM, xtc=Xtc(1.0, 0.05)),
        replace(WARM, dry=Dry(5.0, allowed_length=0)),
        replace(WARM, mirostat=Mirostat(1, tau=1.0)),
        replace(WARM, mirostat=Mirostat(2, tau=1.0)),
        replace(WARM, dynamic_range=0.9),
        replace(WARM, order=("temperature", "top_k"), top_k=1),
    ],
    ids=["typical_p", "top_n_sigma", "xtc", "dry", "mirostat 1", "mirostat 2", "dynamic_range", "order"],
)
def test_each_setting_changes_the_draw_and_keeps_it_seeded(
    engine: Engine, request_: Request, sampling: Sampling
) -> None:
    plain = [answer(engine, request_, replace(WARM, seed=seed)) for seed in range(6)]
    changed = [answer(engine, request_, replace(sampling, seed=seed)) for seed in range(6)]
    assert changed != plain
    assert changed == [answer(engine, request_, replace(sampling, seed=seed)) for seed in range(6)]


def test_greedy_settings_that_cannot_matter_leave_the_answer(engine: Engine, request_: Request) -> None:
    assert answer(engine, request_, replace(GREEDY, top_k=3, top_p=0.5, min_p=0.2)) == answer(engine, request_, GREEDY)


def test_a_bias_forbids_and_forces_a_token(engine: Engine, request_: Request) -> None:
    first = answer(engine, request_, GREEDY)[0]
    assert answer(engine, request_, replace(GREEDY, logit_bias=((first, float("-inf")),)))[0] != first
    forced = answer(engine, request_, replace(GREEDY, logit_bias=((first + 1, 1e6),)))
    assert set(forced) == {first + 1}


def test_an_answer_obeys_its_grammar(engine: Engine, request_: Request) -> None:
    for sampling in (GREEDY, WARM):
        [completion] = engine.generate([replace(request_, sampling=replace(sampling, grammar='root ::= "Tom" " 3"+'))])
        assert completion.text.startswith("Tom 3")
        assert set(completion.text.removeprefix("Tom")) == {" ", "3"}


def test_an_answer_obeys_its_schema_and_ends_with_it(engine: Engine, request_: Request) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    sampling = replace(GREEDY, json_schema=json.dumps(schema))
    [completion] = engine.generate([replace(request_, sampling=sampling, max_tokens=60)])
    assert completion.finish == "stop"
    assert isinstance(json.loads(completion.text)["n"], int)


def test_a_grammar_no_token_can_follow_ends_that_request_alone(engine: Engine, request_: Request) -> None:
    threes = [token for token in range(engine.vocab_size) if engine.vocabulary.piece(token).startswith(b"3")]
    forbidden = tuple((token, float("-inf")) for token in threes)
    impossible = replace(request_, sampling=replace(GREEDY, grammar='root ::= "3"', logit_bias=forbidden))
    completions = engine.generate([impossible, request_])
    assert completions[0].finish == "error"
    assert "grammar lets no token" in completions[0].error
    assert completions[1].finish != "error"


@pytest.mark.parametrize(
    "schema",
    [
        "{",
        "[]",
        '{"type": "nonsense"}',
        '{"$ref": "http://127.0.0.1:9/x"}',
        '{"$ref": "#"}',
        "[" * 100_000,
        '{"items": ' * 3000 + "1" + "}" * 3000,
        '{"type": "integer", "minimum": 3}',
        '{"type": "object", "properties": {"a": {"not": {}}}}',
        '{"type": "array", "minItems": 2}',
        '{"type": "array", "items": {"type": "integer"}, "minItems": 1000000000}',
        '{"type": "string", "pattern": "^a{10000000000}$"}',
        '{"type": "string", "pattern": "^(a{1,1000000000})$"}',
        '{"type": "string", "pattern": "("}',
        '{"type": "string", "minLength": 3, "pattern": "^a$"}',
        json.dumps({"anyOf": [{"const": number} for number in range(2000)]}),
    ],
)
def test_a_bad_schema_is_one_line(engine: Engine, request_: Request, schema: str) -> None:
    [completion] = engine.generate([replace(request_, sampling=replace(GREEDY, json_schema=schema))])
    assert completion.finish == "error"
    assert completion.error
    assert "\n" not in completion.error


def test_hostile_grammars_are_one_line_and_the_process_lives(bundled_f16: Path) -> None:
    script = f"""
import json, sys
from dataclasses import replace
from edge_steer.core.backend import EngineOptions, Request
from edge_steer.core.sampling import GREEDY
from edge_steer.llama.engine import Engine
grammars = json.load(sys.stdin)
with Engine.load({str(bundled_f16)!r}, EngineOptions(threads=1, parallel=2)) as engine:
    prompt = engine.encode("1 + 1")
    for name, grammar in grammars.items():
        [completion] = engine.generate([Request(prompt, 4, sampling=replace(GREEDY, grammar=grammar))])
        print(json.dumps([name, completion.finish, completion.error]))
    print(json.dumps(["after", engine.generate([Request(prompt, 4)])[0].finish, ""]))
"""
    done = subprocess.run([sys.executable, "-c", script], input=json.dumps(HOSTILE), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, *_ in outcomes] == [*HOSTILE, "after"]
    assert {name: error for name, finish, error in outcomes[:-1] if finish != "error" or "\n" in error} == {}
    assert outcomes[-1][1] != "error"


@pytest.mark.parametrize(
    "settings",
    [
        {"typical_p": 0.0},
        {"typical_p": 1.5},
        {"dynamic_range": -1.0},
        {"logit_bias": ((1, float("nan")),)},
        {"logit_bias": ((1, float("inf")),)},
        {"grammar": "root ::= [a]", "json_schema": "{}"},
        {"order": ("top_q",)},
        {"top_n_sigma": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        Sampling(**settings)  # type: ignore[arg-type]


def test_a_bias_on_no_token_is_an_error_of_the_request(engine: Engine, request_: Request) -> None:
    [completion] = engine.generate([replace(request_, sampling=replace(GREEDY, logit_bias=((10**6, 1.0),)))])
    assert completion.finish == "error"
    assert "1000000" in completion.error
