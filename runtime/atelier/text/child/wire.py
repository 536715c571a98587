"""HTTP to a child engine over kept-alive connections: no more of it than a proxy needs, since its
time is every answer's.

One request at a time on a connection. A connection that is given back unread is closed, which
aborts the engine's work.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import httptools

IDLE_SECONDS = 4.0
"""Engines close connections that were idle for 5 s (uvicorn's default); older ones are not used
again."""

READ_AHEAD = 2**18
"""Bytes kept for a slow reader before the engine is made to wait."""


class Broken(ConnectionError):
    """The engine closed the connection, or spoke no HTTP, before its answer was complete."""


class Connection(asyncio.Protocol):
    """One connection, and the answer that is being read from it."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = True
        self.idle_since = 0.0
        self._transport: asyncio.Transport
        self._parser: httptools.HttpResponseParser
        self._body: list[bytes] = []
        self._held = 0
        self._lost: str | None = None
        self._reader: asyncio.Future[None] | None = None
        self._keep = False

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent."""
        return (
            self.complete and self._keep and self._lost is None and not self._transport.is_closing()
        )

    def ask(self, request: bytes) -> None:
        """Send a whole request; `begun`, `chunk` and `rest` read its answer."""
        self.status, self.headers, self.complete, self._keep = 0, {}, False, False
        self._body, self._held = [], 0
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)

    async def begun(self) -> None:
        """Wait for status and headers.

        Raises:
            Broken: the connection is lost.
        """
        while not self.status:
            await self._more()

    async def chunk(self) -> bytes:
        """What has come since the last call; empty at the end.

        Raises:
            Broken: the connection is lost.
        """
        while not self._body and not self.complete:
            await self._more()
        data = b"".join(self._body)
        self._body.clear()
        if self._held > READ_AHEAD and not self._transport.is_closing():
            self._transport.resume_reading()
        self._held = 0
        return data

    async def rest(self) -> bytes:
        """Everything up to the end."""
        chunks = []
        while data := await self.chunk():
            chunks.append(data)
        return b"".join(chunks)

    def close(self) -> None:
        """End the connection."""
        self._transport.abort()

    async def _more(self) -> None:
        if self._lost is not None:
            raise Broken(self._lost)
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it

    def data_received(self, data: bytes) -> None:
        if self.complete:  # nothing was asked
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._lost = f"the engine's answer is not HTTP: {error}"
            self.close()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self._lost or f"the engine closed the connection{f': {exc}' if exc else ''}"
        self._wake()

    # What the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._body.append(data)
        self._held += len(data)
        if self._held > READ_AHEAD >= self._held - len(data):
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        self.complete, self._keep = True, self._parser.should_keep_alive()


@dataclass
class Wire:
    """The way to one engine: its socket file or, without one, its port on this machine. For one
    event loop."""

    socket: Path | None
    port: int
    _idle: list[Connection] = field(default_factory=list)

    async def ask(
        self, method: str, path: str, body: bytes = b"", content_type: str = ""
    ) -> Connection:
        """Send a request and wait for the head of its answer. Give the connection back when it is
        read.

        Raises:
            OSError: the engine cannot be reached, or left before it answered.
        """
        kind = f"Content-Type: {content_type}\r\n" if content_type else ""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: engine\r\n{kind}Content-Length: {len(body)}\r\n\r\n"
        )
        request = head.encode("latin-1") + body
        used = self._take()
        if used is not None:
            try:
                return await self._answered(used, request)
            # closed by the engine while it was idle, as it may; a new one says whether the engine
            # is there
            except Broken:
                pass
        return await self._answered(await self._connect(), request)

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose answer was read to its end; close any other."""
        if connection.reusable:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close the connections that wait."""
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> Connection | None:
        fresh = time.monotonic() - IDLE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and connection.idle_since > fresh:
                return connection
            connection.close()
        return None

    async def _answered(self, connection: Connection, request: bytes) -> Connection:
        try:
            connection.ask(request)
            await connection.begun()
        except BaseException:
            connection.close()
            raise
        return connection

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        if self.socket is not None:
            return (await loop.create_unix_connection(Connection, str(self.socket)))[1]
        return (await loop.create_connection(Connection, "127.0.0.1", self.port))[1]
