"""Request bodies that come compressed, unpacked within the limit that plain ones have."""

from __future__ import annotations

import zlib

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atelier.errors import InvalidRequest, PayloadTooLarge, UnsupportedEncoding, shown
from atelier.protocols.http.error_bodies import error_response

EITHER = 32 + zlib.MAX_WBITS
"""Tells zlib to find out by itself whether it is gzip or zlib ("deflate" in HTTP)."""


class Unpacked:
    """Unpacks `Content-Encoding: gzip` and `deflate`; 415 to others, 413 beyond `limit` bytes.

    The whole body is read before the application is called: what is refused never reaches it.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        named = dict(scope["headers"]).get(b"content-encoding", b"").decode("latin-1")
        encoding = named.strip().lower()
        if encoding in ("", "identity"):
            await self._app(scope, receive, send)
            return
        try:
            if encoding not in ("gzip", "x-gzip", "deflate"):
                raise UnsupportedEncoding(
                    f"Content-Encoding: {shown(named)} is not known; send gzip, deflate or none"
                )
            body = await self._unpack(receive)
        except (InvalidRequest, PayloadTooLarge, UnsupportedEncoding) as error:
            await error_response(Request(scope), error)(scope, receive, send)
            return
        left_out = (b"content-encoding", b"content-length")
        headers = [pair for pair in scope["headers"] if pair[0] not in left_out]
        headers.append((b"content-length", str(len(body)).encode()))
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def plain() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app({**scope, "headers": headers}, plain, send)

    async def _unpack(self, receive: Receive) -> bytes:
        unpacker, body = zlib.decompressobj(EITHER), bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return bytes(body)
            more = message.get("more_body", False)
            packed = message.get("body", b"")
            while packed:
                try:
                    body += unpacker.decompress(packed, self._limit + 1 - len(body))
                except zlib.error as error:
                    told = f"the body cannot be unpacked: {error}"
                    raise InvalidRequest(told, "Content-Encoding") from None
                if len(body) > self._limit:
                    raise PayloadTooLarge(
                        f"the unpacked body is larger than MAX_BODY_BYTES={self._limit}"
                    )
                packed = unpacker.unconsumed_tail
        if not unpacker.eof:
            raise InvalidRequest("the body is cut short: its end is missing", "Content-Encoding")
        return bytes(body)
