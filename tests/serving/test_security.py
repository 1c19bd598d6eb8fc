"""Who may ask: hosts, origins, keys, sizes."""

import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from serving_server import KEY, Server, Start, launch

from edge_steer.core.errors import EdgeSteerError
from edge_steer.serving.security import Access, check_binding


def talk(server: Server, request: bytes, seconds: float = 10) -> bytes:
    """What the server answers to these bytes, up to where it closes."""
    with socket.create_connection(("127.0.0.1", server.port), seconds) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:8080", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil.example@localhost", 403),
        ("localhost/evil", 403),
        ("", 403),
        ("[::1", 403),
    ],
)
def test_only_its_own_names_reach_it(http: httpx.Client, host: str, status: int) -> None:
    assert http.get("/v1/models", headers={"Host": host}).status_code == status


def test_a_request_with_two_hosts_or_none_is_refused(server: Server) -> None:
    assert b" 400 " in talk(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n")[:20]
    assert b" 400 " in talk(server, b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")[:20]
    assert b" 403 " in talk(server, b"GET /health HTTP/1.0\r\n\r\n")[:20]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("own", 200),
        ("null", 403),
        ("http://evil.example", 403),
        ("http://localhost:1", 403),
        ("file://", 403),
        ("", 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_pages_of_other_origins_may_not_use_it(server: Server, method: str, origin: str | None, status: int) -> None:
    headers = {} if origin is None else {"Origin": server.url if origin == "own" else origin}
    with server.client as http:
        path = "/tokenize" if method == "POST" else "/v1/models"
        response = http.request(method, path, headers=headers, json={} if method == "POST" else None)
    assert response.status_code == (204 if (status, method) == (200, "OPTIONS") else status)
    assert "access-control-allow-origin" not in response.headers


def test_an_origin_that_is_allowed_may(start: Start) -> None:
    server = start("--allow-origin", "https://chat.example.org", "--allow-host", "laptop.example.org")
    with server.client as http:
        headers = {"Origin": "https://chat.example.org", "Host": "laptop.example.org"}
        assert http.options("/v1/chat/completions", headers=headers).status_code == 204
        response = http.get("/v1/models", headers=headers)
        assert response.headers["access-control-allow-origin"] == "https://chat.example.org"
        assert http.get("/v1/models", headers={**headers, "Origin": "https://chat.example.org.evil"}).status_code == 403


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("second\n")
    server = launch("--api-key", KEY, "--api-key-file", str(file))
    yield server
    server.process.kill()
    server.process.wait()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Basic {KEY}"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": b"Bearer \xff\xfe"}, 401),
        ({"Authorization": f"Bearer {KEY}"}, 200),
        ({"authorization": f"bearer {KEY}"}, 200),
        ({"X-Api-Key": KEY}, 200),
        ({"X-Api-Key": "second"}, 200),
        ({"X-Api-Key": KEY + "x"}, 401),
    ],
)
def test_a_key_is_needed(locked: Server, headers: dict[str, str], status: int) -> None:
    with locked.client as http:
        response = http.get("/v1/models", headers=headers)
        assert response.status_code == status
        if status == 401:
            assert response.json()["error"] == {
                "code": 401,
                "message": "Invalid API Key",
                "type": "authentication_error",
                "param": None,
            }


def test_health_and_the_page_need_none(locked: Server) -> None:
    with locked.client as http:
        for path in ("/health", "/v1/health", "/", "/page/index.html"):
            assert http.get(path).status_code == 200
        assert http.post("/completion", json={"prompt": "x"}).status_code == 401
        assert http.post("/api/chat", json={}).json() == {"error": "Invalid API Key"}


def test_the_page_may_load_nothing_from_elsewhere(http: httpx.Client) -> None:
    response = http.get("/")
    assert response.text.startswith("<!doctype html>")
    policy = response.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(http: httpx.Client, chunked: bool) -> None:
    largest = Access().largest_body
    body = (b"x" * 2**20 for _ in range(largest // 2**20 + 1)) if chunked else b"x" * (largest + 1)
    try:
        response = http.post("/completion", content=body)
    except httpx.WriteError:
        return  # the server closed while we sent
    assert response.status_code == 413


def test_headers_that_are_too_large_are_refused(server: Server) -> None:
    answer = talk(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (2**16 + 1000))
    assert b" 400 " in answer[:20]


def test_a_body_that_never_comes_holds_nobody_up(server: Server) -> None:
    head = b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
    for connection in slow:
        connection.sendall(head)
    with server.client as http:
        began = time.monotonic()
        assert http.post("/completion", json={"prompt": "1 + 1", "n_predict": 2}).status_code == 200
        assert time.monotonic() - began < 5
    for connection in slow:
        connection.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "laptop"])
def test_a_host_that_others_reach_needs_a_key_or_a_word(host: str) -> None:
    with pytest.raises(EdgeSteerError, match="no key"):
        check_binding(host, (), no_auth=False)
    check_binding(host, (KEY,), no_auth=False)
    check_binding(host, (), no_auth=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1", "[::1]"])
def test_a_host_that_only_this_machine_reaches_needs_none(host: str) -> None:
    check_binding(host, (), no_auth=False)


def test_an_empty_key_is_refused() -> None:
    with pytest.raises(EdgeSteerError, match="empty"):
        Access(keys=(" ",))
