"""Requests handed to a child engine as they are, and its answers handed back unread and unbuffered."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from atelier.errors import NotReady
from atelier.text.engines.process import ProcessEngine

KEPT = ("content-type", "cache-control", "retry-after")
"""Headers of the engine's answer that mean something to the client; lengths and connections are our own."""


async def forward(engine: ProcessEngine, request: Request, path: str) -> Response:
    """Send the request to the engine. Closing the answer early aborts the engine's work.

    Raises:
        NotReady: the engine cannot be reached; it is being restarted.
    """
    body = await request.body()
    headers = {"Content-Type": request.headers.get("content-type", "application/json")}
    with engine.admitted():
        try:
            reply = await engine.post(path, body, headers)
        except (aiohttp.ClientError, OSError) as error:
            raise NotReady(f"the engine cannot be reached: {error}; it is being restarted") from error
        kept = {name: value for name, value in reply.headers.items() if name.lower() in KEPT}
        if not reply.headers.get("content-type", "").startswith("text/event-stream"):
            async with reply:
                return Response(await reply.read(), reply.status, kept)
    return StreamingResponse(_chunks(engine, reply), reply.status, kept)


async def _chunks(engine: ProcessEngine, reply: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    with engine.admitted():
        try:
            async for chunk in reply.content.iter_any():
                yield chunk
        finally:
            reply.close()
