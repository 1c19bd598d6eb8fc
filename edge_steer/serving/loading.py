"""What a server says while its model loads: 503 "Loading model" to everyone, as llama-server does.

Takes a listening socket, which the server gets afterwards; connections that nobody has taken by then wait for it.
"""

import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from edge_steer.serving.replies import ApiError, dumps

LONGEST_HEAD = 2**16
SECONDS = 1.0  # that a client has to send its request
RETRY_SECONDS = 1


@contextmanager
def refusing_while_loading(listening: socket.socket) -> Iterator[None]:
    """Answer 503 at this socket, in a thread, as long as the block runs."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=_refuse_all, args=(listening, theirs), name="loading", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ours.close()
        thread.join()
        theirs.close()


def _refuse_all(listening: socket.socket, ended: socket.socket) -> None:
    listening.setblocking(False)  # who knocked may be gone again
    with selectors.DefaultSelector() as selector:
        selector.register(listening, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        while all(key.fileobj is not ended for key, _ in selector.select()):
            with suppress(OSError), listening.accept()[0] as client:
                _refuse(client)


def _refuse(client: socket.socket) -> None:
    """Read the request's head, answer, and let the client close first, so that what it still sends resets nothing."""
    deadline = time.monotonic() + SECONDS
    head = b""
    while b"\r\n\r\n" not in head and len(head) < LONGEST_HEAD:
        client.settimeout(max(0.001, deadline - time.monotonic()))
        piece = client.recv(4096)
        if not piece:
            return
        head += piece
    client.sendall(_answer())
    client.shutdown(socket.SHUT_WR)
    while client.recv(4096):
        client.settimeout(max(0.001, deadline - time.monotonic()))


def _answer() -> bytes:
    body = dumps(ApiError(503, "Loading model").envelope()).encode()
    lines = (
        "HTTP/1.1 503 Service Unavailable",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"Retry-After: {RETRY_SECONDS}",
        "Connection: close",
    )
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body
