"""A text request in the front: its stream of events, and whether its answer has begun."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from atelier.streams import EventStream
from atelier.text.request import TextRequest


@dataclass(eq=False)
class TextTicket:
    """One request in the front."""

    number: int
    request: TextRequest
    stream: EventStream
    admitted: asyncio.Future[Any]
    since: float = field(default_factory=time.monotonic)
    timer: asyncio.TimerHandle | None = None
    started: bool = False

    @property
    def remaining(self) -> float:
        """Requests count alike: there is one worker."""
        return 1.0

    def describe(self) -> dict[str, Any]:
        """For the model's metadata."""
        return {"seconds": round(time.monotonic() - self.since, 1)}
