"""Where drawn pictures are kept for a while: under names that cannot be guessed, until they expire
or give way to newer ones. `file_store.py` and `s3_store.py` say how.

A name is its picture's permission and never means another one, so it is all that readers need, and
all that is checked before it becomes a path or a key.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from atelier.errors import NotFound, StoreFailed

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9_-]{32}\.(png|jpeg|webp)")
RANDOM_BYTES = 24
"""Of a name: 32 characters for URLs, 192 bits."""

LONGEST_PAUSE_SECONDS = 300.0


@dataclass(frozen=True)
class StoredPicture:
    """A picture in a store. `created` is in seconds since the epoch."""

    name: str
    size: int
    created: float

    @property
    def media_type(self) -> str:
        return media_type(self.name)


def media_type(name: str) -> str:
    """The media type that a name's ending stands for."""
    return f"image/{name.rpartition('.')[2]}"


class PictureStore(ABC):
    """A store, safe for threads; its methods block. Holds pictures for `seconds`, and at most
    `max_bytes` of them as far as it alone writes there."""

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self.seconds = seconds
        self._max_bytes = max_bytes
        self._bytes = 0
        self._writing: dict[str, int] = {}
        self._turn = threading.Condition()

    def put(self, data: bytes, kind: str) -> StoredPicture:
        """Keep a picture under a new name. The oldest give way. Under its name it is whole, or not
        there.

        Args:
            kind: png, jpeg or webp.

        Raises:
            StoreFailed: it is larger than the whole store, or the store cannot be written.
        """
        size = len(data)
        if size > self._max_bytes:
            raise StoreFailed(
                f"the picture has {size} bytes, more than RESULT_BYTES={self._max_bytes}; ask for"
                " a smaller one"
            )
        picture = StoredPicture(f"{secrets.token_urlsafe(RANDOM_BYTES)}.{kind}", size, time.time())
        with self._turn:
            self._turn.wait_for(lambda: sum(self._writing.values()) + size <= self._max_bytes)
            self._writing[picture.name] = size
        written = 0
        try:
            with self._turn:
                if self._bytes + sum(self._writing.values()) > self._max_bytes:
                    self._clean()
            self._write(picture.name, data)
            written = size
        finally:
            with self._turn:
                del self._writing[picture.name]
                self._bytes += written
                self._turn.notify_all()
        return picture

    def find(self, name: str) -> StoredPicture:
        """The picture of that name.

        Raises:
            NotFound: no such name, or it has expired or given way.
            StoreFailed: the store cannot be read.
        """
        picture = self._look(name) if NAME.fullmatch(name) else None
        if picture is None or self.expires(picture) <= time.time():
            raise self._gone(name)
        return picture

    def read(self, picture: StoredPicture, start: int = 0, end: int | None = None) -> bytes:
        """The bytes from `start` up to `end`.

        Raises:
            NotFound: it has gone since it was found.
            StoreFailed: the store cannot be read, or broke off.
        """
        end = picture.size if end is None else end
        data = self._read(picture.name, start, end)
        if data is None:
            raise self._gone(picture.name)
        if len(data) != end - start:
            raise StoreFailed(
                f"{picture.name}: the store gave {len(data)} of {end - start} bytes; try again"
            )
        return data

    def expires(self, picture: StoredPicture) -> float:
        """When it goes, in seconds since the epoch."""
        return picture.created + self.seconds

    def clean(self) -> None:
        """Remove what has expired and what is too much.

        Raises:
            StoreFailed: the store cannot be listed or written.
        """
        with self._turn:
            self._clean()

    def _clean(self) -> None:
        room = sum(self._writing.values())
        kept = [picture for picture in self._entries() if picture.name not in self._writing]
        oldest_first = sorted(kept, key=lambda picture: picture.created)
        total = sum(picture.size for picture in oldest_first)
        now = time.time()
        leaving = []
        for picture in oldest_first:
            if self.expires(picture) <= now or total + room > self._max_bytes:
                leaving.append(picture.name)
                total -= picture.size
        if leaving:
            self._remove(leaving)
        self._bytes = total

    def _gone(self, name: str) -> NotFound:
        return NotFound(
            f"picture {name[:80]!r} is not here; pictures stay for {self.seconds:g} s, or less"
            " under load"
        )

    @abstractmethod
    def link(self, picture: StoredPicture) -> str:
        """A URL by which this machine's user, or any holder, reads it without an HTTP side of
        ours."""

    @abstractmethod
    def _write(self, name: str, data: bytes) -> None: ...

    @abstractmethod
    def _look(self, name: str) -> StoredPicture | None: ...

    @abstractmethod
    def _read(self, name: str, start: int, end: int) -> bytes | None: ...

    @abstractmethod
    def _entries(self) -> Iterable[StoredPicture]: ...

    @abstractmethod
    def _remove(self, names: list[str]) -> None: ...


async def keep_clean(store: PictureStore) -> None:
    """Clean the store again and again, until cancelled."""
    pause = min(LONGEST_PAUSE_SECONDS, max(0.2, store.seconds / 4))
    while True:
        try:
            await asyncio.to_thread(store.clean)
        except StoreFailed as error:
            log.warning("pictures are not cleaned up: %s", error)
        await asyncio.sleep(pause)
