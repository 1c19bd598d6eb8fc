"""The vectors of a running server: to list them, to read them as tokens, to set what requests that say nothing get, and
for an admin to load and unload them. The paths without /v1 are those of ik_llama's server.
"""

from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, Request
from pydantic import RootModel

from edge_steer.core.errors import VectorError
from edge_steer.core.vector import Phase, SteeringVector
from edge_steer.lens.reading import read_vector
from edge_steer.lens.scores import checked_score
from edge_steer.lens.unembedding import read_unembedding
from edge_steer.serving.bodies import Body, LoadVector, UnloadVector, check
from edge_steer.serving.questions import Service, in_thread
from edge_steer.serving.replies import ApiError, Json
from edge_steer.serving.security import read_body
from edge_steer.vectors.named import NamedVector, NamedVectors, Term, read_layers

LENS_TOKENS = 20  # at either end of a layer
LENSES = 32  # that are remembered


class ScaledVector(Body):
    """An entry of ik_llama's /control-vectors/apply, or ours, which has names."""

    id: int | None = None
    name: str | None = None
    scale: float = 1.0
    layers: list[int] | str | None = None
    phase: Phase | None = None


def router(service: Service, *, admin: bool) -> APIRouter:
    """admin: whether vectors may be loaded and unloaded, from files of this machine."""
    api = APIRouter()
    vectors = service.vectors

    @api.get("/v1/control-vectors")
    @api.get("/control-vectors")
    async def listed() -> list[Json]:
        return [_entry(number, served, vectors) for number, served in enumerate(vectors.vectors)]

    @api.get("/v1/control-vectors/{name}/lens")
    async def lens(name: str, score: str = "cosine") -> Json:
        vector = vectors.get(name).vector
        return await in_thread(lambda: _lens(service.engine.vocabulary.path, vector, score))

    @api.post("/v1/control-vectors/apply")
    @api.post("/control-vectors/apply")
    async def apply(request: Request) -> Json:
        scaled = check_list(await read_body(request, service.access))
        vectors.default = vectors.apply(
            Term(_name(one.id, one.name, vectors), one.scale, read_layers(one.layers), one.phase) for one in scaled
        )
        return {"success": True, "steering": [one.json() for one in vectors.default]}

    @api.post("/v1/control-vectors/load")
    @api.post("/control-vectors/load")
    async def load(request: Request) -> Json:
        _need_admin()
        body = await service.read(request, LoadVector)
        served = await in_thread(lambda: vectors.load(body.name, body.path, body.scale))
        return {"success": True, "id": vectors.vectors.index(served), "name": served.name}

    @api.post("/v1/control-vectors/unload")
    @api.post("/control-vectors/unload")
    async def unload(request: Request) -> Json:
        _need_admin()
        body = await service.read(request, UnloadVector)
        vectors.unload(_name(body.id, body.name, vectors))
        return {"success": True}

    def _need_admin() -> None:
        if not admin:
            raise ApiError(501, "this server loads and unloads no vectors; start it with administration on")

    return api


def check_list(raw: bytes) -> list[ScaledVector]:
    """The body of /control-vectors/apply: a list of vectors with scales. Errors: ApiError."""
    return check(_ScaledVectors, raw).root


class _ScaledVectors(RootModel[list[ScaledVector]]):
    """A JSON array."""


@lru_cache(LENSES)
def _lens(model: Path, vector: SteeringVector, score: str) -> Json:
    """A vector read through the unembedding of the model's file, as `edge-steer lens` has it."""
    return read_vector(vector, read_unembedding(model), checked_score(score), top=LENS_TOKENS).to_json()


def _name(number: int | None, name: str | None, vectors: NamedVectors) -> str:
    if name is not None:
        return name
    if number is None or not 0 <= number < len(vectors.vectors):
        there = ", ".join(f"{i} {served.name}" for i, served in enumerate(vectors.vectors)) or "none"
        raise VectorError(f"Invalid control vector id; there are: {there}")
    return vectors.vectors[number].name


def _entry(number: int, served: NamedVector, vectors: NamedVectors) -> Json:
    """A vector as clients list it; `scale` is what requests that say nothing get, `tuned` what its name alone means."""
    steering = served.as_tuned
    applied = [one.steering for one in vectors.default if one.name == served.name]
    layers = served.vector.layers
    return {
        "id": number,
        "name": served.name,
        "path": None,
        "scale": sum(one.strength for one in applied),
        "layer_start": layers[0],
        "layer_end": layers[-1],
        "layers": list(layers),
        "norms": {str(layer): norm for layer, norm in served.vector.norms.items()},
        "model_hint": served.vector.model.architecture,
        "sha256": served.vector.digest,
        "applied": bool(applied),
        "tuned": {"scale": steering.strength, "layers": list(steering.layers or ()), "phase": steering.phase},
    }
