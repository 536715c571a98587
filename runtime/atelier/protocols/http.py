"""What every HTTP route shares: errors from the one table, request ids, and clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atelier import logs
from atelier.errors import AtelierError, Busy, InvalidRequest, report
from atelier.settings import Settings

OPENAI_PREFIXES = (
    "/v1/images",
    "/v1/chat",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/openai/",
    "/tokenize",
    "/detokenize",
)


def error_response(request: Request, error: AtelierError) -> JSONResponse:
    """The error as the route's protocol says it: OpenAI's object below OpenAI paths, KServe's `{"error": text}` elsewhere."""
    row = report(error)
    headers = {"Retry-After": str(math.ceil(error.retry_after_s))} if isinstance(error, Busy) else {}
    if request.url.path.startswith(OPENAI_PREFIXES):
        field = getattr(error, "field", None)
        body: dict[str, Any] = {"message": error.message, "type": row.openai_type, "param": field, "code": row.code}
    else:
        return JSONResponse({"error": error.message}, row.status, headers)
    return JSONResponse({"error": body}, row.status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Answer our errors, and bodies that fail a route's schema, from the table."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, AtelierError)
        return error_response(request, error)

    async def schema(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        fault = error.errors()[0]
        name = ".".join(str(part) for part in fault["loc"])
        return error_response(request, InvalidRequest(f"{name}: {fault['msg']}", name))

    app.add_exception_handler(AtelierError, ours)
    app.add_exception_handler(RequestValidationError, schema)


def add_middleware(app: FastAPI, settings: Settings) -> None:
    """Order matters: the last added is the outermost."""
    app.add_middleware(ClientGone)
    app.add_middleware(RequestId)


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
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode("latin-1"))]
            await send(message)

        await self._app(scope, receive, send_with_id)


class ClientGone:
    """Cancels the handler when the client closes the connection, so that its work leaves the engine before the next step.

    A server learns of a closed connection only by listening, and handlers stop listening once they have the body. This
    listens for them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages: asyncio.Queue[Message] = asyncio.Queue()
        handler = asyncio.ensure_future(self._app(scope, messages.get, send))

        async def listen() -> None:
            while True:
                message = await receive()
                messages.put_nowait(message)
                if message["type"] == "http.disconnect":
                    handler.cancel()
                    return

        listener = asyncio.ensure_future(listen())
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await handler
        finally:
            handler.cancel()
            listener.cancel()
