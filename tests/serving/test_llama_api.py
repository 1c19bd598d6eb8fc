"""llama-server's own endpoints on a running server."""

import json
import re
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving_server import QUESTION, Json, Server

from edge_steer.core.backend import Request
from edge_steer.llama.engine import Engine

ASK: Json = {"prompt": QUESTION, "temperature": 0, "n_predict": 12}


def complete(http: httpx.Client, **fields: object) -> Any:
    response = http.post("/completion", json={**ASK, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def test_a_completion_is_the_engines(http: httpx.Client, engine: Engine) -> None:
    answer = complete(http)
    [alone] = engine.generate([Request(engine.encode(QUESTION), 12)])
    assert answer["content"] == alone.text
    assert answer["tokens"] == list(alone.tokens)
    assert (answer["stop"], answer["stop_type"], answer["tokens_predicted"]) == (True, "limit", 12)
    assert answer["timings"]["predicted_n"] == 12


def test_a_stream_is_the_same_and_has_no_done(http: httpx.Client) -> None:
    whole = complete(http)
    with http.stream("POST", "/completion", json={**ASK, "stream": True}) as response:
        chunks = [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line]
    assert "".join(chunk["content"] for chunk in chunks) == whole["content"]
    assert [token for chunk in chunks for token in chunk["tokens"]] == whole["tokens"]
    assert [chunk["stop"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["steering"] == []


def test_several_prompts_are_a_list(http: httpx.Client) -> None:
    answers = complete(http, prompt=[QUESTION, "1 + 1", [5, 6]])
    assert [answer["index"] for answer in answers] == [0, 1, 2]
    assert answers[0]["content"] == complete(http)["content"]


def test_a_stop_word_is_named(http: httpx.Client) -> None:
    word = complete(http)["content"].split()[2]
    answer = complete(http, stop=[word, "never said"])
    assert (answer["stop_type"], answer["stopping_word"]) == ("word", word)


def test_probabilities_are_of_the_chosen_tokens(http: httpx.Client) -> None:
    answer = complete(http, n_probs=2)
    assert [entry["id"] for entry in answer["completion_probabilities"]] == answer["tokens"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in answer["completion_probabilities"])


def test_response_fields_choose_what_comes_back(http: httpx.Client) -> None:
    assert set(complete(http, response_fields=["content", "timings/predicted_n"])) == {
        "content",
        "timings/predicted_n",
    }


def test_ignoring_the_end_goes_on_to_the_limit(http: httpx.Client, engine: Engine) -> None:
    prompt = engine.chat([{"role": "user", "content": QUESTION}])
    free = complete(http, prompt=prompt, n_predict=200)
    assert free["stop_type"] == "eos"
    on = complete(http, prompt=prompt, n_predict=200, ignore_eos=True)
    assert on["tokens_predicted"] == 200
    assert on["generation_settings"]["logit_bias"]


@pytest.mark.parametrize(
    "setting",
    [
        {"top_k": 1},
        {"typical_p": 0.1},
        {"top_n_sigma": 0.1},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01},
        {"dry_multiplier": 8.0, "dry_allowed_length": 0},
        {"mirostat": 1, "mirostat_tau": 0.5},
        {"mirostat": 2, "mirostat_tau": 0.5},
        {"dynatemp_range": 1.5},
        {"repeat_penalty": 3.0},
        {"frequency_penalty": 2.0},
        {"samplers": ["top_k"], "top_k": 1},
    ],
)
def test_every_sampling_field_reaches_the_chain(http: httpx.Client, setting: Json) -> None:
    warm = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "n_predict": 30}
    changed = [complete(http, **{**warm, "seed": seed, **setting})["content"] for seed in range(4)]
    assert changed != [complete(http, **warm, seed=seed)["content"] for seed in range(4)]
    assert changed == [complete(http, **{**warm, "seed": seed, **setting})["content"] for seed in range(4)]


def test_a_seed_nobody_gave_is_told(http: httpx.Client) -> None:
    first = complete(http, temperature=2.0)
    seed = first["generation_settings"]["seed"]
    assert complete(http, temperature=2.0, seed=seed)["content"] == first["content"]


def test_tokens_there_and_back(http: httpx.Client, engine: Engine) -> None:
    tokens = http.post("/tokenize", json={"content": QUESTION}).json()["tokens"]
    assert tokens == list(engine.encode(QUESTION, start=False))
    assert http.post("/detokenize", json={"tokens": tokens}).json() == {"content": QUESTION}
    pieces = http.post("/tokenize", json={"content": "\N{GRINNING FACE}", "with_pieces": True}).json()["tokens"]
    raw = b"".join(p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces)
    assert raw.decode() == "\N{GRINNING FACE}"


def test_tokens_that_are_not_there_are_refused(http: httpx.Client) -> None:
    for tokens in ([10**6], [-1], [2**70]):
        assert http.post("/detokenize", json={"tokens": tokens}).status_code == 400
        assert http.post("/completion", json={"prompt": tokens}).status_code == 400


def test_the_template_as_text(http: httpx.Client, engine: Engine) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    prompt = http.post("/apply-template", json={"messages": messages}).json()["prompt"]
    assert engine.encode(prompt, start=False) == engine.chat([{"role": "user", "content": QUESTION}])


def test_health_properties_and_slots(http: httpx.Client) -> None:
    assert http.get("/health").json() == http.get("/v1/health").json() == {"status": "ok"}
    props = http.get("/props").json()
    assert props["total_slots"] == 4
    assert props["default_generation_settings"]["n_ctx"] == 1024
    assert props["default_generation_settings"]["params"]["top_k"] == 40
    assert http.post("/props", json={}).status_code == 501
    slots = http.get("/slots").json()
    assert [slot["is_processing"] for slot in slots] == [False] * 4


def test_metrics_count_what_was_done(http: httpx.Client) -> None:
    def counted() -> dict[str, float]:
        families = text_string_to_metric_families(http.get("/metrics").text)
        return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}

    before = counted()
    complete(http, steering="1 dense")
    after = counted()
    assert after["llamacpp:tokens_predicted_total"] - before["llamacpp:tokens_predicted_total"] == 12
    assert after["edge_steer:requests_steered_total"] - before["edge_steer:requests_steered_total"] == 1
    assert after["llamacpp:requests_processing"] == 0
    assert http.get("/metrics").headers["process-start-time-unix"].isdigit()


def test_metrics_have_llama_servers_names(http: httpx.Client) -> None:
    complete(http)
    response = http.get("/metrics")
    assert b"Process-Start-Time-Unix" in [name for name, _ in response.headers.raw]
    kinds = dict(re.findall(r"# TYPE llamacpp:(\w+) (\w+)", response.text))
    assert {kinds[name] for name in ("n_decode_total", "n_tokens_max", "prompt_tokens_cached_total")} == {"counter"}
    rates = ("prompt_tokens_seconds", "predicted_tokens_seconds", "n_busy_slots_per_decode")
    assert {kinds[name] for name in rates} == {"gauge"}
    figures = {name: float(value) for name, value in re.findall(r"^llamacpp:(\w+) (\S+)$", response.text, re.MULTILINE)}
    assert 1 <= figures["n_busy_slots_per_decode"] <= 4
    assert all(figures[name] > 0 for name in (*rates, "n_decode_total", "n_tokens_max"))


def streamed(http: httpx.Client, path: str, **fields: object) -> list[Json]:
    with http.stream("POST", path, json={"temperature": 0, "stream": True, **fields}) as response:
        assert response.status_code == 200, response.read()
        return [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]


@pytest.mark.parametrize("path", ["/completion", "/v1/completions"])
def test_a_long_prompt_tells_its_progress(http: httpx.Client, engine: Engine, path: str) -> None:
    prompt = path + " Every apple of the basket is red." * 45
    total = len(engine.encode(prompt))
    for cached in (False, True):
        chunks = streamed(http, path, prompt=prompt, n_predict=4, return_progress=True, timings_per_token=True)
        reports = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
        assert {report["total"] for report in reports} == {total}
        assert reports[0]["cache"] == reports[0]["processed"]
        assert (reports[0]["cache"] > 100) == cached
        processed = [report["processed"] for report in reports]
        assert processed == sorted(set(processed))
        assert processed[-1] == total
        assert (len(reports) > 2) != cached
        assert chunks[0]["timings"]["prompt_n"] == 0
        timings = [chunk["timings"] for chunk in chunks]
        assert timings[-1]["predicted_n"] == 4
        assert timings[-1]["prompt_n"] + timings[-1]["cache_n"] == total


def test_a_request_can_leave_the_cache_alone(http: httpx.Client) -> None:
    prompt = f"{QUESTION} Say it in words, and say what was asked."
    cached = [
        complete(http, prompt=prompt, cache_prompt=wanted)["timings"]["cache_n"] for wanted in (True, False, True)
    ]
    assert cached[1] == 0
    assert cached[2] > 16


def test_a_verbose_answer_has_its_prompt_as_text(http: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 3, "verbose": True}
    whole = http.post("/v1/chat/completions", json=body).json()
    assert QUESTION in whole["__verbose"]["prompt"]
    assert whole["__verbose"]["content"] == whole["choices"][0]["message"]["content"]
    assert whole["__verbose"]["generation_settings"]["n_predict"] == 3
    assert "__verbose" in streamed(http, "/v1/chat/completions", **body)[-1]
    assert "__verbose" not in http.post("/v1/chat/completions", json={**body, "verbose": False}).json()


def test_an_answer_that_the_context_ends_is_truncated(http: httpx.Client) -> None:
    assert complete(http, prompt=[5] * 1020, n_predict=-1, ignore_eos=True)["truncated"] is True
    assert complete(http, prompt=[5] * 1010, n_predict=4, ignore_eos=True)["truncated"] is False


def busy(http: httpx.Client) -> bool:
    """Whether a sequence still runs after some time."""
    return all(any(slot["is_processing"] for slot in http.get("/slots").json()) for _ in range(50))


def test_a_client_that_goes_away_frees_its_sequence(server: Server) -> None:
    endless = {**ASK, "prompt": [QUESTION] * 8, "n_predict": 950, "ignore_eos": True}
    with server.client as other:
        with server.client as http, http.stream("POST", "/completion", json={**endless, "stream": True}) as response:
            lines = response.iter_lines()  # kept, as its end would close the response
            next(lines)
            assert any(slot["is_processing"] for slot in other.get("/slots").json())
        assert not busy(other)
        with server.client as http, pytest.raises(httpx.TimeoutException):
            http.post("/completion", json=endless, timeout=0.05)
        assert not busy(other)


@pytest.mark.parametrize("path", ["//v1//models", "/v1/models/", "//health"])
def test_doubled_and_trailing_slashes_are_one(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 200


def test_what_is_not_there_is_an_envelope(http: httpx.Client) -> None:
    for response in (http.get("/nothing"), http.get("/page/../../setup.cfg"), http.get("/page/nothing.js")):
        assert response.status_code == 404
        assert response.json()["error"]["type"] == "not_found_error"
    response = http.get("/v1/chat/completions")
    assert (response.status_code, response.json()["error"]["code"]) == (405, 405)
    assert http.get("/docs").status_code == http.get("/openapi.json").status_code == 404


def test_no_answer_waits_for_the_network(http: httpx.Client) -> None:
    """A server whose second write waits for the client's acknowledgement takes 40 ms for each answer."""
    assert min(http.get("/health").elapsed.total_seconds() for _ in range(20)) < 0.03
