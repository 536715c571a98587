"""A connection as uvicorn's HTTP parser serves it, with a bound on what comes before a body or
after it: headers and trailers, in bytes and in time.

The parser joins what it is fed, so that headers without end would cost quadratic time before any of
our code sees a request.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from atelier.bounds import HEADER_SECONDS, LINGER_SECONDS, MAX_HEADER_BYTES

PART = 16 * 1024
"""Bytes that the parser is fed at a time, so that the bound holds within one packet too."""


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's protocol; 431 to long headers and 408 to slow ones, and the connection closes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head = 0  # bytes since the parser last got through headers or gave a part of a body
        self._advances = 0
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        for start in range(0, len(data), PART):
            before = self._advances
            part = data[start : start + PART]
            super().data_received(part)
            if self._refused or self.transport.is_closing():
                return
            self._head = self._head + len(part) if self._advances == before else 0
            if self._head > MAX_HEADER_BYTES:
                told = f"the headers are longer than {MAX_HEADER_BYTES} bytes"
                self._refuse(b"431 Request Header Fields Too Large", told)
                return

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._timer is None:
            self._await_headers()

    def on_headers_complete(self) -> None:
        self._advances += 1
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._advances += 1
        super().on_body(body)

    def _await_headers(self) -> None:
        self._timer = self.loop.call_later(HEADER_SECONDS, self._late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        if self._head:
            self._refuse(b"408 Request Timeout", f"no headers within {HEADER_SECONDS:g} s")
        else:  # a connection that was opened and never used
            self.transport.close()

    def _refuse(self, status: bytes, told: str) -> None:
        self._stop_waiting()
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        body = b'{"error": "%s"}' % told.encode()
        self.transport.write(
            b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%s" % (status, len(body), body)
        )
        self.transport.pause_reading()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)
