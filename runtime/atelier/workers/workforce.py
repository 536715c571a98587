"""The life of the workers: started, watched, restarted with back-off, given up, stopped.

What becomes of a dead worker's requests is the pool's business, which is told of every end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from atelier.errors import AtelierError, StartError
from atelier.settings import Settings
from atelier.workers import messages as m
from atelier.workers.handle import Kind, WorkerHandle
from atelier.workers.placement import place, workers_wanted

log = logging.getLogger(__name__)

MOST_DEATHS = 5
"""In a row, without a request finished between them; then the worker is given up."""

BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Before each restart of such a row."""

WATCH_S = 0.25


class Workforce:
    """All worker processes of a server. For one event loop."""

    def __init__(
        self,
        settings: Settings,
        kind: Kind,
        *,
        hear: Callable[[WorkerHandle, Any], None],
        lost: Callable[[WorkerHandle], None],
        beyond_repair: Callable[[AtelierError], None],
    ) -> None:
        """`hear` takes messages about requests, `lost` is told when a worker's process is gone, and
        `beyond_repair` when none can be brought back after it has served."""
        self.workers: list[WorkerHandle] = []
        self._settings = settings
        self._kind: Kind = kind
        self._hear_request = hear
        self._lost = lost
        self._beyond_repair = beyond_repair
        self._deaths: dict[int, int] = {}
        self._given_up: set[int] = set()
        self._wanted = workers_wanted(settings) if kind == "image" else 1
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the workers and wait for the first that can serve.

        Raises:
            StartError: none can; the reason is the first one's.
        """
        for number in range(self._wanted):
            self._launch(number)
        self._watcher = asyncio.create_task(self._watch())
        await self._first

    @property
    def ready(self) -> list[WorkerHandle]:
        """Workers that serve now."""
        return [worker for worker in self.workers if worker.state == "ready"]

    @property
    def progress(self) -> str:
        """What the start, or the restart, is doing."""
        if self.ready:
            return "ready"
        return next((worker.progress for worker in self.workers), "not started")

    def proved(self, worker: WorkerHandle) -> None:
        """A request was finished: whatever ended this worker before is over."""
        self._deaths[worker.number] = 0

    def interrupt(self) -> None:
        """The server is to stop: nothing is restarted, and nobody waits for the start any more."""
        self._stopping = True
        if not self._first.done():
            self._first.set_exception(StartError("the server was stopped while it loaded"))

    async def stop(self) -> None:
        """End all workers: those that serve in order, those that still load at once."""
        self.interrupt()
        if self._watcher:
            self._watcher.cancel()
        loading = [worker for worker in self.workers if worker.state == "starting"]
        for worker in self.workers:
            worker.stop()
        for worker in loading:
            if worker.process.pid is not None:
                worker.process.kill()
        for worker in self.workers:
            await asyncio.to_thread(worker.join, 3.0)

    def _launch(self, number: int) -> None:
        where = place(self._settings, number, self._wanted)
        handle = WorkerHandle(number, where, self._settings, self._kind, self._hear, self._lose)
        if number < len(self.workers):
            self.workers[number] = handle
        else:
            self.workers.append(handle)

    def _restart(self, number: int) -> None:
        if not self._stopping:
            self._launch(number)

    def _hear(self, worker: WorkerHandle, message: Any) -> None:
        if isinstance(message, m.Loading):
            worker.progress = message.progress
        elif isinstance(message, m.ModelLoaded):
            self._welcome(worker, message)
        elif isinstance(message, m.Unable):
            worker.stop()
            self._give_up(worker.number, message.error.message, message.error)
        else:
            self._hear_request(worker, message)

    def _welcome(self, worker: WorkerHandle, loaded: m.ModelLoaded) -> None:
        worker.state, worker.progress = "ready", "ready"
        worker.traits, worker.device = loaded.traits, loaded.device or worker.device
        growing = self._kind == "image" and self._settings.data_parallel_size is None
        if growing and loaded.devices > self._wanted:
            log.info("%d devices: a worker for each", loaded.devices)
            self._wanted = loaded.devices
            for number in range(1, self._wanted):
                self._launch(number)
        if not self._first.done():
            self._first.set_result(None)
        self._hear_request(worker, loaded)

    def _lose(self, worker: WorkerHandle) -> None:
        """A worker's process is gone; unless it was told to go, another takes its place."""
        if worker is not self.workers[worker.number]:
            return
        self._lost(worker)
        if worker.state == "stopped" or self._stopping:
            return
        number, code = worker.number, worker.process.exitcode
        deaths = self._deaths[number] = self._deaths.get(number, 0) + 1
        log.error("worker %s ended with code %s", worker.name, code)
        if deaths >= MOST_DEATHS:
            self._give_up(number, f"it died {deaths} times in a row, last with code {code}")
        else:
            delay = BACKOFF_S[min(deaths - 1, len(BACKOFF_S) - 1)]
            asyncio.get_running_loop().call_later(delay, self._restart, number)

    def _give_up(self, number: int, reason: str, error: AtelierError | None = None) -> None:
        log.error("worker %d is given up: %s", number, reason)
        self._given_up.add(number)
        if len(self._given_up) < self._wanted:
            return
        error = error or StartError(f"no worker can be brought back: {reason}")
        if self._first.done():
            self._beyond_repair(error)
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
