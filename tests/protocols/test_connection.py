"""Connections that send their headers too slowly, or never."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from atelier.protocols.http import connection
from atelier.protocols.http.connection import BoundedConnection
from tests.conftest import free_port

SECONDS = 0.5


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers 200 to everything, once the body is there."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"fine"})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server whose headers have half a second."""
    monkeypatch.setattr(connection, "HEADER_SECONDS", SECONDS)
    number = free_port()
    config = uvicorn.Config(
        app, port=number, http=BoundedConnection, lifespan="off", log_level="error"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield number
    server.should_exit = True
    thread.join()


def everything(client: socket.socket) -> bytes:
    answer = b""
    while part := client.recv(4096):
        answer += part
    return answer


def test_headers_that_drip_are_ended(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        began = time.monotonic()
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        client.settimeout(0.05)
        answer = b""
        while not answer and time.monotonic() - began < 10:
            client.sendall(b"x")
            try:
                answer = client.recv(4096)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began >= SECONDS * 0.9  # the clock began with the connection


def test_a_connection_that_says_nothing_is_closed_without_a_word(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        assert everything(client) == b""


def test_a_body_may_take_longer_than_headers(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4\r\n\r\n"
        )
        for letter in b"slow":
            time.sleep(SECONDS / 2)
            client.sendall(bytes([letter]))
        assert everything(client).startswith(b"HTTP/1.1 200")


def test_requests_one_after_the_other_share_a_connection(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        for _ in range(3):
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
            time.sleep(SECONDS / 2)
