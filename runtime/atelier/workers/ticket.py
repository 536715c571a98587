"""A request in the front: where it is, how far it got, and who hears of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atelier.errors import AtelierError, DeadlineExceeded
from atelier.events import Event, Failed, Finished, Image, Queued, Started, Step, Warned
from atelier.images.request import ImageRequest

if TYPE_CHECKING:
    from atelier.workers.handle import WorkerHandle


@dataclass(eq=False)
class Ticket:
    """One admitted request. `deadline` is a `time.monotonic()` value; `work` is in pixel steps.

    A worker that dies takes no ticket with it: the seed is in the request, so the pictures are
    drawn again elsewhere and come out equal. What was told already is not told twice.
    """

    number: int
    request: ImageRequest
    deadline: float
    work: float
    listeners: tuple[Callable[[Event], None], ...]
    admitted: asyncio.Future[None]
    since: float = field(default_factory=time.monotonic)
    worker: WorkerHandle | None = None
    timer: asyncio.TimerHandle | None = None
    deaths: int = 0
    started: bool = False
    ended: bool = False
    step: int = 0
    total: int = 0
    told_start: bool = False
    warnings: set[str] = field(default_factory=set)
    pictures: set[int] = field(default_factory=set)

    @property
    def remaining(self) -> float:
        """The work that is left."""
        return self.work * (1 - self.step / self.total) if self.total else self.work

    def admit(self, position: int, wait_s: float) -> None:
        """The request fits; `Queued` is its first event."""
        if not self.admitted.done():
            self.admitted.set_result(None)
            self.emit(Queued(position, wait_s))

    def refuse(self, error: AtelierError) -> None:
        """The request is not taken: an exception for who waits for admission, else a last event."""
        if not self.admitted.done():
            self.ended = True
            self.admitted.set_exception(error)
        else:
            self.emit(Failed(error))

    def hear(self, event: Event) -> None:
        """An event of the worker that has this request now."""
        if isinstance(event, Queued):  # the front's own word is the one that counts
            return
        if isinstance(event, Started):
            self.started = True
            if self.told_start:
                return
            self.told_start = True
        elif isinstance(event, Warned):
            if event.message in self.warnings:
                return
            self.warnings.add(event.message)
        elif isinstance(event, Step):
            self.step, self.total = event.index, event.total
        elif isinstance(event, Image):
            if event.index in self.pictures:
                return
            self.pictures.add(event.index)
        self.emit(event)

    def emit(self, event: Event) -> None:
        """Tell everyone who listens."""
        self.ended = self.ended or isinstance(event, Finished | Failed)
        for listener in self.listeners:
            listener(event)

    def start_over(self) -> None:
        """Its worker is gone: back to the beginning."""
        self.worker = None
        self.started = False
        self.step = self.total = 0

    def deadline_error(self) -> DeadlineExceeded:
        """What an overdue request is told."""
        waited = time.monotonic() - self.since
        progress = (
            f"{self.step} of {self.total or '?'} steps were done"
            if self.started
            else "it was still queued"
        )
        return DeadlineExceeded(f"the request's time was up after {waited:.1f} s; {progress}")

    def describe(self) -> dict[str, Any]:
        """For the model's metadata: progress, nothing of what is drawn."""
        return {"step": self.step, "total_steps": self.total}
