"""The server: the application, its life from bound socket to last answer, and what goes wrong as an error envelope.

Takes a MODEL's running engine and vectors; serves until it is told to end. It loads no torch.
"""

import logging
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError, ModelError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.vector import ModelIdentity
from edge_steer.models.file import ModelFile
from edge_steer.models.load import load
from edge_steer.models.quantize import gguf_for
from edge_steer.serving import llama_api, ollama_api, openai_api, vectors_api
from edge_steer.serving.loading import refusing_while_loading
from edge_steer.serving.questions import Service
from edge_steer.serving.replies import ApiError
from edge_steer.serving.security import Access, Gate, check_binding
from edge_steer.vectors.named import NamedFile, NamedVectors

TELEMETRY_OFF: TelemetryConfig = {"tracing": False, "metrics": False}
CONTEXT = 4096  # positions of a sequence where nothing else is said: memory is taken for all sequences at the start
LARGEST_HEAD = 2**16  # bytes of a request's line and headers
BACKLOG = 2048
SWITCH_SECONDS = 1e-4  # after which the event loop lets the engine's thread go on; Python's 5 ms are a token's time
PAGE = Path(__file__).parent / "page"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerOptions:
    """How a server listens and what it has. queue: how many requests may wait besides those that run.

    aliases: what clients call the model. presets: name -> steering in words. defaults: fields of requests that say
    nothing, as {"temperature": 0.2}. no_auth: listen to others without a key.
    admin: vectors can be loaded and unloaded while it runs, which needs a key. page: the page at /. slots: who asks may
    see how busy each sequence is. metrics: and how much was done so far. stop_seconds: how long running answers may go
    on when it is told to end.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    access: Access = field(default_factory=Access)
    vectors: tuple[NamedFile, ...] = ()
    defaults: Mapping[str, float] = field(default_factory=dict)
    presets: tuple[tuple[str, str], ...] = ()
    aliases: tuple[str, ...] = ()
    queue: int = 256
    no_auth: bool = False
    admin: bool = False
    page: bool = True
    slots: bool = True
    metrics: bool = True
    stop_seconds: int = 30


DEFAULTS = ServerOptions()
ENGINE_DEFAULTS = EngineOptions()


def serve(
    model: str | Path,
    quant: str | None = None,
    *,
    options: ServerOptions = DEFAULTS,
    engine: EngineOptions = ENGINE_DEFAULTS,
    progress: Progress = SILENT,
) -> None:
    """Load a model and serve it until SIGTERM or SIGINT; running answers end first.

    engine: its context is that of each of its sequences, whose memory is taken at the start; its adapters are those
    that requests choose from, and get, all of them, where they choose none.

    Errors: EdgeSteerError for a port in use, a vector that does not fit, a host others reach without a key.
    """
    check_binding(options.host, options.access.keys, no_auth=options.no_auth)
    if options.admin and not options.access.keys:
        raise EdgeSteerError("loading vectors while the server runs needs a key; set one")
    logging.getLogger("asyncio").addFilter(is_no_client_that_left)
    with _bound(options) as listening, ExitStack() as running:
        running.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(SWITCH_SECONDS)
        with refusing_while_loading(listening):
            service = running.enter_context(_loaded(model, quant, options, engine, progress))
        progress.note(announcement(service, listening.getsockname()))
        uvicorn.Server(_config(service, options)).run(sockets=[listening])


@contextmanager
def _loaded(
    model: str | Path, quant: str | None, options: ServerOptions, engine: EngineOptions, progress: Progress
) -> Iterator[Service]:
    path = gguf_for(model, quant, threads=engine.threads, progress=progress)
    context = engine.context or min(ModelFile(path).trained_context or CONTEXT, CONTEXT)
    loras = (*((engine.lora,) if engine.lora else ()), *engine.loras)
    with load(path, options=replace(engine, context=context, keep_cache=True, lora=None, loras=loras)) as loaded:
        loaded.reserve()
        vectors = served_vectors(loaded.model, options)
        names = options.aliases or (loaded.model.name,)
        yield Service(
            loaded, vectors, names, options.access, queue=options.queue, defaults=options.defaults, loras=loras
        )


def served_vectors(model: ModelIdentity, options: ServerOptions) -> NamedVectors:
    """The vectors and presets of a start; all vectors together steer the requests that say nothing.

    Errors: VectorError.
    """
    vectors = NamedVectors.of(options.vectors, model)
    for name, words in options.presets:
        vectors.add_preset(name, words)
    return vectors


def announcement(service: Service, address: Sequence[object]) -> str:
    """What a started server says: where it is, and what steers a request that says nothing."""
    host, port = address[0], address[1]
    steering = ", ".join(
        f"{one.steering.strength:g} {one.name} at layers {list(one.steering.layers or ())}, phase {one.steering.phase}"
        for one in service.vectors.default
    )
    shown = f"[{host}]" if ":" in str(host) else host
    return f"serving {service.names[0]} at http://{shown}:{port}; steered by: {steering or 'nothing'}"


def application(service: Service, options: ServerOptions) -> Gate:
    """The ASGI application of a service, whose worker it starts and stops."""

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.worker.stop()

    app = FastAPI(lifespan=life, openapi_url=None, redirect_slashes=False, telemetry=TELEMETRY_OFF)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(EdgeSteerError, _edge_steer_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _bug)
    app.include_router(openai_api.router(service))
    app.include_router(llama_api.router(service, slots=options.slots, metrics=options.metrics))
    app.include_router(vectors_api.router(service, admin=options.admin))
    app.include_router(ollama_api.router(service))

    if options.page:

        @app.api_route("/", methods=["GET", "HEAD"])
        async def page() -> Response:
            return FileResponse(PAGE / "index.html")

        app.mount("/page", StaticFiles(directory=PAGE))
    return Gate(app, service.access)


def _config(service: Service, options: ServerOptions) -> uvicorn.Config:
    return uvicorn.Config(
        application(service, options),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=options.stop_seconds,
        http="h11",
        ws="none",
        h11_max_incomplete_event_size=LARGEST_HEAD,
    )


def _bound(options: ServerOptions) -> socket.socket:
    host, port = options.host.strip("[]"), options.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise EdgeSteerError(f"cannot listen at {host}:{port}: {reason}; choose another port or host") from None
    # Accepted sockets inherit it. asyncio leaves it off where a socket does not name its protocol, and then the second
    # write of every answer waits 40 ms for the client.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response(ollama=_of_ollama(request))


async def _edge_steer_error(request: Request, error: Exception) -> Response:
    status = 501 if isinstance(error, ModelError) and "no chat template" in str(error) else 400
    return ApiError(status, str(error)).response(ollama=_of_ollama(request))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = "File Not Found" if error.status_code == 404 else str(error.detail)
    return ApiError(error.status_code, message).response(ollama=_of_ollama(request))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _bug(request: Request, error: Exception) -> Response:
    _LOG.exception("a request failed", exc_info=error)
    return ApiError(500, f"a defect of the server: {type(error).__name__}").response(ollama=_of_ollama(request))


def is_no_client_that_left(record: logging.LogRecord) -> bool:
    """asyncio warns where several pieces of an answer meet a connection that its client has just closed."""
    return record.getMessage() != "socket.send() raised exception."


def _of_ollama(request: Request) -> bool:
    return bool(request.url.path.startswith("/api/"))
