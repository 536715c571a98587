"""Runs the MCP server: over stdio for one assistant on this machine, or over streamable HTTP with
the stored pictures beside it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

# Its own handler writes in a form of its own; our log takes its lines instead.
os.environ.setdefault("FASTMCP_LOG_ENABLED", "false")

import uvicorn
from fastmcp import FastMCP
from starlette.requests import Request
from starlette.responses import JSONResponse

from atelier import __version__
from atelier.agents.callers import ResponseEnd, http_request
from atelier.agents.endpoint import PictureEndpoint
from atelier.agents.guidance import INSTRUCTIONS, add_prompts, add_resources
from atelier.agents.links import PictureLinks
from atelier.agents.picture_routes import picture_route
from atelier.agents.store import PictureStore, keep_clean
from atelier.agents.stores import open_store
from atelier.agents.toolbox import Toolbox
from atelier.serving.middleware import guarded
from atelier.settings import Settings

log = logging.getLogger(__name__)

PATH = "/mcp"


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[PictureEndpoint, PictureStore]]:
    """The endpoint's client and the store, cleaned by one task as long as the block lasts.

    Raises:
        StartError: the store cannot be had.
    """
    store = open_store(settings)
    endpoint = PictureEndpoint(settings)
    cleaning = asyncio.create_task(keep_clean(store))
    try:
        yield endpoint, store
    finally:
        cleaning.cancel()
        await endpoint.close()


def build(settings: Settings, endpoint: PictureEndpoint, store: PictureStore) -> FastMCP:
    """The server with its tools, resources, prompts, and the HTTP routes beside them."""

    def base() -> str:
        request = http_request()
        return settings.public_url or (str(request.base_url) if request else "")

    server = FastMCP("atelier", INSTRUCTIONS, version=__version__, mask_error_details=True)
    links = PictureLinks(store, base)
    toolbox = Toolbox(settings, endpoint, store, links)
    toolbox.register(server)
    add_prompts(server)
    add_resources(server, store, links, toolbox.recent)
    server.custom_route("/images/{name}", ["GET", "HEAD"])(picture_route(store))

    @server.custom_route("/health", ["GET"])
    async def health(request: Request) -> JSONResponse:
        """That this process answers; the endpoint has probes of its own."""
        return JSONResponse({"status": "ready"})

    return server


async def serve_stdio(settings: Settings) -> None:
    """Serve one client over standard input and output, until it closes them or sends a signal."""
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with opened(settings) as (endpoint, store):
        server = build(settings, endpoint, store)
        serving = asyncio.create_task(server.run_stdio_async(show_banner=False))
        signalled = asyncio.create_task(ended.wait())
        await asyncio.wait({serving, signalled}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            try:
                serving.result()
            except* BrokenPipeError:
                log.info("the client went away")
            return
        await endpoint.close()
        os._exit(0)  # a thread waits for input that may never come, and would be waited for


async def serve_http(settings: Settings, host: str, port: int) -> None:
    """Serve clients over HTTP until SIGTERM; work that runs then has DRAIN_SECONDS to end."""
    # uvicorn drains at a signal, then hands it to what was there before.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if not settings.api_keys and not _is_loopback(host):
        log.warning("API_KEYS is not set: everybody who reaches %s:%d may draw", host, port)
    async with opened(settings) as (endpoint, store):
        server = build(settings, endpoint, store)
        # On loopback a browser's page may call by a name of its own making; only ours are answered.
        public = urlsplit(settings.public_url).hostname
        inner = server.http_app(
            path=PATH,
            host_origin_protection="auto",
            allowed_hosts=[public] if public and _is_loopback(host) else None,
            allowed_origins=settings.allowed_origins or None,
        )
        app = guarded(ResponseEnd(inner), settings)
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            lifespan="on",
            http="h11",  # which bounds headers, and needs no extra of ours
            timeout_graceful_shutdown=max(1, int(settings.drain_seconds)),
        )
        await uvicorn.Server(config).serve()


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def run(settings: Settings, http: bool, host: str, port: int) -> None:
    """Serve until the client or a signal ends it."""
    asyncio.run(serve_http(settings, host, port) if http else serve_stdio(settings))
