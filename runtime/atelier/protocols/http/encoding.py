"""Request bodies that come compressed, unpacked within the limit that plain ones have."""

from __future__ import annotations

import zlib

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atelier.bounds import MAX_GZIP_MEMBERS
from atelier.errors import InvalidRequest, PayloadTooLarge, UnsupportedEncoding, shown
from atelier.protocols.http.error_bodies import error_response

EITHER = 32 + zlib.MAX_WBITS
"""Tells zlib to find out by itself whether it is gzip or zlib ("deflate" in HTTP)."""

BARE = -zlib.MAX_WBITS
"""A deflate stream without zlib's header, which some clients call deflate (RFC 9110, 8.4.1.2)."""

GZIP_MAGIC = b"\x1f\x8b"

PLAIN = ("", "identity")


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
        named = ", ".join(Headers(scope=scope).getlist("content-encoding"))
        encodings = [one for part in named.split(",") if (one := part.strip().lower()) not in PLAIN]
        if not encodings:
            await self._app(scope, receive, send)
            return
        try:
            if len(encodings) > 1 or encodings[0] not in ("gzip", "x-gzip", "deflate"):
                raise UnsupportedEncoding(
                    f"Content-Encoding: {shown(named)} is not known; send gzip, deflate or none"
                )
            body = await self._unpack(receive, encodings[0] == "deflate")
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

    async def _unpack(self, receive: Receive, deflate: bool) -> bytes:
        unpacking = _Unpacking(self._limit, deflate)
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return bytes(unpacking.body)
            more = message.get("more_body", False)
            unpacking.add(message.get("body", b""))
        return unpacking.end()


class _Unpacking:
    """A compressed body as it arrives. gzip may be of several members, which are one after another
    (RFC 1952, section 2.2), with zeros behind."""

    def __init__(self, limit: int, deflate: bool) -> None:
        self.body = bytearray()
        self._limit = limit
        self._deflate = deflate
        self._stream: zlib._Decompress | None = None  # None: before a member
        self._start = b""  # what came of a member before its kind can be told
        self._members = 0

    def add(self, packed: bytes) -> None:
        """Unpack what came.

        Raises:
            InvalidRequest, PayloadTooLarge: it is not what it is called, or too much.
        """
        packed = self._start + packed
        self._start = b""
        while packed:
            if self._stream is None:
                packed = packed.lstrip(b"\0") if self._members else packed
                if len(packed) < len(GZIP_MAGIC):
                    self._start = packed
                    return
                self._stream = self._opened(packed)
            stream = self._stream
            try:
                self.body += stream.decompress(packed, self._limit + 1 - len(self.body))
            except zlib.error as error:
                told = f"the body cannot be unpacked: {error}"
                raise InvalidRequest(told, "Content-Encoding") from None
            if len(self.body) > self._limit:
                raise PayloadTooLarge(
                    f"the unpacked body is larger than MAX_BODY_BYTES={self._limit}"
                )
            packed = stream.unconsumed_tail
            if stream.eof:
                packed, self._stream = stream.unused_data, None
                self._members += 1

    def end(self) -> bytes:
        """The whole body; an empty one is empty.

        Raises:
            InvalidRequest: its end is missing.
        """
        if self._stream is not None or self._start:
            raise InvalidRequest("the body is cut short: its end is missing", "Content-Encoding")
        return bytes(self.body)

    def _opened(self, packed: bytes) -> zlib._Decompress:
        gzip = packed.startswith(GZIP_MAGIC)
        if self._members and not gzip:
            raise InvalidRequest("behind the packed body lies something else", "Content-Encoding")
        if self._members >= MAX_GZIP_MEMBERS:
            told = f"the packed body has more than {MAX_GZIP_MEMBERS} members: pack it as one"
            raise InvalidRequest(told, "Content-Encoding")
        # zlib's header: compression method 8, and a multiple of 31 (RFC 1950, section 2.2)
        zlibs = packed[0] & 15 == 8 and int.from_bytes(packed[:2]) % 31 == 0
        return zlib.decompressobj(BARE if self._deflate and not gzip and not zlibs else EITHER)
