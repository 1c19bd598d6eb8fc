"""llama-server's own endpoints: completion, tokens, templates, health, properties, slots, metrics."""

from collections.abc import AsyncIterator, Sequence

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from pydantic import RootModel

from edge_steer.adapters.choice import listed
from edge_steer.core.backend import Completion, Piece, Request, TokenLogprobs
from edge_steer.serving.bodies import (
    DetokenizeBody,
    Generating,
    NativeBody,
    ScaledLora,
    Steered,
    TemplateBody,
    TokenizeBody,
    check,
)
from edge_steer.serving.metrics import CONTENT_TYPE
from edge_steer.serving.questions import Question, Service, in_thread, schema_of
from edge_steer.serving.replies import (
    BEGUN,
    NOTHING,
    ApiError,
    Json,
    StreamClock,
    Throughput,
    chat_logprobs,
    event_stream,
    while_connected,
)
from edge_steer.serving.security import read_body
from edge_steer.serving.worker import Prefilled


class _ScaledLoras(RootModel[list[ScaledLora]]):
    """A JSON array; an adapter that is left out has a scale of 0."""


def router(service: Service, *, slots: bool = True, metrics: bool = True) -> APIRouter:
    api = APIRouter()

    @api.get("/health")
    @api.get("/v1/health")
    async def health() -> Json:
        if service.worker.broken:
            raise ApiError(503, f"the engine has stopped working: {service.worker.broken}")
        return {"status": "ok"}

    @api.post("/completion")
    @api.post("/completions")
    async def completion(request: HttpRequest) -> Response:
        body = await service.read(request, NativeBody)
        if body.n > 1:
            raise ApiError(400, "'n' is for /v1/completions; give several prompts here")
        prompts = await service.prompts(body.prompt)
        question = await service.question(body, prompts, logprobs=body.n_probs or None, schema=schema_of(body))
        reply = NativeReply(service, question, body)
        if body.stream:
            return event_stream(request, reply.stream(), done=False)
        whole = reply.whole(await while_connected(request, service.completions(question)))
        return JSONResponse(whole[0] if len(whole) == 1 else whole)

    @api.post("/tokenize")
    async def tokenize(request: HttpRequest) -> Json:
        body = await service.read(request, TokenizeBody)
        tokens = await in_thread(lambda: service.engine.encode(body.content, start=body.add_special), len(body.content))
        if not body.with_pieces:
            return {"tokens": list(tokens)}
        return {"tokens": [{"id": token, "piece": _piece(service.engine.vocabulary.piece(token))} for token in tokens]}

    @api.post("/detokenize")
    async def detokenize(request: HttpRequest) -> Json:
        body = await service.read(request, DetokenizeBody)
        if body.tokens:
            service.check_tokens(body.tokens)
        return {"content": service.engine.decode(body.tokens)}

    @api.post("/apply-template")
    async def apply_template(request: HttpRequest) -> Json:
        return {"prompt": await service.chat_prompt(await service.read(request, TemplateBody))}

    @api.get("/props")
    async def props() -> Json:
        return {**_props(service), "endpoint_slots": slots, "endpoint_metrics": metrics}

    @api.post("/props")
    async def set_props() -> Response:
        raise ApiError(501, "this server's properties are set when it starts")

    @api.get("/slots")
    async def list_slots(fail_on_no_slot: bool = False) -> list[Json]:
        if not slots:
            raise ApiError(501, "this server was started without its list of slots")
        listed = _slots(service)
        if fail_on_no_slot and all(slot["is_processing"] for slot in listed):
            raise ApiError(503, "no slot is free")
        return listed

    @api.get("/metrics")
    async def scrape() -> Response:
        if not metrics:
            raise ApiError(501, "this server was started without metrics")
        response = Response(service.metrics.text(service.worker, service.engine.parallel), media_type=CONTENT_TYPE)
        started = str(int(service.metrics.started)).encode()
        response.raw_headers.append((b"Process-Start-Time-Unix", started))  # its readers mind the capitals
        return response

    @api.get("/lora-adapters")
    async def lora() -> list[Json]:
        return listed(service.loras.default)

    @api.post("/lora-adapters")
    async def set_lora(request: HttpRequest) -> Json:
        scaled = check(_ScaledLoras, await read_body(request, service.access)).root
        service.loras.default = service.loras.scaled((one.id, one.scale) for one in scaled)
        return {"success": True}

    return api


def _piece(raw: bytes) -> str | list[int]:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


def _props(service: Service) -> Json:
    engine = service.engine
    return {
        "default_generation_settings": {
            "params": _settings(service.with_defaults(NativeBody(prompt=""))),
            "n_ctx": engine.context,
        },
        "total_slots": engine.parallel,
        "model_alias": service.names[0],
        "model_path": service.file.path.name,
        "model_ftype": service.file.quant,
        "modalities": {"vision": False, "audio": False},
        "endpoint_props": False,
        "chat_template": engine.vocabulary.template,
        "build_info": "edge-steer",
        "control_vectors": [served.name for served in service.vectors.vectors],
        "presets": list(service.vectors.presets),
        "is_sleeping": False,
    }


def _settings(body: Generating) -> Json:
    """The sampling fields of a body, as a request would give them."""
    fields = body.model_dump(mode="json", include=set(Generating.model_fields) - set(Steered.model_fields))
    return {**fields, "n_predict": body.max_tokens}


def _slots(service: Service) -> list[Json]:
    live = service.worker.live
    return [
        {
            "id": slot,
            "n_ctx": service.engine.context,
            "speculative": False,
            "is_processing": slot < len(live),
            **(
                {
                    "n_prompt_tokens": len(live[slot].request.prompt),
                    "steered": bool(live[slot].request.steering),
                    "next_token": [{"has_next_token": True, "n_decoded": live[slot].generated}],
                }
                if slot < len(live)
                else {}
            ),
        }
        for slot in range(service.engine.parallel)
    ]


class NativeReply:
    """The answer to POST /completion."""

    def __init__(self, service: Service, question: Question, body: Generating) -> None:
        self._service, self._question, self._body = service, question, body

    def whole(self, completions: Sequence[Completion]) -> list[Json]:
        return [self.last(index, completion, completion.text) for index, completion in enumerate(completions)]

    async def stream(self) -> AsyncIterator[Json]:
        clocks = [StreamClock(len(request.prompt)) for request in self._question.requests]
        decoded = [0] * len(clocks)
        async for index, event in self._service.events(self._question, streams=True):
            if isinstance(event, Completion):
                yield self.last(index, event, "")
                continue
            extra: Json = {}
            if isinstance(event, Prefilled) and not self._question.progress:
                yield BEGUN
                continue
            if isinstance(event, Prefilled):
                extra["prompt_progress"] = clocks[index].prefilled(event.tokens)
            elif event.text or event.logprobs:
                clocks[index].take()
                decoded[index] += 1
            else:
                continue
            if self._body.timings_per_token:
                extra["timings"] = clocks[index].timings()
            piece = NOTHING if isinstance(event, Prefilled) else event
            yield {**self._partial(index, piece, decoded[index]), **extra}

    def _partial(self, index: int, piece: Piece, decoded: int) -> Json:
        return {
            "index": index,
            "content": piece.text,
            "tokens": [] if piece.token is None else [piece.token],
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": decoded,
            "tokens_evaluated": len(self._question.requests[index].prompt),
            **self._probabilities([piece.logprobs] if piece.logprobs else []),
        }

    def last(self, index: int, completion: Completion, content: str) -> Json:
        """All of an answer but what `content` leaves out: the text that was streamed already."""
        request = self._question.requests[index]
        stopping = self._stopping_word(completion)
        answer: Json = {
            "index": index,
            "content": content,
            "tokens": list(completion.tokens) if content else [],
            "id_slot": -1,
            "stop": True,
            "model": self._question.model,
            "tokens_predicted": len(completion.tokens),
            "tokens_evaluated": len(request.prompt),
            "generation_settings": {**_settings(self._body), **self._in_force(index)},
            "prompt": self._service.engine.decode(request.prompt),
            "has_new_line": "\n" in completion.text,
            "truncated": self._is_truncated(request, completion),
            "stop_type": "limit" if completion.finish == "length" else "word" if stopping else "eos",
            "stopping_word": stopping,
            "tokens_cached": len(request.prompt) + len(completion.tokens),
            "timings": Throughput.of(len(request.prompt), completion).json(),
            **self._question.in_force,
            **self._probabilities(completion.logprobs if content else []),
        }
        fields = self._body.response_fields if isinstance(self._body, NativeBody) else None
        return _only(answer, fields) if fields else answer

    def _is_truncated(self, request: Request, completion: Completion) -> bool:
        """Whether the context ended the answer before the client's own limit."""
        limit = self._body.max_tokens
        return completion.finish == "length" and (limit < 0 or request.max_tokens < limit)

    def _in_force(self, index: int) -> Json:
        sampling = self._question.requests[index].sampling
        biases = [{"token": token, "bias": bias if bias > -1e30 else None} for token, bias in sampling.logit_bias]
        return {"seed": sampling.seed, "logit_bias": biases, "n_ctx": self._service.engine.context}

    def _stopping_word(self, completion: Completion) -> str:
        """The stop string that the tokens go on with where the text ends."""
        if completion.finish != "stop":
            return ""
        rest = self._service.engine.decode(completion.tokens)[len(completion.text) :]
        return max((stop for stop in self._body.stop if rest.startswith(stop)), key=len, default="")

    def _probabilities(self, logprobs: Sequence[TokenLogprobs]) -> Json:
        if not logprobs:
            return {}
        return {"completion_probabilities": chat_logprobs(logprobs, self._service.engine.vocabulary.piece)}


def _only(answer: Json, fields: Sequence[str]) -> Json:
    """These fields of an answer, each by its name; "a/b" is field b of a, as llama-server has it."""
    chosen: Json = {}
    for name in fields:
        value: object = answer
        for part in name.split("/"):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            chosen[name] = value
    return chosen
