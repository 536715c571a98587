"""The worker process: loads the model, and runs what the front sends.

The engine inside is the one that `atelier generate` uses in its own process. The main thread runs
an event loop; one thread reads from the front, one writes to it. When the front goes away, the
worker ends at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import re
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any

from atelier import logs
from atelier.errors import AtelierError, GenerationFailed, StartError
from atelier.events import Event, Failed, Started
from atelier.images.observer import SilentImageObserver
from atelier.settings import Settings
from atelier.streams import EventStream
from atelier.workers import messages as m
from atelier.workers.placement import devices_here

log = logging.getLogger(__name__)

BEAT_S = 0.5
DEVICE_LOST = re.compile(r"CUDA error|device-side assert|illegal memory access|NCCL error", re.I)
"""What a device says that answers nothing any more in this process; out of memory is not among it.
https://docs.nvidia.com/cuda/cuda-runtime-api: sticky errors corrupt the context."""

LOST_CODE = 75
"""Exit code of a worker whose device is lost: EX_TEMPFAIL of sysexits.h."""


class Outbox:
    """Messages to the front. What waits together goes as one list: many tokens, one write."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._write, name="to front", daemon=True).start()

    def put(self, message: Any) -> None:
        """Send a message; never blocks."""
        self._waiting.put(message)

    def _write(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while not self._waiting.empty():
                batch.append(self._waiting.get())
            try:
                self._connection.send(batch)
            except OSError:  # the front is gone
                os._exit(0)


class Reporter(SilentImageObserver):
    """The engine's observer: what it is told goes to the front, which has the metrics."""

    def __init__(self, outbox: Outbox, worker: str) -> None:
        self._outbox = outbox
        self._worker = worker

    def call(
        self,
        stage: str,
        seconds: float,
        shape: str,
        rows: int,
        requests: int,
        worker: str = "0",
    ) -> None:
        told = (stage, seconds, shape, rows, requests, self._worker)
        self._outbox.put(m.Observed("call", told))

    def loaded(self, stage: str, seconds: float) -> None:
        self._outbox.put(m.Observed("loaded", (stage, seconds)))

    def embedding(self, hit: bool) -> None:
        self._outbox.put(m.Observed("embedding", (hit,)))

    def stacking(self, pipeline: str, module: str, stacked: bool) -> None:
        self._outbox.put(m.Observed("stacking", (pipeline, module, stacked)))

    def out_of_memory(self) -> None:
        self._outbox.put(m.Observed("out_of_memory", ()))


class Worker:
    """One model, served to the front."""

    def __init__(self, connection: Connection, settings: Settings, name: str) -> None:
        from atelier.images.model import ImageModel

        self._connection = connection
        self._settings = settings
        self._outbox = Outbox(connection)
        self._model = ImageModel(settings, Reporter(self._outbox, name))
        self._streams: dict[int, EventStream] = {}
        self._begun: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Load, then serve until told to stop."""
        self._loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        threading.Thread(target=self._read, args=(stopped,), name="from front", daemon=True).start()
        beats = self._loop.create_task(self._beat())
        try:
            await asyncio.to_thread(self._model.load)
        except StartError as error:
            self._outbox.put(m.Unable(error))
            await stopped.wait()
            return
        device = str(self._model.metadata().get("memory_plan", {}).get("device", ""))
        loaded = m.Loaded(self._traits(), device, devices_here(self._settings))
        self._outbox.put(loaded)
        await stopped.wait()
        beats.cancel()
        await asyncio.to_thread(self._model.close)

    def _traits(self) -> dict[str, Any]:
        """What protocols ask of a loaded model."""
        model = self._model
        return {
            "metadata": model.metadata(),
            "default_steps": model.default_steps,
            "gives_alpha": model.gives_alpha,
        }

    def _read(self, stopped: asyncio.Event) -> None:
        """The thread that reads from the front."""
        try:
            while True:
                message = self._connection.recv()
                if isinstance(message, m.Stop):
                    self._loop.call_soon_threadsafe(stopped.set)
                else:
                    self._loop.call_soon_threadsafe(self._take, message)
        except (EOFError, OSError):  # the front is gone: nobody wants the pictures
            os._exit(0)

    def _take(self, message: Any) -> None:
        if isinstance(message, m.Cancel):
            if stream := self._streams.get(message.number):
                stream.cancel()
        elif isinstance(message, m.Withdraw):
            self._withdraw(message.number)
        else:
            work = self._draw if isinstance(message, m.Draw) else self._check
            task = self._loop.create_task(work(message.number, message.request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _withdraw(self, number: int) -> None:
        stream = self._streams.get(number)
        if stream is not None and number not in self._begun:
            del self._streams[number]
            stream.cancel()
            self._outbox.put(m.Withdrawn(number))

    async def _check(self, number: int, request: Any) -> None:
        try:
            await asyncio.to_thread(self._model.prepare, request)
        except AtelierError as error:
            self._outbox.put(m.Refused(number, error))
        else:
            self._outbox.put(m.Admitted(number))

    async def _draw(self, number: int, request: Any) -> None:
        try:
            stream = await self._model.submit(request)
        except AtelierError as error:
            self._outbox.put(m.Refused(number, error))
            return
        except Exception as error:  # a fault of ours or of a library; the client must hear of it
            log.exception("a request could not be prepared")
            failed = GenerationFailed(f"{type(error).__name__}: {error}")
            self._outbox.put(m.Refused(number, failed))
            return
        self._streams[number] = stream
        self._outbox.put(m.Admitted(number))
        async for event in stream:
            if number not in self._streams:  # it was withdrawn
                return
            if isinstance(event, Started):
                self._begun.add(number)
            self._leave_if_lost(event)
            self._outbox.put(m.Happened(number, event))
        self._streams.pop(number, None)
        self._begun.discard(number)

    def _leave_if_lost(self, event: Event) -> None:
        """End the process if the device is lost: the front draws the pictures again elsewhere."""
        if isinstance(event, Failed) and DEVICE_LOST.search(event.error.message):
            log.error("the device is lost, the worker ends: %s", event.error.message)
            logging.shutdown()
            os._exit(LOST_CODE)

    async def _beat(self) -> None:
        shown = ""
        while True:
            if self._model.progress != shown:
                shown = self._model.progress
                self._outbox.put(m.Loading(shown))
            busy, longest = self._model.busy_s()
            self._outbox.put(m.Beat(busy, longest, self._model.device_memory()))
            await asyncio.sleep(BEAT_S)


def main(connection: Connection, settings: Settings, name: str) -> None:
    """The process's body. Signals are the front's business: it tells its workers when to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logs.set_up(settings, worker=name)
    asyncio.run(Worker(connection, settings, name).run())
