"""Who calls a tool over HTTP: whether the client is still there, by which address it came, and
which pictures are its own."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Awaitable
from typing import TypeVar

import anyio
from fastmcp.server.dependencies import get_http_request
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from atelier.errors import Cancelled
from atelier.settings import Settings

GONE = "atelier.gone"
"""Key of an ASGI scope: an event that is set when its response has nowhere to go any more."""

RECENT = 50
Result = TypeVar("Result")


class ResponseEnd:
    """Tells what works for a request that its response has ended. In protocol versions with
    sessions a tool runs beside its request and would not hear of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ended = asyncio.Event()
        try:
            await self._app({**scope, GONE: ended}, receive, send)
        finally:
            ended.set()


async def while_wanted(work: Awaitable[Result]) -> Result:
    """Wait for `work`, and cancel it when the HTTP client goes away.

    Raises:
        Cancelled: it went away.
    """
    request = http_request()
    ended = request.scope.get(GONE) if request else None
    scope = anyio.CancelScope()

    async def listen() -> None:
        if ended is not None:
            await ended.wait()
            scope.cancel()

    listener = asyncio.create_task(listen())
    try:
        with scope:
            return await work
    finally:
        listener.cancel()
    raise Cancelled("the client went away")


def http_request() -> Request | None:
    """The HTTP request that the current call came by; None over stdio."""
    try:
        return get_http_request()
    except RuntimeError:
        return None


class RecentPictures:
    """The newest pictures of each caller: of a key over HTTP, of the one user over stdio. Without
    keys nobody can be told from another over HTTP, and nothing is listed."""

    def __init__(self, settings: Settings) -> None:
        self._keyed = bool(settings.api_keys)
        self._names: dict[str, deque[str]] = {}

    def add(self, name: str) -> None:
        """Remember it as the current caller's."""
        if caller := self._caller():
            self._names.setdefault(caller, deque(maxlen=RECENT)).appendleft(name)

    def names(self) -> list[str]:
        """Those of the current caller, newest first."""
        return list(self._names.get(self._caller(), ()))

    def _caller(self) -> str:
        request = http_request()
        if request is None:
            return "stdio"
        if not self._keyed:
            return ""
        return hashlib.sha256(request.headers.get("authorization", "").encode()).hexdigest()
