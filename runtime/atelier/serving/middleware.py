"""What every HTTP request passes through: its id, its key, its size, and the watch for a client
that goes away."""

from __future__ import annotations

import asyncio
import re
import uuid

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atelier import logs
from atelier.protocols.http.access import ApiKeys
from atelier.protocols.http.body_limit import BodyLimit
from atelier.protocols.http.encoding import Unpacked
from atelier.settings import Settings


def front(app: ASGIApp, settings: Settings) -> ASGIApp:
    """The server of a model behind everything that stands before it.

    `ClientGone` reads ahead of the application, so what bounds the body has to stand outside of it.
    """
    return guarded(ClientGone(app), settings)


def guarded(app: ASGIApp, settings: Settings) -> ASGIApp:
    """`app` behind what bounds and admits requests; the last is the outermost."""
    app = Unpacked(app, settings.max_body_bytes)
    app = BodyLimit(app, settings.max_body_bytes, settings.request_timeout)
    app = ApiKeys(app, settings)
    if settings.allowed_origins:  # a browser's preflight has no key
        app = CORSMiddleware(
            app,
            allow_origins=settings.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "Location", "Retry-After"],
        )
    return RequestId(HeadAsGet(PathSpelling(app)))


SLASHES = re.compile("/{2,}")

VERSION = re.compile(r"(/v2/models/[^/]+)/versions/1(?=/|$)")
"""A model has one version, which Triton's clients may name."""


class PathSpelling:
    """Makes one of the spellings of a path: `/v1/images/generations/` is the same route, and so is
    `//v1/images/generations`, which a base URL with a slash at its end makes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = SLASHES.sub("/", scope["path"]).rstrip("/") or "/"
            path = VERSION.sub(r"\1", path)
            if path != scope["path"]:
                scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)


class HeadAsGet:
    """Answers HEAD wherever GET is answered: the same status and headers, and no body.

    What follows the headers is dropped. A stream that would go on ends there: the server then
    reports the connection as closed, and `ClientGone` cancels the handler.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})

        await self._app({**scope, "method": "GET"}, receive, send_headers)


class RequestId:
    """Gives every request an id, or keeps the client's, and sends it back as X-Request-ID."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if given.isprintable() and 0 < len(given) <= 128 else uuid.uuid4().hex
        logs.set_request_id(request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode("latin-1")),
                ]
            await send(message)

        await self._app(scope, receive, send_with_id)


class ClientGone:
    """Cancels the handler when the client closes the connection, so that its work leaves the engine
    before the next step.

    A server learns of a closed connection only by listening, and handlers stop listening once they
    have the body. This listens for them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages: asyncio.Queue[Message] = asyncio.Queue()
        handler = asyncio.current_task()
        assert handler is not None
        gone = False

        async def listen() -> None:
            nonlocal gone
            while not gone:
                message = await receive()
                messages.put_nowait(message)
                if message["type"] == "http.disconnect":
                    gone = True
                    handler.cancel()

        listener = asyncio.ensure_future(listen())
        try:
            await self._app(scope, messages.get, send)
        except asyncio.CancelledError:
            if not gone:
                raise
            handler.uncancel()
        finally:
            listener.cancel()
