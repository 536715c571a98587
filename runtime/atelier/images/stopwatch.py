"""Seconds that calls keep the device busy. A GPU works on after a call has returned, so there the
device is asked, later and without waiting for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Used by one thread."""

    def __init__(self) -> None:
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event, Callable[[float], None]]] = (
            deque()
        )

    @contextmanager
    def timing(self, tell: Callable[[float], None]) -> Iterator[None]:
        """Time what is inside and call `tell` with the seconds: at once on the CPU, at a later
        `collect` on a GPU; never if it raises."""
        if not torch.cuda.is_available():
            began = time.monotonic()
            yield
            tell(time.monotonic() - began)
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._pending.append((begin, end, tell))

    def collect(self) -> None:
        """Tell of all calls that the device is done with."""
        while self._pending and self._pending[0][1].query():
            begin, end, tell = self._pending.popleft()
            tell(begin.elapsed_time(end) / 1000)
