"""How much of request bodies there may be, and how slowly they may come, as plain ASGI
middleware."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atelier.bounds import BODIES_AT_ONCE, LINGER_SECONDS, SILENT_BODY_SECONDS
from atelier.errors import AtelierError, Busy, InvalidRequest, PayloadTooLarge, TooSlow
from atelier.protocols.http.deadlines import seconds_allowed
from atelier.protocols.http.error_bodies import error_response

FREE = 64 * 1024
"""Bytes of a body that the shared budget does not count: it is there for the large ones."""

RETRY_S = 1.0


class BodyLimit:
    """Answers 413 to bodies above `limit` bytes, 429 while all bodies together are too many bytes,
    and 408 to those that come too slowly; `seconds` is the longest that a body may take.

    What declares its length is refused at once, the rest when it passes a limit. The application
    then sees a client that has gone, and what it still wants to say is dropped.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app = app
        self._limit = limit
        self._seconds = seconds
        self._held = 0  # bytes of bodies that are received or worked on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(self._seconds)
        declared = dict(scope["headers"]).get(b"content-length", b"")
        refusal: AtelierError | None = None
        answered = False

        async def bounded() -> Message:
            nonlocal refusal
            if refusal is not None:
                return {"type": "http.disconnect"}
            try:
                message = await body.next(receive)
                self._count(body, len(message.get("body", b"")))
            except AtelierError as error:
                refusal = error
                if not answered:
                    await _refuse(error, scope, receive, send)
                return {"type": "http.disconnect"}
            return message

        async def answer(message: Message) -> None:
            nonlocal answered
            answered = True
            if refusal is None:
                await send(message)

        try:
            if declared.isdigit() and len(declared) < 20:
                self._check(body, int(declared))
            body.hurry(scope)
        except AtelierError as error:
            await _refuse(error, scope, receive, send)
            return
        try:
            await self._app(scope, bounded, answer)
        finally:
            self._held -= body.counted

    def _check(self, body: _Body, size: int) -> None:
        """See that a body of `size` bytes may come.

        Raises:
            PayloadTooLarge, Busy: it may not, ever or now.
        """
        if size > self._limit:
            raise PayloadTooLarge(f"the body is larger than MAX_BODY_BYTES={self._limit}")
        most = BODIES_AT_ONCE * self._limit
        if size > FREE and self._held - body.counted + size > most:
            raise Busy(f"bodies of {most} bytes are being received or worked on", RETRY_S)

    def _count(self, body: _Body, size: int) -> None:
        body.size += size
        self._check(body, body.size)
        if body.size > FREE:
            self._held += body.size - body.counted
            body.counted = body.size


class _Body:
    """What has come of one body, and until when the rest must."""

    def __init__(self, seconds: float) -> None:
        self.size = 0
        self.counted = 0
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._whole = False

    def hurry(self, scope: Scope) -> None:
        """Heed the request's own deadline; one that is wrong is its handler's to refuse."""
        try:
            allowed = seconds_allowed(Request(scope).headers)
        except InvalidRequest:
            return
        if allowed is not None and allowed < self._seconds:
            self._seconds, self._end = allowed, time.monotonic() + allowed

    async def next(self, receive: Receive) -> Message:
        """The next part, or the news that the client went.

        Raises:
            TooSlow: it does not come.
        """
        if self._whole:
            return await receive()
        silence = min(SILENT_BODY_SECONDS, self._end - time.monotonic())
        try:
            async with asyncio.timeout(silence):
                message = await receive()
        except TimeoutError:
            if silence == SILENT_BODY_SECONDS:
                raise TooSlow(f"nothing of the body came for {silence:g} s") from None
            raise TooSlow(f"the body was not whole within {self._seconds:g} s") from None
        self._whole = not message.get("more_body", False)
        return message


async def _refuse(error: AtelierError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, and end the connection once the client has had time to read the answer."""
    response = error_response(Request(scope), error)
    response.headers["Connection"] = "close"  # the rest of the body will not be heeded

    async def unfinished(message: Message) -> None:
        more = {"more_body": True} if message["type"] == "http.response.body" else {}
        await send({**message, **more})

    await response(scope, receive, unfinished)
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b""})
