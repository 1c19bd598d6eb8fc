"""Who may ask: host names, origins, keys, and how large a request may be. Plain ASGI around the application.

A web page elsewhere can make a browser send requests to this server, under any name that resolves to it. So the Host
must be an address or a name of this server, and an Origin, which browsers send, must be the server itself.
"""

import asyncio
import hmac
import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge_steer.core.errors import EdgeSteerError
from edge_steer.serving.replies import ApiError

PUBLIC = ("/", "/health", "/v1/health", "/favicon.ico")
PAGE = "/page/"
CONTENT_SECURITY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"  # no text becomes HTML
)
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", CONTENT_SECURITY.encode()),
)


@dataclass(frozen=True)
class Access:
    """keys: empty is everyone. hosts: names besides localhost and addresses. origins: other pages that may ask."""

    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    largest_body: int = 2**24
    body_seconds: float = 60.0

    def __post_init__(self) -> None:
        if any(not key.strip() for key in self.keys):
            raise EdgeSteerError("a key is empty; everyone would know it")


async def read_body(request: Request, access: Access) -> bytes:
    """The body of a request. Errors: ApiError 413 for one that is too large, 408 for one that does not come."""
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(access.body_seconds):
            async for piece in request.stream():
                size += len(piece)
                if size > access.largest_body:
                    raise ApiError(413, f"the body is larger than {access.largest_body} bytes")
                pieces.append(piece)
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {access.body_seconds:g} seconds") from None
    return b"".join(pieces)


def check_binding(host: str, keys: tuple[str, ...], *, no_auth: bool) -> None:
    """Errors: EdgeSteerError for a host that others reach, without a key and without saying so."""
    if not (is_loopback(host) or keys or no_auth):
        raise EdgeSteerError(
            f"{host} can be reached by others and there is no key; set a key, listen on 127.0.0.1, or say that "
            "no key is wanted"
        )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Gate:
    """Refuses what `Access` does not allow, and makes one form of a path: no doubled and no trailing slashes."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = "/" + "/".join(part for part in scope["path"].split("/") if part)
        scope = {**scope, "path": path, "raw_path": path.encode()}
        request = Request(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *HEADERS, *self._cors(request)]}
            await send(message)

        refusal = self._refusal(request)
        if refusal:
            await refusal.response(ollama=path.startswith("/api/"))(scope, receive, send_with_headers)
        elif request.method == "OPTIONS":
            await Response(status_code=204)(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> ApiError | None:
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not self._is_own_name(_name(hosts[0])):
            return ApiError(403, "this server is not known by that Host; name it when the server starts")
        origins = request.headers.getlist("origin")
        if len(origins) > 1 or (origins and not self._is_allowed_origin(origins[0], hosts[0])):
            return ApiError(403, "pages of another origin may not use this server; allow the origin when it starts")
        path = request.url.path
        if request.method == "OPTIONS" or path in PUBLIC or path.startswith(PAGE) or self._knows_key(request):
            return None
        return ApiError(401, "Invalid API Key")

    def _is_own_name(self, name: str) -> bool:
        if name == "localhost" or name in self._access.hosts:
            return True
        try:
            ipaddress.ip_address(name)  # no name that someone else's DNS could resolve
        except ValueError:
            return False
        return True

    def _is_allowed_origin(self, origin: str, host: str) -> bool:
        if origin in self._access.origins:
            return True
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower() and not parts.path

    def _knows_key(self, request: Request) -> bool:
        if not self._access.keys:
            return True
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        matches = [hmac.compare_digest(given.encode("latin-1"), key.encode()) for key in self._access.keys]
        return any(matches)

    def _cors(self, request: Request) -> list[tuple[bytes, bytes]]:
        origin = request.headers.get("origin", "")
        if origin not in self._access.origins:
            return []
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            (b"access-control-allow-headers", b"Authorization, Content-Type, X-Api-Key"),
            (b"vary", b"Origin"),
        ]


def _name(host: str) -> str:
    """The name of a Host header, without port and brackets; "" for what is none."""
    if set(host) & set("@/?#\\"):
        return ""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
