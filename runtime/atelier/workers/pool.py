"""All workers of a server and the one queue before them.

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
    StartError,
)
from atelier.events import Failed
from atelier.images.request import ImageRequest
from atelier.settings import Settings
from atelier.workers import messages as m
from atelier.workers.handle import WorkerHandle
from atelier.workers.placement import place, workers_wanted
from atelier.workers.ticket import Ticket

log = logging.getLogger(__name__)

GRACE_S = 0.3
"""A worker gets this long to end an overdue request itself, in better words than the front has."""

AGEING_S = 10.0
"""Waiting this long makes a request as urgent as one of half its work."""

MOST_DEATHS = 5
"""In a row, without a request finished between them; then the worker is given up."""

BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Before each restart of such a row."""

WATCH_S = 0.25
STICKY = 0.9
"""A worker that has the adapters already may have this much more to do: its load counts as less."""


class Pool:
    """Workers and their queue, for one event loop. `observe` is told what engines report."""

    def __init__(
        self,
        settings: Settings,
        observe: Callable[[str, tuple[Any, ...]], None],
        on_beyond_repair: Callable[[AtelierError], None],
    ) -> None:
        self.workers: list[WorkerHandle] = []
        self._settings = settings
        self._observe = observe
        self._on_beyond_repair = on_beyond_repair
        self._numbers = itertools.count()
        self._tickets: dict[int, Ticket] = {}
        self._queue: list[Ticket] = []
        self._deaths: dict[int, int] = {}
        self._given_up: set[int] = set()
        self._wanted = workers_wanted(settings)
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._draining = False
        self._idle = asyncio.Event()
        self._pace: float | None = None  # seconds per pixel step of one worker
        self._watcher: asyncio.Task[None] | None = None

    # The life of the workers

    async def start(self) -> None:
        """Start the workers and wait for the first that can serve.

        Raises:
            StartError: none can; the reason is the first one's.
        """
        for number in range(self._wanted):
            self._launch(number)
        self._watcher = asyncio.create_task(self._watch())
        await self._first

    def _launch(self, number: int) -> None:
        handle = WorkerHandle(
            number,
            place(self._settings, number, self._wanted),
            self._settings,
            self._hear,
            self._lose,
        )
        if number < len(self.workers):
            self.workers[number] = handle
        else:
            self.workers.append(handle)

    @property
    def ready(self) -> list[WorkerHandle]:
        """Workers that serve now."""
        return [worker for worker in self.workers if worker.state == "ready"]

    @property
    def depth(self) -> int:
        """Requests waiting or running."""
        return len(self._tickets)

    def _lose(self, worker: WorkerHandle) -> None:
        """A worker's process is gone: its requests go back into the queue, and it is restarted."""
        if worker is not self.workers[worker.number]:
            return
        orphans, worker.tickets = list(worker.tickets.values()), {}
        checked = [one for one in self._tickets.values() if one.worker is worker]
        checked = [one for one in checked if one not in orphans]
        if worker.state == "stopped" or self._draining:
            for ticket in orphans:
                self._end(ticket, Draining("the server stopped before the picture was done"))
            return
        self._observe("worker_ended", (worker.name,))
        number, code = worker.number, worker.process.exitcode
        self._deaths[number] = self._deaths.get(number, 0) + 1
        log.error(
            "worker %s ended with code %s; %d requests are drawn again", number, code, len(orphans)
        )
        for ticket in orphans:
            self._redraw(ticket)
        for ticket in checked:  # it was only asked about; who draws it will say
            ticket.start_over()
            self._queue.append(ticket)
        if self._deaths[number] >= MOST_DEATHS:
            self._give_up(number, f"it died {MOST_DEATHS} times in a row, last with code {code}")
        else:
            delay = BACKOFF_S[min(self._deaths[number] - 1, len(BACKOFF_S) - 1)]
            asyncio.get_running_loop().call_later(delay, self._restart, number)
        self._dispatch()

    def _restart(self, number: int) -> None:
        if not self._draining:
            self._launch(number)

    def _redraw(self, ticket: Ticket) -> None:
        """Queue a request again, once: one that ends two workers is likely their end."""
        ticket.deaths += 1
        ticket.start_over()
        if ticket.deaths > 1:
            self._end(ticket, GenerationFailed("two workers ended while they drew this request"))
        else:
            self._queue.append(ticket)

    def _give_up(self, number: int, reason: str, error: AtelierError | None = None) -> None:
        log.error("worker %s is given up: %s", number, reason)
        self._given_up.add(number)
        if len(self._given_up) < self._wanted:
            return
        error = error or StartError(f"no worker can be brought back: {reason}")
        for ticket in list(self._tickets.values()):
            self._end(ticket, NotReady(error.message))
        if self._first.done():
            self._on_beyond_repair(error)
        else:
            self._first.set_exception(error)

    async def _watch(self) -> None:
        """Kill workers that hang: silent, or at one call of the device, for too long."""
        while True:
            await asyncio.sleep(WATCH_S)
            for worker in self.ready:
                limit = max(self._settings.hang_seconds, 3 * worker.longest_s)
                if worker.silent_s() > limit:
                    worker.kill(f"no sign of progress for {worker.silent_s():.0f} s")

    async def drain(self, seconds: float) -> None:
        """Admit nothing more, let requests finish within `seconds`, then end the workers."""
        self._draining = True
        if not self._first.done():
            self._first.set_exception(StartError("the server was stopped while it loaded"))
        if self._tickets and self.ready:
            self._idle.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), seconds)
        if self._watcher:
            self._watcher.cancel()
        loading = [worker for worker in self.workers if worker.state == "starting"]
        for worker in self.workers:
            worker.stop()
        for worker in loading:
            if worker.process.pid is not None:
                worker.process.kill()
        for ticket in list(self._tickets.values()):
            self._end(ticket, Draining("the server stopped before the picture was done"))
        for worker in self.workers:
            await asyncio.to_thread(worker.join, 3.0)

    # Requests

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
        self.check_open()
        if self.depth >= self._settings.max_queue_size:
            raise Busy(
                f"{self.depth} requests are waiting or running"
                f" (MAX_QUEUE_SIZE={self._settings.max_queue_size})",
                max(1.0, self._wait_s()),
            )
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

    def check_open(self) -> None:
        """See that requests can be taken.

        Raises:
            Draining, NotReady: they cannot.
        """
        if self._draining:
            raise Draining("the server is shutting down; send the request to another replica")
        if not self.ready:
            raise NotReady(f"the model {self._settings.served_name} is not ready: {self.progress}")

    @property
    def progress(self) -> str:
        """What the start, or the restart, is doing."""
        if self.ready:
            return "ready"
        return next((worker.progress for worker in self.workers), "not started")

    def cancel(self, ticket: Ticket) -> None:
        """The client is gone."""
        self._end(ticket, Cancelled("the request was cancelled"))

    def _hear(self, worker: WorkerHandle, message: Any) -> None:
        if isinstance(message, m.Observed):
            self._observe(message.method, message.arguments)
        elif isinstance(message, m.Loading):
            worker.progress = message.progress
        elif isinstance(message, m.Loaded):
            self._welcome(worker, message)
        elif isinstance(message, m.Unable):
            worker.state = "stopped"
            worker.send(m.Stop())
            self._give_up(worker.number, message.error.message, message.error)
        elif ticket := self._tickets.get(message.number):
            self._follow(worker, ticket, message)

    def _welcome(self, worker: WorkerHandle, loaded: m.Loaded) -> None:
        worker.state, worker.progress = "ready", "ready"
        worker.traits, worker.device = loaded.traits, loaded.device or worker.device
        if self._settings.data_parallel_size is None and loaded.devices > self._wanted:
            log.info("%d devices: a worker for each", loaded.devices)
            self._wanted = loaded.devices
            for number in range(1, self._wanted):
                self._launch(number)
        if not self._first.done():
            self._first.set_result(None)
        self._dispatch()

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
        self._deaths[worker.number] = 0
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
        served = self.ready or not self.workers
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

    # Who draws what

    def _window(self, worker: WorkerHandle) -> int:
        """Requests that a worker is given at once: as many as share one denoiser call."""
        return self._settings.max_batch_size

    def _roomy(self, ticket: Ticket) -> WorkerHandle | None:
        """The worker to send a request to; none, if it is better to wait here.

        A full worker still takes what is much shorter than all that it has: its scheduler lets that
        pass at the next step.
        """
        if any(self._urgency(other) < self._urgency(ticket) for other in self._queue):
            return None
        open_ones = [
            worker
            for worker in self.ready
            if len(worker.tickets) < self._window(worker)
            or (
                len(worker.tickets) < 2 * self._window(worker)
                and 2 * ticket.work < min(other.remaining for other in worker.tickets.values())
            )
        ]

        def load(worker: WorkerHandle) -> float:
            return worker.work * (STICKY if worker.adapters == ticket.request.lora else 1.0)

        return min(open_ones, key=load, default=None)

    def _urgency(self, ticket: Ticket) -> float:
        """Less is sooner: the work that is left, less the longer it has waited."""
        waited = time.monotonic() - ticket.since
        return ticket.remaining / 2 ** (waited / AGEING_S)

    def _dispatch(self) -> None:
        """Send what waits to workers that have room; an idle worker takes from a busy one."""
        for ticket in sorted(self._queue, key=self._urgency):
            self._queue.remove(ticket)
            worker = self._roomy(ticket)
            if worker is None:
                self._queue.append(ticket)
                break
            self._send(ticket, worker)
        if not self._queue:
            self._share()

    def _share(self) -> None:
        """Have a request given back that has not begun, where another worker has nothing to do."""
        idle = [worker for worker in self.ready if not worker.tickets]
        busy = [one for one in self.ready if len(one.tickets) > 1 and one.withdrawing is None]
        if not idle or not busy:
            return
        victim = max(busy, key=lambda one: one.work)
        waiting = [
            one for one in victim.tickets.values() if not one.started and one.admitted.done()
        ]
        if waiting:
            victim.withdrawing = waiting[-1].number
            victim.send(m.Withdraw(waiting[-1].number))

    def _send(self, ticket: Ticket, worker: WorkerHandle) -> None:
        left = max(0.01, ticket.deadline - time.monotonic())
        ticket.worker = worker
        worker.tickets[ticket.number] = ticket
        worker.adapters = ticket.request.lora
        worker.send(m.Draw(ticket.number, ticket.request.model_copy(update={"timeout": left})))
