"""Seconds that calls keep the device busy. A GPU works on after a call has returned, so there the
device is asked, later and without waiting for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

LOOK_AGAIN_S = 0.02


@dataclass
class Lap:
    """What is timed; whoever wants the seconds sets `tell` before it ends."""

    tell: Callable[[float], None] | None = None


class Stopwatch:
    """Used by one thread."""

    def __init__(self) -> None:
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event, Callable[[float], None]]] = (
            deque()
        )

    @contextmanager
    def timing(self) -> Iterator[Lap]:
        """Time what is inside and tell the seconds: at once on the CPU, at a later `collect` on a
        GPU; never if it raises."""
        lap = Lap()
        if not torch.cuda.is_available():
            began = time.monotonic()
            yield lap
            if lap.tell is not None:
                lap.tell(time.monotonic() - began)
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield lap
        end.record()
        if lap.tell is not None:
            self._pending.append((begin, end, lap.tell))

    @property
    def due_s(self) -> float | None:
        """When to `collect` at the latest by somebody who has nothing else to do; None if nothing
        is pending."""
        return LOOK_AGAIN_S if self._pending else None

    def collect(self) -> None:
        """Tell of all calls that the device is done with."""
        while self._pending and self._pending[0][1].query():
            begin, end, tell = self._pending.popleft()
            tell(begin.elapsed_time(end) / 1000)
