"""Ollama's endpoints, for its clients: chat, generate, and what they ask before. Steering is in `options.steer`.

Answers stream by default, one JSON object a line; durations are nanoseconds.
"""

import importlib.metadata
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from edge_steer.core.backend import Completion, TokenLogprobs, Tokens
from edge_steer.serving.bodies import Body, ChatMessage, Conversation, Generating, Logprobs, Stops, check_fields
from edge_steer.serving.questions import Question, Service
from edge_steer.serving.replies import BEGUN, ApiError, Json, chat_logprobs, line_stream, while_connected
from edge_steer.serving.worker import Prefilled

MANY = timedelta(days=365)  # until when a model stays loaded: as long as the server


class Options(Body):
    """What Ollama calls options, with its names, and ours for steering."""

    harmless = frozenset(
        {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "numa", "num_keep",
         "low_vram", "penalize_newline"}
    )  # fmt: skip
    unsupported = {"tfs_z": (1, 1.0), "vocab_only": (False,)}  # noqa: RUF012
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    seed: int | None = None
    num_predict: int | None = Field(default=None, ge=-2)
    stop: Stops | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    mirostat: Literal[0, 1, 2] | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    control_vectors: list[dict[str, Any]] | None = None
    steer: str | None = None

    def generating(self, model: str) -> Json:
        """The same as fields of our own body."""
        fields = self.model_dump(exclude_none=True)
        if "num_predict" in fields:
            fields["max_tokens"] = max(-1, fields.pop("num_predict"))
        if "steer" in fields:
            fields["steering"] = fields.pop("steer")
        return {**fields, "model": model.removesuffix(":latest")}


class Asking(Body):
    harmless = frozenset({"keep_alive", "template", "truncate", "shift"})
    unsupported: ClassVar[dict[str, tuple[object, ...]]] = {"tools": ([],), "images": ([],), "raw": (False,)}
    model: str = ""
    stream: bool = True
    options: Options = Field(default_factory=lambda: Options())
    format: Literal["json", ""] | dict[str, Any] = ""
    think: bool | str | None = None
    logprobs: bool = False
    top_logprobs: Logprobs = 0

    @property
    def schema_demanded(self) -> dict[str, Any] | None:
        if isinstance(self.format, dict):
            return self.format
        return {"type": "object"} if self.format == "json" else None

    @property
    def variables(self) -> dict[str, Any]:
        return {} if self.think is None else {"enable_thinking": bool(self.think)}


class OllamaChat(Asking):
    """POST /api/chat."""

    messages: list[ChatMessage] = Field(default_factory=list)


class OllamaGenerate(Asking):
    """POST /api/generate."""

    unsupported: ClassVar[dict[str, tuple[object, ...]]] = {
        "images": ([],),
        "suffix": ("",),
        "context": ([],),
    }
    prompt: str = ""
    system: str = ""
    raw: bool = False


class OllamaName(Body):
    harmless = frozenset({"verbose", "options", "system", "template"})
    model: str = ""
    name: str = ""


def router(service: Service) -> APIRouter:
    api = APIRouter(prefix="/api")

    @api.post("/chat")
    async def chat(request: Request) -> Response:
        body = await service.read(request, OllamaChat)
        if not body.messages:
            return JSONResponse(_loaded(body.model, {"message": {"role": "assistant", "content": ""}}))
        return await answer(request, body, await tokens(body, body.messages), "message")

    @api.post("/generate")
    async def generate(request: Request) -> Response:
        body = await service.read(request, OllamaGenerate)
        if not body.prompt:
            return JSONResponse(_loaded(body.model, {"response": ""}))
        if body.raw:
            return await answer(request, body, (await service.prompts(body.prompt))[0], "response")
        messages = [ChatMessage(role="system", content=body.system)] if body.system else []
        messages.append(ChatMessage(role="user", content=body.prompt))
        return await answer(request, body, await tokens(body, messages), "response")

    async def tokens(body: Asking, messages: list[ChatMessage]) -> Tokens:
        conversation = Conversation(messages=messages, chat_template_kwargs=body.variables)
        return await service.chat_tokens(conversation)

    async def answer(request: Request, body: Asking, prompt: Tokens, field: str) -> Response:
        generating = check_fields(Generating, body.options.generating(body.model))
        logprobs = body.top_logprobs if body.logprobs else None
        question = await service.question(generating, [prompt], logprobs=logprobs, schema=body.schema_demanded)
        chunks = _chunks(service, question, body.model, field)
        if body.stream:
            return line_stream(request, chunks)
        return JSONResponse(await while_connected(request, _whole(service, question, body.model, field)))

    @api.get("/tags")
    async def tags() -> Json:
        return {"models": [_entry(service, name) for name in service.models]}

    @api.get("/ps")
    async def ps() -> Json:
        expires = {"expires_at": _stamp(datetime.now(UTC) + MANY), "size_vram": 0}
        return {"models": [{**_entry(service, service.names[0]), **expires}]}

    @api.post("/show")
    async def show(request: Request) -> Json:
        body = await service.read(request, OllamaName)
        name = (body.model or body.name).removesuffix(":latest")
        preset = service.preset(name)
        applied = service.vectors.default if preset is None else service.vectors.presets[preset]
        identity = service.engine.model
        return {
            "template": service.engine.vocabulary.template,
            "capabilities": ["completion"],
            "details": _details(service),
            "model_info": {
                "general.architecture": identity.architecture,
                "general.name": identity.name,
                f"{identity.architecture}.block_count": identity.block_count,
                f"{identity.architecture}.embedding_length": identity.hidden_size,
                f"{identity.architecture}.context_length": service.engine.context,
            },
            "steering": [one.json() for one in applied],
        }

    @api.get("/version")
    async def version() -> Json:
        return {"version": importlib.metadata.version("edge-steer")}

    @api.api_route("/{other:path}", methods=["GET", "POST", "PUT", "DELETE"])
    async def not_here(other: str) -> Response:
        raise ApiError(501, f"/api/{other[:60]} is not supported by this server")

    return api


async def _chunks(service: Service, question: Question, model: str, field: str) -> AsyncIterator[Json]:
    started = time.perf_counter_ns()
    async for _, event in service.events(question, streams=True):
        if isinstance(event, Completion):
            yield _last(event, question, model, _text(field, ""), started)
        elif isinstance(event, Prefilled):
            yield BEGUN
        elif event.text or event.logprobs:
            logprobs = _logprobs(service, [event.logprobs] if event.logprobs else [])
            yield {**_head(model), **_text(field, event.text), "done": False, **logprobs}


async def _whole(service: Service, question: Question, model: str, field: str) -> Json:
    started = time.perf_counter_ns()
    [completion] = await service.completions(question)
    last = _last(completion, question, model, _text(field, completion.text), started)
    return {**last, **_logprobs(service, list(completion.logprobs))}


def _last(completion: Completion, question: Question, model: str, text: Json, started: int) -> Json:
    timings = completion.timings
    return {
        **_head(model),
        **text,
        "done": True,
        "done_reason": completion.finish,
        "total_duration": time.perf_counter_ns() - started,
        "load_duration": 0,
        "prompt_eval_count": question.prompt_tokens,
        "prompt_eval_duration": int(1e9 * timings.prompt),
        "eval_count": len(completion.tokens),
        "eval_duration": int(1e9 * timings.generation),
        **question.in_force,
    }


def _loaded(model: str, text: Json) -> Json:
    """What Ollama answers to a request without a prompt, by which clients load a model."""
    return {**_head(model), **text, "done": True, "done_reason": "load"}


def _head(model: str) -> Json:
    return {"model": model, "created_at": _stamp(datetime.now(UTC))}


def _text(field: str, text: str) -> Json:
    return {"message": {"role": "assistant", "content": text}} if field == "message" else {"response": text}


def _logprobs(service: Service, logprobs: list[TokenLogprobs]) -> Json:
    return {"logprobs": chat_logprobs(logprobs, service.engine.vocabulary.piece)} if logprobs else {}


def _entry(service: Service, name: str) -> Json:
    modified = _stamp(datetime.fromtimestamp(service.metrics.started, UTC))
    return {"name": name, "model": name, "modified_at": modified, "size": 0, "digest": "", "details": _details(service)}


def _details(service: Service) -> Json:
    family = service.engine.model.architecture or ""
    return {"parent_model": "", "format": "gguf", "family": family, "families": [family], "parameter_size": "",
            "quantization_level": ""}  # fmt: skip


def _stamp(when: datetime) -> str:
    return when.isoformat(timespec="microseconds").replace("+00:00", "Z")
