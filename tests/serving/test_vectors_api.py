"""The vectors of a running server: listed, applied by default, loaded and unloaded."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from paths import ABACUS, DENSE
from serving_server import KEY, QUESTION, Start

from edge_steer.lens.reading import read_vector
from edge_steer.lens.unembedding import read_unembedding
from edge_steer.vectors.read import load

BODY = {"prompt": QUESTION, "temperature": 0, "n_predict": 12}


def test_vectors_are_listed_with_digests_and_never_paths(http: httpx.Client) -> None:
    listed = http.get("/v1/control-vectors").json()
    assert listed == http.get("/control-vectors").json()
    dense = listed[0]
    vector = load(DENSE)
    assert (dense["id"], dense["name"], dense["sha256"]) == (0, "dense", vector.digest)
    assert dense["layers"] == list(vector.layers)
    assert (dense["scale"], dense["applied"], dense["path"]) == (0, False, None)
    assert vector.tuning
    assert dense["tuned"]["scale"] == vector.tuning.strength


def test_the_default_is_set_for_requests_that_say_nothing(start: Start) -> None:
    with start("--vector", f"dense={DENSE}").client as http:

        def steering(**fields: object) -> Any:
            return http.post("/completion", json={**BODY, **fields}).json()["steering"]

        assert [one["scale"] for one in steering()] == [0.325]
        applied = http.post("/control-vectors/apply", json=[{"id": 0, "scale": 3.0}])
        assert applied.json()["success"]
        assert [one["scale"] for one in steering()] == [3.0]
        assert steering(control_vectors=[]) == []
        assert http.get("/control-vectors").json()[0]["scale"] == 3.0
        refused = http.post("/control-vectors/apply", json=[{"id": 7, "scale": 1}])
        assert refused.status_code == 400
        assert "0 dense" in refused.json()["error"]["message"]
        assert [one["scale"] for one in steering()] == [3.0]
        http.post("/v1/control-vectors/apply", json=[{"name": "dense", "scale": 1, "phase": "generated"}])
        assert [one["phase"] for one in steering()] == ["generated"]
        http.post("/control-vectors/apply", json=[])
        assert steering() == []


def test_loading_needs_administration(http: httpx.Client, bundled_vector_gguf: Path) -> None:
    body = {"name": "more", "path": str(bundled_vector_gguf)}
    assert http.post("/v1/control-vectors/load", json=body).status_code == 501
    assert http.post("/v1/control-vectors/unload", json={"name": "dense"}).status_code == 501


def test_an_admin_loads_and_unloads(start: Start, bundled_vector_gguf: Path) -> None:
    server = start("--admin", "--api-key", KEY)
    with server.client as http:
        body = {"name": "more", "path": str(bundled_vector_gguf)}
        assert http.post("/v1/control-vectors/load", json=body).status_code == 401
        http.headers["Authorization"] = f"Bearer {KEY}"
        assert http.post("/v1/control-vectors/load", json={**body, "path": "/etc/passwd"}).status_code == 400
        assert http.post("/v1/control-vectors/load", json=body).json()["success"]
        steered = http.post("/completion", json={**BODY, "steering": "1 more"}).json()
        assert steered["steering"][0]["name"] == "more"
        assert http.post("/v1/control-vectors/load", json=body).status_code == 400
        assert http.post("/v1/control-vectors/unload", json={"name": "more"}).json()["success"]
        assert http.post("/completion", json={**BODY, "steering": "1 more"}).status_code == 400


def alike(served: Any, computed: Any) -> bool:
    """Equal but for the rounding of numbers, which depends on how many threads add them up."""
    if isinstance(computed, dict):
        return served.keys() == computed.keys() and all(alike(served[name], computed[name]) for name in computed)
    if isinstance(computed, list):
        return len(served) == len(computed) and all(map(alike, served, computed))
    return bool(served == (pytest.approx(computed, abs=1e-6) if isinstance(computed, float) else computed))


def test_a_vector_in_use_is_read_as_tokens(http: httpx.Client) -> None:
    reading = http.get("/v1/control-vectors/dense/lens").json()
    expected = read_vector(load(DENSE), read_unembedding(ABACUS / "abacus-F16.gguf"), top=20)
    assert alike(reading, json.loads(json.dumps(expected.to_json())))
    assert http.get("/v1/control-vectors/dense/lens?score=norm-gain").json()["score"] == "norm-gain"
    for path, words in {"nobody/lens": "no vector 'nobody'", "dense/lens?score=dot": "no score 'dot'"}.items():
        refused = http.get(f"/v1/control-vectors/{path}")
        assert refused.status_code == 400
        assert words in refused.json()["error"]["message"]
