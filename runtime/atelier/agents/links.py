"""From stored pictures to what is told of them, and back: names, URLs and resource URIs, and the
input pictures of an edit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from atelier.agents.endpoint import PictureEndpoint
from atelier.agents.store import NAME, PictureStore, StoredPicture
from atelier.errors import InvalidRequest, NotFound, PayloadTooLarge
from atelier.protocols.http.remote import picture_bytes
from atelier.settings import Settings

SCHEME = "atelier://pictures/"
"""Resource URIs: this and a name."""


class PictureLinks:
    """Names the pictures of one store. `base` is the URL that `/images/{name}` lies below, empty
    where nothing of ours serves HTTP."""

    def __init__(self, store: PictureStore, base: Callable[[], str]) -> None:
        self._store = store
        self._base = base

    def url(self, picture: StoredPicture) -> str:
        """Where the picture can be seen: on our HTTP side, else as the store says."""
        base = self._base().rstrip("/")
        return f"{base}/images/{picture.name}" if base else self._store.link(picture)

    def uri(self, picture: StoredPicture) -> str:
        """The picture as a resource."""
        return SCHEME + picture.name

    def find(self, reference: str) -> StoredPicture | None:
        """The stored picture that a name, a URI or a URL of ours means; None if it is none of
        them. Blocks.

        Raises:
            NotFound: it is one, but the picture is gone.
        """
        name = reference.removeprefix(SCHEME).partition("?")[0].rpartition("/")[2]
        if not NAME.fullmatch(name):
            return None
        if reference in (name, SCHEME + name):
            return self._store.find(name)
        bare = reference.partition("?")[0]  # a presigned URL ends in a signature
        named = StoredPicture(name, 0, 0)
        if bare == self.url(named).partition("?")[0]:
            return self._store.find(name)
        return None


class InputPictures:
    """Brings the pictures that an edit is given. Nothing is fetched by a URL but from the store,
    from the endpoint, and from public hosts that ALLOWED_IMAGE_HOSTS names."""

    def __init__(
        self,
        settings: Settings,
        store: PictureStore,
        links: PictureLinks,
        endpoint: PictureEndpoint,
    ) -> None:
        self._settings = settings
        self._store = store
        self._links = links
        self._endpoint = endpoint

    async def read(self, reference: str, where: str) -> bytes:
        """The bytes of a picture given as name, resource URI, URL or base64.

        Args:
            where: the argument, for messages.

        Raises:
            InvalidRequest: it is none of these, or its host is not allowed.
            PayloadTooLarge: its text is larger than MAX_BODY_BYTES.
            NotFound: it was a picture of ours and is gone.
        """
        reference = reference.strip()
        limit = self._settings.max_body_bytes
        if len(reference) > limit:
            raise PayloadTooLarge(f"{where}: the picture is larger than MAX_BODY_BYTES={limit}")
        found = await asyncio.to_thread(self._links.find, reference)
        if found is not None:
            return await asyncio.to_thread(self._store.read, found)
        if reference.startswith(SCHEME):
            raise NotFound(f"{where}: {reference[:100]!r} is no picture of this server")
        if reference.startswith("file:"):
            raise InvalidRequest(
                f"{where}: files are not read, but for pictures of this server; send base64", where
            )
        own = await self._endpoint.file(reference)
        if own is not None:
            return own
        return await asyncio.to_thread(picture_bytes, reference, where, self._settings)
