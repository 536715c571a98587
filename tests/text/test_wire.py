"""The connections to a child engine, against a real HTTP server on a socket file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from atelier.text.child.wire import Broken, Wire

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-One: 1\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"


class Engine:
    """A server that says the next of `answers` to each request, byte for byte; None closes the
    connection instead."""

    def __init__(self) -> None:
        self.answers: list[bytes | None] = []
        self.requests: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.connections = self.closed = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            self.requests.append(head + await reader.readexactly(length))
            answer = self.answers.pop(0)
            if answer is None:
                break
            writer.write(answer)
        writer.close()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[tuple[Engine, Wire]]:
    made = Engine()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await made.serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            made.closed += 1
            writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "engine.sock")
    wire = Wire(tmp_path / "engine.sock", 0)
    yield made, wire
    wire.close()
    server.close()


async def ask(wire: Wire) -> bytes:
    reply = await wire.ask("POST", "/x", b"{}", "application/json")
    try:
        return await reply.rest()
    finally:
        wire.give_back(reply)


async def test_a_connection_is_used_again_once_its_answer_was_read(
    engine: tuple[Engine, Wire],
) -> None:
    server, wire = engine
    server.answers = [LENGTH, CHUNKED, LENGTH]
    assert [await ask(wire) for _ in range(3)] == [b"hello"] * 3
    assert server.connections == 1
    assert server.requests[0].endswith(
        b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )


async def test_answers_side_by_side_have_connections_of_their_own(
    engine: tuple[Engine, Wire],
) -> None:
    server, wire = engine
    server.answers = [LENGTH] * 4
    assert await asyncio.gather(*(ask(wire) for _ in range(4))) == [b"hello"] * 4
    assert server.connections == 4


async def test_a_connection_that_the_engine_closed_while_idle_is_replaced(
    engine: tuple[Engine, Wire],
) -> None:
    server, wire = engine
    server.answers = [LENGTH, None, LENGTH]
    assert await ask(wire) == b"hello"
    assert await ask(wire) == b"hello"
    assert server.connections == 2


async def test_an_engine_that_leaves_before_it_answers_is_not_asked_again(
    engine: tuple[Engine, Wire],
) -> None:
    server, wire = engine
    server.answers = [None]
    with pytest.raises(Broken, match="closed the connection"):
        await ask(wire)
    assert len(server.requests) == 1


async def test_an_answer_that_is_not_http_is_an_error(engine: tuple[Engine, Wire]) -> None:
    server, wire = engine
    server.answers = [b"nonsense\r\n\r\n", LENGTH]
    with pytest.raises(Broken, match="not HTTP"):
        await ask(wire)
    assert await ask(wire) == b"hello"


async def test_an_answer_that_breaks_off_is_an_error(engine: tuple[Engine, Wire]) -> None:
    server, wire = engine
    server.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhell"]
    reply = await wire.ask("POST", "/x")
    assert await reply.chunk() == b"hell"
    server.writers[0].close()
    with pytest.raises(Broken, match="closed the connection"):
        await reply.chunk()


async def test_an_answer_given_back_unread_closes_its_connection(
    engine: tuple[Engine, Wire],
) -> None:
    server, wire = engine
    server.answers = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"]
    reply = await wire.ask("POST", "/x")
    assert await reply.chunk() == b"hello"
    wire.give_back(reply)
    for _ in range(100):
        if server.closed:
            break
        await asyncio.sleep(0.01)
    assert server.closed == 1


async def test_a_slow_reader_gets_everything(engine: tuple[Engine, Wire]) -> None:
    server, wire = engine
    body = bytes(range(256)) * 16384
    server.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body]
    reply = await wire.ask("GET", "/x")
    pieces = []
    while piece := await reply.chunk():
        pieces.append(piece)
        await asyncio.sleep(0.001)
    assert b"".join(pieces) == body
    assert max(map(len, pieces)) < len(body) // 2  # the engine was made to wait


async def test_an_engine_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await Wire(tmp_path / "none.sock", 0).ask("GET", "/x")
