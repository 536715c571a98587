"""How long the device loop has been at what it does now, by which a hang is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pulse:
    """Written by the device loop, read by any thread. Seconds."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._since: float | None = None

    @contextmanager
    def beat(self) -> Iterator[None]:
        """One piece of work of the loop; pieces within a piece count for themselves."""
        outer, self._since = self._since, time.monotonic()
        began = self._since
        try:
            yield
        finally:
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self._since = time.monotonic() if outer is not None else None

    def busy_s(self) -> float:
        """Of the piece at work; 0 between two."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since
