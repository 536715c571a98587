"""Results that wait to be fetched: a store bounded in bytes and in time, for picture URLs and
finished jobs.

Names are random and cannot be guessed, so a picture's URL is its own permission.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from atelier.errors import GenerationFailed, NotFound, shown

ENTRY_BYTES = 4096
"""What an entry counts for at least, so that small ones cannot pile up without end."""


@dataclass(frozen=True)
class Entry:
    """Stored bytes, their media type, and when they go, as a `time.monotonic()` value."""

    data: bytes
    media_type: str
    expires: float

    @property
    def cost(self) -> int:
        return len(self.data) + ENTRY_BYTES


class ResultStore:
    """Entries by name, oldest first. For one event loop; holds at most `max_bytes`, each for
    `seconds`."""

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self.seconds = seconds
        self._max_bytes = max_bytes
        self._entries: dict[str, Entry] = {}
        self._bytes = 0

    def put(self, data: bytes, media_type: str, suffix: str = "", name: str = "") -> str:
        """Keep `data` and return its name: `name`, or else a random word and `suffix`. The oldest
        entries give way.

        Raises:
            GenerationFailed: it is larger than the whole store.
        """
        entry = Entry(data, media_type, time.monotonic() + self.seconds)
        if entry.cost > self._max_bytes:
            raise GenerationFailed(
                f"the result has {len(data)} bytes, more than RESULT_BYTES={self._max_bytes}; ask"
                " for fewer or smaller pictures"
            )
        self.expire()
        self.remove(name)
        while self._bytes + entry.cost > self._max_bytes:
            self.remove(next(iter(self._entries)))
        name = name or secrets.token_urlsafe(24) + suffix
        self._entries[name] = entry
        self._bytes += entry.cost
        return name

    def get(self, name: str) -> Entry:
        """The entry.

        Raises:
            NotFound: it was never here, has expired, or gave way to newer ones.
        """
        self.expire()
        if name not in self._entries:
            raise NotFound(
                f"{shown(name)} is not here; results stay for {self.seconds:g} s, or less under"
                " load"
            )
        return self._entries[name]

    def remove(self, name: str) -> None:
        """Forget an entry; one that is not here is forgotten already."""
        entry = self._entries.pop(name, None)
        self._bytes -= entry.cost if entry else 0

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def expire(self) -> None:
        """Forget what is past its time: the oldest come first, so the first that stays ends it."""
        now = time.monotonic()
        while self._entries and next(iter(self._entries.values())).expires <= now:
            self.remove(next(iter(self._entries)))
