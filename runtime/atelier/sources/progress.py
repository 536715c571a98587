"""How far a download is: one count for all its threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, from any thread, one call at a time."""


class Counter:
    """Adds up bytes and tells `progress`."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._done = 0
        self._progress = progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count bytes; negative ones are taken back, as when a piece is fetched again."""
        with self._lock:
            self._done += count
            if self._progress:
                self._progress(self._done, self._total)
