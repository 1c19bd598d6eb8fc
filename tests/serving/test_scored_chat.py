"""Log-probabilities of an answer that is there already, under any steering."""

import httpx
import pytest
from serving_server import QUESTION

CHAT = {"messages": [{"role": "user", "content": QUESTION}]}
PATH = "/v1/chat/logprobs"


@pytest.mark.parametrize("phase", ["all", "generated"])
def test_scored_logprobs_are_those_of_the_answer(http: httpx.Client, phase: str) -> None:
    steered = {**CHAT, "control_vectors": [{"name": "dense", "scale": 0.5, "phase": phase}]}
    sampling = {"temperature": 0, "logprobs": True, "top_logprobs": 3, "max_tokens": 40}
    answer = http.post("/v1/chat/completions", json={**steered, **sampling}).json()
    content = answer["choices"][0]["logprobs"]["content"]
    tokens = [entry["id"] for entry in content]
    scored = http.post(PATH, json={**steered, "answer": tokens, "top_logprobs": 3}).json()
    assert scored["steering"] == answer["steering"]
    assert [entry["id"] for entry in scored["content"]] == tokens
    for before, after in zip(content, scored["content"], strict=True):
        assert after["logprob"] == pytest.approx(before["logprob"], abs=1e-3)
        assert next(iter(after["top_logprobs"]))["id"] == after["id"]
    unsteered = http.post(PATH, json={**CHAT, "control_vectors": [], "answer": tokens}).json()
    assert unsteered["steering"] == []
    differences = [
        abs(one["logprob"] - other["logprob"])
        for one, other in zip(scored["content"], unsteered["content"], strict=True)
    ]
    assert max(differences) > 0.1


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"answer": []}, "answer"),
        ({"answer": [10**6]}, "vocabulary"),
        ({"answer": [5] * 2000}, "context"),
        ({"answer": [5], "control_vectors": [{"name": "nobody"}]}, "nobody"),
        ({"answer": [5], "temperature": 0}, "temperature"),
    ],
)
def test_what_cannot_be_scored_is_refused(http: httpx.Client, fields: dict[str, object], named: str) -> None:
    response = http.post(PATH, json={**CHAT, **fields})
    assert response.status_code == 400
    assert named in response.json()["error"]["message"]
