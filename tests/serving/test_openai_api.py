"""OpenAI's endpoints on a running server, held against the engine in this process."""

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from paths import DENSE
from serving_server import QUESTION, Json

from edge_steer.core.backend import Request
from edge_steer.core.steering import Steering
from edge_steer.core.vector import PHASES, Phase
from edge_steer.llama.engine import Engine
from edge_steer.vectors.read import load

ASK: Json = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 24}
DENSE_AT_2 = [{"name": "dense", "scale": 2.0}]


def ask(http: httpx.Client, **fields: object) -> Any:
    response = http.post("/v1/chat/completions", json={**ASK, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def text(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def events(http: httpx.Client, path: str, body: Json) -> Iterator[Any]:
    with http.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    yield from (json.loads(line.removeprefix("data: ")) for line in lines[:-1])


def expected(engine: Engine, *steering: Steering, max_tokens: int = 24) -> str:
    prompt = engine.chat([{"role": "user", "content": QUESTION}])
    return engine.generate([Request(prompt, max_tokens, steering)])[0].text


@pytest.fixture(scope="module")
def dense() -> Steering:
    return Steering.of(load(DENSE), 2.0)


def test_an_answer_is_the_engines(http: httpx.Client, engine: Engine) -> None:
    answer = ask(http)
    assert text(answer) == expected(engine)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 24
    assert answer["usage"]["total_tokens"] == 24 + answer["usage"]["prompt_tokens"]
    assert answer["steering"] == []
    assert all(math.isfinite(value) for value in answer["timings"].values())


@pytest.mark.parametrize(
    "form",
    [
        {"control_vectors": DENSE_AT_2},
        {"steering": "2 dense"},
        {"steering": {"vectors": [{"name": "dense", "scale": 2.0}]}},
        {"model": "abacus+strong"},
    ],
)
def test_every_form_of_steering_steers_and_is_told(
    http: httpx.Client, engine: Engine, dense: Steering, form: Json
) -> None:
    answer = ask(http, **form)
    assert text(answer) == expected(engine, dense) != expected(engine)
    told = {"name": "dense", "scale": 2.0, "layers": [5], "phase": "all", "sha256": dense.vector.digest}
    assert answer["steering"] == [told]


@pytest.mark.parametrize("phase", PHASES)
def test_layers_and_phase_are_the_requests(http: httpx.Client, engine: Engine, phase: Phase) -> None:
    vector = load(DENSE)
    steering = Steering(vector, 3.0, None, phase)
    answer = ask(http, control_vectors=[{"name": "dense", "scale": 3, "phase": phase, "layers": "5"}])
    assert text(answer) == expected(engine, steering)
    assert answer["steering"][0]["phase"] == phase


def test_an_empty_list_wins_over_a_preset(http: httpx.Client, engine: Engine) -> None:
    answer = ask(http, model="abacus+strong", control_vectors=[])
    assert (text(answer), answer["steering"]) == (expected(engine), [])


def test_a_stream_is_the_same_answer_and_its_last_chunks_tell_what_steered(http: httpx.Client) -> None:
    whole = ask(http, control_vectors=DENSE_AT_2)
    chunks = list(
        events(
            http,
            "/v1/chat/completions",
            {**ASK, "control_vectors": DENSE_AT_2, "stream_options": {"include_usage": True}},
        )
    )
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks[1:-2]]
    assert "".join(pieces) == text(whole)
    assert len(pieces) > 10
    last, used = chunks[-2:]
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["steering"] == used["steering"] == whole["steering"]
    assert used["choices"] == []
    assert used["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_no_usage_chunk_unless_asked(http: httpx.Client) -> None:
    assert all(chunk["choices"] and "usage" not in chunk for chunk in events(http, "/v1/chat/completions", ASK))


def test_several_answers_draw_for_themselves(http: httpx.Client) -> None:
    body = {"n": 3, "temperature": 2.0, "seed": 11}
    answer = ask(http, **body)
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice["message"]["content"] for choice in ask(http, **body)["choices"]]
    assert texts[1] == text(ask(http, temperature=2.0, seed=12))
    assert answer["usage"]["completion_tokens"] > answer["usage"]["prompt_tokens"]
    streamed = [""] * 3
    for chunk in events(http, "/v1/chat/completions", {**ASK, **body}):
        [choice] = chunk["choices"]
        streamed[choice["index"]] += choice["delta"].get("content") or ""
    assert streamed == texts


def test_more_answers_than_fit_are_refused(http: httpx.Client) -> None:
    response = http.post("/v1/chat/completions", json={**ASK, "n": 99})
    assert response.status_code == 400
    assert "'n' is 99" in response.json()["error"]["message"]


def test_logprobs_are_the_models_own(http: httpx.Client, engine: Engine) -> None:
    answer = ask(http, logprobs=True, top_logprobs=3, max_tokens=6)
    content = answer["choices"][0]["logprobs"]["content"]
    prompt = engine.chat([{"role": "user", "content": QUESTION}])
    chosen = [entry["id"] for entry in content]
    rows = engine.logits((*prompt, *chosen), len(prompt)).astype(np.float64)
    logprobs = (
        rows - np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True)) - rows.max(1, keepdims=True)
    )
    for row, entry in zip(logprobs, content, strict=False):
        assert entry["logprob"] == pytest.approx(row[entry["id"]], abs=0.02)
        assert [other["id"] for other in entry["top_logprobs"]] == np.argsort(-row)[:3].tolist()
        assert bytes(entry["bytes"]).decode() == entry["token"]


def test_streamed_logprobs_are_those_of_the_whole(http: httpx.Client) -> None:
    fields: Json = {"logprobs": True, "top_logprobs": 2, "max_tokens": 6}
    whole = ask(http, **fields)["choices"][0]["logprobs"]["content"]
    streamed: list[Any] = []
    for chunk in events(http, "/v1/chat/completions", {**ASK, **fields}):
        streamed += chunk["choices"][0].get("logprobs", {}).get("content", [])
    assert [entry["id"] for entry in streamed] == [entry["id"] for entry in whole]


def test_stop_strings_end_the_text_and_are_no_part_of_it(http: httpx.Client) -> None:
    free = text(ask(http))
    word = free.split()[3]
    answer = ask(http, stop=[word])
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert text(answer) == free[: free.index(word)]
    shown = "".join(
        chunk["choices"][0]["delta"].get("content") or ""
        for chunk in events(http, "/v1/chat/completions", {**ASK, "stop": word})
    )
    assert shown == text(answer)


def test_a_bias_forbids_a_token_by_id_and_by_text(http: httpx.Client) -> None:
    first = ask(http, logprobs=True, max_tokens=1)["choices"][0]["logprobs"]["content"][0]
    for bias in ({str(first["id"]): -1000}, [[first["id"], False]], [[first["token"], -1000.0]]):
        other = ask(http, logprobs=True, max_tokens=1, logit_bias=bias)["choices"][0]["logprobs"]["content"][0]
        assert other["id"] != first["id"]


@pytest.mark.parametrize(
    "form",
    [
        {"json_schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "n",
                    "strict": True,
                    "schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
                },
            }
        },
        {"grammar": 'root ::= "{\\"n\\": " [0-9] "}"'},
    ],
    ids=["json_schema", "response_format", "grammar"],
)
def test_an_answer_obeys_its_schema(http: httpx.Client, form: Json) -> None:
    answer = ask(http, **form, max_tokens=100)
    assert isinstance(json.loads(text(answer))["n"], int)
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_grammar_is_an_ordinary_error(http: httpx.Client, stream: bool) -> None:
    response = http.post("/v1/chat/completions", json={**ASK, "grammar": "root ::= other", "stream": stream})
    assert response.status_code == 400
    assert "grammar" in response.json()["error"]["message"]


def test_an_answer_that_was_begun_is_gone_on_with(http: httpx.Client, engine: Engine) -> None:
    whole = text(ask(http))
    begun = [*ASK["messages"], {"role": "assistant", "content": whole[:10]}]
    answer = ask(http, messages=begun)
    prompt = engine.encode(
        engine.vocabulary.conversation([*ASK["messages"], {"role": "assistant", "content": whole[:10]}], answer=False),
        start=False,
    )
    assert text(answer) == engine.generate([Request(prompt, 24)])[0].text


def test_a_prompt_is_cached_by_tokens_and_steering(http: httpx.Client) -> None:
    body: Json = {"messages": [{"role": "user", "content": f"{QUESTION} And how many are 11 apples and 12 apples?"}]}
    cached = [ask(http, **body, **steer)["timings"]["cache_n"] for steer in ({}, {}, {"steering": "1.7 dense"})]
    assert cached[1] > 20
    assert cached[2] == 0
    moved = [
        ask(http, **body, control_vectors=[{"name": "dense", "scale": scale, "phase": "generated"}])["timings"]
        for scale in (1.1, 1.2)
    ]
    assert all(timings["prompt_n"] <= 2 for timings in moved)


def test_zero_tokens_generate_nothing(http: httpx.Client) -> None:
    answer = ask(http, max_tokens=0)
    assert (text(answer), answer["usage"]["completion_tokens"]) == ("", 0)


def test_models_list_presets_as_virtual_models(http: httpx.Client) -> None:
    models = {model["id"]: model for model in http.get("/v1/models").json()["data"]}
    assert set(models) == {"abacus", "gpt-4o", "abacus+strong", "abacus+mixed"}
    assert models["abacus+strong"]["parent"] == "abacus"
    assert [one["name"] for one in models["abacus+mixed"]["steering"]] == ["dense", "other"]
    assert http.get("/v1/models/abacus+strong").json()["id"] == "abacus+strong"
    assert http.get("/v1/models/nothing").status_code == 404


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"model": "gpt-9"}, 404, "abacus+strong"),
        ({"steering": "4 dance"}, 400, "dense, other"),
        ({"control_vectors": [{"name": "dense", "layers": [99]}]}, 400, "layer 99"),
        ({"control_vectors": [{"name": "dense", "layers": []}]}, 400, "no layer"),
        ({"control_vectors": [{"name": "dense", "layers": "x"}]}, 400, "layers"),
        ({"messages": [{"role": "user", "content": "apples " * 3000}]}, 400, "context"),
        ({"logit_bias": {"999999": 1}}, 400, "999999"),
        ({"json_schema": {"type": "nonsense"}}, 400, "schema"),
        ({"json_schema": {"type": "nonsense"}, "max_tokens": 0}, 400, "without tokens"),
        ({"samplers": ["top_q"]}, 400, "top_q"),
        ({"tools": [{"type": "function"}]}, 501, "tools"),
    ],
)
def test_what_cannot_be_honoured_is_one_line(http: httpx.Client, fields: Json, status: int, named: str) -> None:
    response = http.post("/v1/chat/completions", json={**ASK, **fields})
    error = response.json()["error"]
    assert response.status_code == error["code"] == status
    assert named in error["message"]
    assert "\n" not in error["message"]


def test_a_prompt_that_is_too_long_says_by_how_much(http: httpx.Client) -> None:
    error = http.post("/v1/completions", json={"prompt": [5] * 2000}).json()["error"]
    assert (error["type"], error["n_prompt_tokens"], error["n_ctx"]) == ("exceed_context_size_error", 2000, 1024)


def test_completions_of_several_prompts_of_every_kind(http: httpx.Client, engine: Engine) -> None:
    tokens = engine.encode(QUESTION)
    prompts = [QUESTION, list(tokens), [*tokens[:-3], engine.decode(tokens[-3:])]]
    answer = http.post("/v1/completions", json={"prompt": prompts, "temperature": 0, "max_tokens": 8}).json()
    alone = engine.generate([Request(tokens, 8)])[0].text
    assert [choice["text"] for choice in answer["choices"][:2]] == [alone, alone]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    streamed = list(events(http, "/v1/completions", {"prompt": QUESTION, "temperature": 0, "max_tokens": 8}))
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == alone


@pytest.mark.parametrize("steering", ["", "2 dense"])
@pytest.mark.parametrize("length", [0, 1])
def test_echo_scores_the_prompt_as_lm_eval_asks(
    http: httpx.Client, engine: Engine, dense: Steering, steering: str, length: int
) -> None:
    tokens = engine.encode("3 + 4 = 7 apples.")
    body = {"prompt": [list(tokens)], "max_tokens": length, "echo": True, "logprobs": 1, "temperature": 0}
    [choice] = http.post("/v1/completions", json={**body, "steering": steering}).json()["choices"]
    assert choice["text"].startswith(engine.decode(tokens))
    logprobs = choice["logprobs"]
    assert {len(values) for values in logprobs.values()} == {len(tokens) + length}
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    nll = engine.nll(tokens, 1, [dense] if steering else [])
    np.testing.assert_allclose(logprobs["token_logprobs"][1 : len(tokens)], -nll, atol=0.02)
    offsets = [choice["text"].index(logprobs["tokens"][0]), *logprobs["text_offset"][1:]]
    assert logprobs["text_offset"] == offsets
    rebuilt = "".join(logprobs["tokens"])
    assert rebuilt == choice["text"]


def test_an_echo_is_not_streamed(http: httpx.Client) -> None:
    response = http.post("/v1/completions", json={"prompt": "a", "echo": True, "stream": True})
    assert response.status_code == 400
