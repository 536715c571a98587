"""The requests of a server: one queue before all workers.

A request waits here and goes to a worker when that has room, shortest work first, and ageing lets
none starve; the worker with the least left to do takes it, one with the same adapters if the
difference is small. So no device is idle beside a queue. What a dying worker had is drawn again;
deadlines are kept here, whatever a worker does.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from atelier.errors import (
    AtelierError,
    Busy,
    Cancelled,
    Draining,
    GenerationFailed,
    NotReady,
)
from atelier.events import Failed
from atelier.images.request import ImageRequest
from atelier.settings import Settings
from atelier.workers import messages as m
from atelier.workers.dispatch import choose, to_give_back, urgency
from atelier.workers.handle import WorkerHandle
from atelier.workers.ticket import Ticket
from atelier.workers.workforce import Workforce

log = logging.getLogger(__name__)

GRACE_S = 0.3
"""A worker gets this long to end an overdue request itself, in better words than the front has."""


class Pool:
    """Requests and the workers they go to, for one event loop."""

    def __init__(
        self,
        settings: Settings,
        observe: Callable[[str, tuple[Any, ...]], None],
        beyond_repair: Callable[[AtelierError], None],
    ) -> None:
        """`observe` is told what engines report, `beyond_repair` when no worker can come back."""
        self._settings = settings
        self._observe = observe
        self._beyond_repair = beyond_repair
        self._workforce = Workforce(
            settings, "image", hear=self._hear, lost=self._lose, beyond_repair=self._give_up
        )
        self._numbers = itertools.count()
        self._tickets: dict[int, Ticket] = {}
        self._queue: list[Ticket] = []
        self._draining = False
        self._idle = asyncio.Event()
        self._pace: float | None = None  # seconds per pixel step of one worker

    async def start(self) -> None:
        """Start the workers and wait for the first that can serve; errors as `Workforce.start`."""
        await self._workforce.start()

    @property
    def workers(self) -> list[WorkerHandle]:
        """All workers, in order."""
        return self._workforce.workers

    @property
    def ready(self) -> list[WorkerHandle]:
        """Workers that serve now."""
        return self._workforce.ready

    @property
    def open(self) -> bool:
        """Whether requests can be taken."""
        return bool(self.ready) and not self._draining

    @property
    def progress(self) -> str:
        """What the start, a restart or the end is doing."""
        return "draining" if self._draining else self._workforce.progress

    @property
    def depth(self) -> int:
        """Requests waiting or running."""
        return len(self._tickets)

    async def drain(self, seconds: float) -> None:
        """Admit nothing more, let requests finish within `seconds`, then end the workers."""
        self._draining = True
        self._workforce.interrupt()
        if self._tickets and self.ready:
            self._idle.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), seconds)
        for ticket in list(self._tickets.values()):
            self._end(ticket, Draining("the server stopped before the picture was done"))
        await self._workforce.stop()

    async def submit(
        self,
        request: ImageRequest,
        work: float,
        seconds: float,
        listeners: tuple[Callable[[Any], None], ...],
    ) -> Ticket:
        """Admit a request: a worker with room takes it at once, else one checks it and it waits.

        Args:
            work: pixel steps.
            seconds: that it may take.

        Raises:
            Busy, Draining, NotReady: there is no place for it now.
            InvalidRequest: it does not fit the pipeline.
        """
        self.check_room()
        loop = asyncio.get_running_loop()
        ticket = Ticket(
            next(self._numbers),
            request,
            time.monotonic() + seconds,
            work,
            listeners,
            loop.create_future(),
        )
        ticket.timer = loop.call_later(seconds + GRACE_S, self._overdue, ticket)
        self._tickets[ticket.number] = ticket
        if worker := self._roomy(ticket):
            self._send(ticket, worker)
        else:
            ticket.worker = min(self.ready, key=lambda one: one.work)
            ticket.worker.send(m.Check(ticket.number, request))
        try:
            await ticket.admitted
        except BaseException:
            self._forget(ticket)
            raise
        return ticket

    def check_room(self) -> None:
        """See that one request more can be taken.

        Raises:
            Busy, Draining, NotReady: it cannot.
        """
        self.check_open()
        if self.depth >= self._settings.max_queue_size:
            raise Busy(
                f"{self.depth} requests are waiting or running"
                f" (MAX_QUEUE_SIZE={self._settings.max_queue_size})",
                max(1.0, self._wait_s()),
            )

    def check_open(self) -> None:
        """See that requests can be taken.

        Raises:
            Draining, NotReady: they cannot.
        """
        if self._draining:
            raise Draining("the server is shutting down; send the request to another replica")
        if not self.ready:
            raise NotReady(f"the model {self._settings.served_name} is not ready: {self.progress}")

    def cancel(self, ticket: Ticket) -> None:
        """The client is gone."""
        self._end(ticket, Cancelled("the request was cancelled"))

    def _hear(self, worker: WorkerHandle, message: Any) -> None:
        if isinstance(message, m.Observed):
            self._observe(message.method, message.arguments)
        elif isinstance(message, m.ModelLoaded):
            self._dispatch()
        elif ticket := self._tickets.get(message.number):
            self._follow(worker, ticket, message)

    def _lose(self, worker: WorkerHandle) -> None:
        """A worker's process is gone: what it had is drawn again, what it was asked about too."""
        orphans, worker.tickets = list(worker.tickets.values()), {}
        asked = [one for one in self._tickets.values() if one.worker is worker]
        if worker.state != "stopped":
            self._observe("worker_ended", (worker.name,))
        for ticket in asked:
            ticket.start_over()
            ticket.deaths += ticket in orphans
            if ticket.deaths > 1:  # it is likely their end
                told = "two workers ended while they drew this request"
                self._end(ticket, GenerationFailed(told))
            else:
                self._queue.append(ticket)
        self._dispatch()

    def _give_up(self, error: AtelierError) -> None:
        for ticket in list(self._tickets.values()):
            self._end(ticket, NotReady(error.message))
        self._beyond_repair(error)

    def _follow(self, worker: WorkerHandle, ticket: Ticket, message: Any) -> None:
        if isinstance(message, m.Admitted):
            ahead = len(self._tickets) - 1
            ticket.admit(ahead, self._wait_s() if ahead else 0.0)
            if ticket.number not in worker.tickets:  # it was only checked
                ticket.worker = None
                self._queue.append(ticket)
                self._dispatch()
        elif isinstance(message, m.Refused):
            ticket.refuse(message.error)
            self._forget(ticket)
        elif isinstance(message, m.Withdrawn):
            worker.tickets.pop(ticket.number, None)
            worker.withdrawing = None
            ticket.start_over()
            self._queue.append(ticket)
            self._dispatch()
        elif isinstance(message, m.Happened):
            ticket.hear(message.event)
            if ticket.started and worker.withdrawing == ticket.number:
                worker.withdrawing = None
            if ticket.ended:
                if not isinstance(message.event, Failed):
                    self._learn(worker, ticket)
                self._forget(ticket)

    def _learn(self, worker: WorkerHandle, ticket: Ticket) -> None:
        """A request was drawn: the worker is sound, and its pace is known better."""
        self._workforce.proved(worker)
        together = max(1, len(worker.tickets))
        pace = (time.monotonic() - ticket.since) / max(ticket.work, 1.0) / together
        self._pace = pace if self._pace is None else 0.8 * self._pace + 0.2 * pace

    def _wait_s(self) -> float:
        """Seconds until the work at hand is done, at the measured pace."""
        left = sum(ticket.remaining for ticket in self._tickets.values())
        return (self._pace or 0.0) * left / max(1, len(self.ready))

    def _overdue(self, ticket: Ticket) -> None:
        if ticket.ended:
            return
        served = bool(self.ready)
        late: AtelierError = ticket.deadline_error()
        self._end(ticket, late if served else NotReady(f"no worker came back: {self.progress}"))

    def _end(self, ticket: Ticket, error: AtelierError) -> None:
        if not ticket.ended:
            if ticket.worker is not None:
                ticket.worker.send(m.Cancel(ticket.number))
            ticket.refuse(error)
        self._forget(ticket)

    def _forget(self, ticket: Ticket) -> None:
        if self._tickets.pop(ticket.number, None) is None:
            return
        if not self._tickets:
            self._idle.set()
        if ticket.timer:
            ticket.timer.cancel()
        if ticket in self._queue:
            self._queue.remove(ticket)
        if ticket.worker is not None:
            if not ticket.ended:
                ticket.worker.send(m.Cancel(ticket.number))
            ticket.worker.tickets.pop(ticket.number, None)
        self._dispatch()

    def _dispatch(self) -> None:
        """Send what waits to workers that have room; an idle worker takes from a busy one."""
        for ticket in sorted(self._queue, key=urgency):
            self._queue.remove(ticket)
            worker = self._roomy(ticket)
            if worker is None:
                self._queue.append(ticket)
                break
            self._send(ticket, worker)
        if not self._queue and (found := to_give_back(self.ready)):
            victim, ticket = found
            victim.withdrawing = ticket.number
            victim.send(m.Withdraw(ticket.number))

    def _roomy(self, ticket: Ticket) -> WorkerHandle | None:
        if any(urgency(other) < urgency(ticket) for other in self._queue):
            return None
        return choose(ticket, self.ready, self._settings.max_batch_size)

    def _send(self, ticket: Ticket, worker: WorkerHandle) -> None:
        left = max(0.01, ticket.deadline - time.monotonic())
        ticket.worker = worker
        worker.tickets[ticket.number] = ticket
        worker.adapters = ticket.request.lora
        request = ticket.request.model_copy(update={"timeout": left})
        worker.send(m.DrawPicture(ticket.number, request))
