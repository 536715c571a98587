"""Requests handed to a child engine as they are, and its answers handed back unread and unbuffered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import aiohttp
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from atelier.errors import AtelierError, Cancelled, NotReady
from atelier.events import Event, Failed, Finished
from atelier.text.engines.process import ProcessEngine
from atelier.text.model import TextModel

KEPT = ("content-type", "cache-control", "retry-after")
"""Headers of the engine's answer that mean something to the client; lengths and connections are our own."""


async def forward(model: TextModel, engine: ProcessEngine, request: Request, path: str) -> Response:
    """Send the request to the engine. Closing the answer early aborts the engine's work.

    Raises:
        NotReady: the engine cannot be reached; it is being restarted.
        Draining, Busy: nothing is admitted now.
    """
    body = await request.body()
    headers = {"Content-Type": request.headers.get("content-type", "application/json")}
    try:
        engine.admit()
    except AtelierError as error:
        model.observer.refused("forwarded", error)
        raise
    follow = model.observer.request("forwarded")
    try:
        reply = await engine.post(path, body, headers)
    except BaseException as error:
        engine.release()
        told: BaseException = error
        if isinstance(error, aiohttp.ClientError | OSError):
            told = NotReady(f"the engine cannot be reached and is being restarted: {error}")
        follow(Failed(told if isinstance(told, AtelierError) else Cancelled("the client went away")))
        raise told from error
    kept = {name: value for name, value in reply.headers.items() if name.lower() in KEPT}
    chunks = _chunks(engine, reply, follow)
    first = await anext(chunks, b"")  # begun, the generator cleans up even if nobody reads on
    if reply.headers.get("content-type", "").startswith("text/event-stream"):
        return StreamingResponse(_after(first, chunks), reply.status, kept)
    rest = [chunk async for chunk in chunks]
    return Response(b"".join([first, *rest]), reply.status, kept)


async def _chunks(
    engine: ProcessEngine, reply: aiohttp.ClientResponse, follow: Callable[[Event], None]
) -> AsyncIterator[bytes]:
    last: Event = Failed(Cancelled("the client went away"))
    try:
        async for chunk in reply.content.iter_any():
            yield chunk
        last = Finished()
    except (aiohttp.ClientError, OSError) as error:
        last = Failed(NotReady(f"the engine failed during the answer: {error}"))
        raise
    finally:
        reply.close()
        engine.release()
        follow(last)


async def _after(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        yield first
        async for chunk in chunks:
            yield chunk
    finally:
        await chunks.aclose()  # type: ignore[attr-defined]
