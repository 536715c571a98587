"""`GET /images/{name}`: stored pictures over HTTP, whole or a range of them. There is no list: a
name that cannot be guessed is the permission."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from atelier.agents.store import PictureStore, StoredPicture
from atelier.errors import NotFound, StoreFailed
from atelier.protocols.http.error_bodies import error_response

RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


def picture_route(store: PictureStore) -> Callable[[Request], Awaitable[Response]]:
    """The handler of GET and HEAD over this store."""

    async def picture(request: Request) -> Response:
        try:
            found = await asyncio.to_thread(store.find, request.path_params["name"])
            return await _answer(request, store, found)
        except (NotFound, StoreFailed) as error:
            return error_response(request, error)

    return picture


async def _answer(request: Request, store: PictureStore, found: StoredPicture) -> Response:
    tag, left = f'"{found.name}"', max(0, int(store.expires(found) - time.time()))
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": f"private, immutable, max-age={left}",
        "Content-Disposition": f'inline; filename="{found.name}"',
        "ETag": tag,
        "X-Content-Type-Options": "nosniff",
    }
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    start, end, status = 0, found.size, 200
    wanted = request.headers.get("range", "")
    if wanted and request.headers.get("if-range", tag) == tag:
        part = byte_range(wanted, found.size)
        if part is None:
            return Response(
                status_code=416, headers=headers | {"Content-Range": f"bytes */{found.size}"}
            )
        if part != (0, found.size):
            (start, end), status = part, 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{found.size}"
    if request.method == "HEAD":
        headers["Content-Length"] = str(end - start)
        return Response(status_code=status, headers=headers, media_type=found.media_type)
    data = await asyncio.to_thread(store.read, found, start, end)
    return Response(data, status, headers, found.media_type)


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last that a Range header asks for; None if there are none
    such. Several ranges, and other units, are answered with everything (RFC 9110, section 14.2)."""
    match = RANGE.fullmatch(header.replace(" ", ""))
    if not match or match.group(1) == match.group(2) == "":
        return 0, size
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
    return (start, end) if start < end else None
