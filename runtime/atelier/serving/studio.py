"""The studio inside a server: under /studio, and / leads there. It is made when it is first asked
for: importing Gradio takes seconds, which the first picture does not wait for."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from fastapi import FastAPI
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from atelier.errors import StartError
from atelier.protocols.http.body_limit import BodyLimit
from atelier.settings import Settings

PATH = "/studio"


def check_studio(tls: bool) -> None:
    """See that the studio can be served.

    Raises:
        StartError: its extra is not installed, or the server speaks TLS, where it would not trust
            itself.
    """
    if importlib.util.find_spec("gradio") is None:
        raise StartError("STUDIO=true: gradio is not installed: pip install 'atelier[studio]'")
    if tls:
        raise StartError(
            "STUDIO=true: not together with --ssl_certfile; run `atelier studio --endpoint"
            " https://HOST` beside the server"
        )


class StudioDoor:
    """Stands before everything else: the studio has no API key of its own, its page asks for those
    of the API, which it calls as any client does."""

    def __init__(self, app: ASGIApp, port: int, settings: Settings) -> None:
        self._app = app
        self._url = f"http://127.0.0.1:{port}"
        self._settings = settings
        self._making: asyncio.Task[ASGIApp] | None = None
        self._life = AsyncExitStack()
        self._open: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path in ("/", PATH):
            await RedirectResponse(f"{PATH}/", 307)(scope, receive, send)
        elif scope["type"] == "http" and path.startswith(f"{PATH}/"):
            await self._visit(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def close(self) -> None:
        """Let go of the pages that are open: they listen for as long as they are."""
        for visit in list(self._open):
            visit.cancel()
        await self._life.aclose()

    async def _visit(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._making is None:
            self._making = asyncio.create_task(self._make())
        studio: Callable[[Scope, Receive, Send], Awaitable[None]] = await asyncio.shield(
            self._making
        )
        visit = asyncio.ensure_future(studio(scope, receive, send))
        self._open.add(visit)
        try:
            await asyncio.wait({visit})
        finally:
            visit.cancel()
            self._open.discard(visit)
        if not visit.cancelled():
            visit.result()

    async def _make(self) -> ASGIApp:
        app = await asyncio.to_thread(self._build)
        await self._life.enter_async_context(app.router.lifespan_context(app))
        return BodyLimit(app, self._settings.max_body_bytes, self._settings.request_timeout)

    def _build(self) -> FastAPI:
        from atelier.studio.app import studio_app
        from atelier.studio.client import EndpointClient

        endpoint = EndpointClient(self._url, trust_env=False)
        return studio_app([endpoint], self._settings.max_body_bytes)
