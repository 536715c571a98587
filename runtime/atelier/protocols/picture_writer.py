"""What becomes of a drawn picture before it is answered: it is encoded, marked, and stored where
its request wants it. An address is told only once the store has said that the object is there."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from atelier.errors import StoreFailed
from atelier.events import Image, Preview
from atelier.images.codec import MEDIA_TYPES
from atelier.images.destination import destination
from atelier.images.encoder import PictureEncoder
from atelier.images.request import Format, ImageRequest
from atelier.protocols.http.pools import storing, writing
from atelier.settings import Settings

if TYPE_CHECKING:
    from atelier.sources.s3_objects import S3Objects

log = logging.getLogger(__name__)

RANDOM_BYTES = 24
"""Of an object's name: 32 characters for URLs, 192 bits, so that a public one is its own
permission."""

MOST_PREFIXES = 256
"""Whose clients are kept."""


@dataclass(frozen=True)
class StoredObject:
    """Where a picture lies. `expires` is when its URL ends, in seconds since the epoch; None for a
    public one."""

    prefix: str
    name: str
    url: str
    expires: int | None

    @property
    def address(self) -> str:
        return f"{self.prefix}/{self.name}"

    def told(self) -> dict[str, Any]:
        """What an answer says instead of the picture."""
        ends = {} if self.expires is None else {"expires_at": self.expires}
        return {"url": self.url, "s3": self.address} | ends


@dataclass(frozen=True)
class EncodedPicture:
    """One encoded picture, or where it is `stored`, the seed that draws it again, and the labels
    that a filter gave it."""

    data: bytes
    format: Format
    seed: int
    width: int
    height: int
    stored: StoredObject | None = None
    flags: tuple[str, ...] = ()

    @property
    def b64(self) -> str:
        return base64.b64encode(self.data).decode()

    @property
    def further(self) -> dict[str, Any]:
        """What an answer says beside the picture."""
        return {"seed": self.seed} | ({"flags": list(self.flags)} if self.flags else {})


class PictureWriter:
    """Writes what one server draws; for one event loop."""

    def __init__(self, settings: Settings) -> None:
        """
        Raises:
            SettingsError: C2PA_CERTIFICATE or C2PA_KEY cannot be used.
        """
        self._settings = settings
        self._encoder = PictureEncoder(settings)
        self._open = lru_cache(MOST_PREFIXES)(self._opened)
        self._client: Any = None
        self._undoing: set[asyncio.Future[None]] = set()
        if settings.output_url or settings.allowed_outputs:
            from atelier.sources.s3 import make_client

            self._client = make_client(settings)

    async def write(self, image: Image, request: ImageRequest) -> EncodedPicture:
        """The picture in the format that the request wants, marked, and stored if it wants that.
        Nothing of it is done on the event loop.

        Raises:
            GenerationFailed: it cannot be signed.
            StoreFailed: it cannot be stored.
        """
        data = await writing(self._encoder.encode, image, request)
        prefix = destination(request.output, self._settings)
        stored = await self._kept(data, request.format, prefix) if prefix else None
        return EncodedPicture(
            b"" if stored else data,
            request.format,
            image.seed,
            image.width,
            image.height,
            stored,
            image.flags,
        )

    async def preview(self, preview: Preview, request: ImageRequest) -> bytes:
        """A preview in the format that the request wants, which is never stored."""
        return await writing(self._encoder.encode_preview, preview, request)

    async def discard(self, pictures: Iterable[EncodedPicture]) -> None:
        """Remove stored pictures that nobody will be told of."""
        stored = [one.stored for one in pictures if one.stored]
        await asyncio.gather(*(storing(self._remove, one) for one in stored))

    async def _kept(self, data: bytes, format: Format, prefix: str) -> StoredObject:
        """Store a picture. A write that nobody waits for any more cannot be stopped; it is undone
        once it has ended."""
        write = asyncio.ensure_future(storing(self._store, data, format, prefix))
        try:
            return await asyncio.shield(write)
        except asyncio.CancelledError:
            undo = asyncio.ensure_future(self._undo(write))
            self._undoing.add(undo)
            undo.add_done_callback(self._undoing.discard)
            raise

    async def _undo(self, write: asyncio.Future[StoredObject]) -> None:
        with contextlib.suppress(StoreFailed):
            await storing(self._remove, await write)

    def _store(self, data: bytes, format: Format, prefix: str) -> StoredObject:
        name = f"{secrets.token_urlsafe(RANDOM_BYTES)}.{format.lower()}"
        objects = self._open(prefix)
        try:
            objects.put_surely(name, data, MEDIA_TYPES[format])
        except StoreFailed as error:
            log.error("a picture is not stored: %s", error)
            raise StoreFailed(
                f"the picture was drawn but could not be stored below {prefix}; the server's log"
                " says why"
            ) from None
        return StoredObject(prefix, name, *self._link(objects, name))

    def _link(self, objects: S3Objects, name: str) -> tuple[str, int | None]:
        base = self._settings.output_public_url.rstrip("/")
        if base:
            bucket = base.replace("{bucket}", objects.address.bucket)
            return f"{bucket}/{quote(objects.key(name))}", None
        from atelier.sources.s3_objects import LONGEST_LINK_SECONDS

        seconds = min(self._settings.result_seconds, LONGEST_LINK_SECONDS)
        return objects.link(name, seconds), int(time.time() + seconds)

    def _remove(self, stored: StoredObject) -> None:
        try:
            self._open(stored.prefix).remove([stored.name])
        except StoreFailed as error:
            log.warning("%s stays, though its request failed: %s", stored.address, error)

    def _opened(self, prefix: str) -> S3Objects:
        from atelier.sources.s3 import parse
        from atelier.sources.s3_objects import S3Objects

        return S3Objects(self._settings, parse(prefix, ""), "OUTPUT_URL or output", self._client)
