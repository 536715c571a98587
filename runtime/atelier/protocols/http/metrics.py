"""`/metrics` for Prometheus: this server's own, and after them those of a child engine.

They are rendered in a thread of their own: thousands of lines would hold up the event loop, and the
threads that encode pictures may all be taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from prometheus_client.exposition import choose_encoder

ChildMetrics = Callable[[], Awaitable[str]]


def router(child: ChildMetrics | None = None) -> APIRouter:
    """`GET /metrics`; `child` gives the text of the child engine's. Together they are plain text
    whatever is asked for."""
    routes = APIRouter()
    renderer = ThreadPoolExecutor(1, "metrics")

    @routes.get("/metrics")
    async def metrics(request: Request) -> Response:
        encoder, kind = choose_encoder(request.headers.get("accept", ""))
        theirs = await child() if child is not None else ""
        if theirs:
            encoder, kind = generate_latest, CONTENT_TYPE_LATEST
        ours = await asyncio.get_running_loop().run_in_executor(renderer, encoder, REGISTRY)
        return Response(ours + theirs.encode(), headers={"Content-Type": kind})

    return routes
