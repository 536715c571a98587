"""Server-sent events: frames, a sign of life while nothing happens, and a clean end when the client
goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import orjson
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from atelier.errors import AtelierError

SILENCE_SECONDS = 15.0
"""Proxies close connections that are silent for 30 s or longer; a comment now and then keeps
them."""

SIGN_OF_LIFE = b": \n\n"


DONE = b"data: [DONE]\n\n"
"""How OpenAI's text streams end."""


def frame(data: Any, event: str = "") -> bytes:
    """One event with a JSON body, named or not."""
    head = f"event: {event}\n".encode() if event else b""
    return head + b"data: " + orjson.dumps(data) + b"\n\n"


async def alive(
    frames: AsyncGenerator[bytes], seconds: float = SILENCE_SECONDS
) -> AsyncGenerator[bytes]:
    """`frames`, with a comment whenever `seconds` pass without one. Closing this closes
    `frames`."""
    upcoming: asyncio.Future[bytes] | None = None
    try:
        while True:
            upcoming = asyncio.ensure_future(anext(frames))
            while not (await asyncio.wait({upcoming}, timeout=seconds))[0]:
                yield SIGN_OF_LIFE
            try:
                yield upcoming.result()
            except StopAsyncIteration:
                return
    finally:
        if upcoming is not None and not upcoming.done():
            upcoming.cancel()
            await asyncio.wait({upcoming})
        await frames.aclose()


class EventStreamResponse(StreamingResponse):
    """Sends frames as they come. When the client goes, the generator is closed, and with it what it
    listens to."""

    def __init__(self, frames: AsyncGenerator[bytes]) -> None:
        self._frames = alive(frames)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(self._frames, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._frames.aclose()


async def when_begun(
    frames: AsyncGenerator[bytes],
    told: Callable[[AtelierError], bytes],
    patience: float = SILENCE_SECONDS,
) -> EventStreamResponse:
    """Answer with `frames`, once the first is there: what fails before it is still a proper error.

    After `patience` seconds the answer begins without it, for the proxies; an error is then a frame
    as `told` words it.
    """
    upcoming = asyncio.ensure_future(anext(frames))
    try:
        await asyncio.wait({upcoming}, timeout=patience)
    except asyncio.CancelledError:
        upcoming.cancel()
        await asyncio.wait({upcoming})
        raise
    begun = upcoming.done()
    if begun:
        upcoming.result()

    async def all_of_them() -> AsyncGenerator[bytes]:
        try:
            yield await upcoming
            async for one in frames:
                yield one
        except AtelierError as error:
            if begun:
                raise
            yield told(error)
        finally:
            await frames.aclose()

    return EventStreamResponse(all_of_them())
