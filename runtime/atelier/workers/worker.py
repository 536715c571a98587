"""The worker process: loads a model, and runs what the front sends.

The main thread runs an event loop; one thread reads from the front, one writes to it. When the
front goes away, the worker ends at once. What is asked and answered differs by kind of model:
`image_work.py` and `text_work.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import signal
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from atelier import logs
from atelier.errors import GenerationFailed, StartError
from atelier.hardware.heap import give_back_freed_memory
from atelier.hardware.ranks import on_processor
from atelier.settings import Settings
from atelier.workers import messages as m
from atelier.workers.placement import devices_here

log = logging.getLogger(__name__)

BEAT_S = 0.5
CPU_NICENESS = 5
"""Of a worker that computes on the processor."""


class Outbox:
    """Messages to the front. What waits together goes as one list: many tokens, one write."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._write, name="to front", daemon=True).start()

    def put(self, *messages: Any) -> None:
        """Send messages; never blocks."""
        self._waiting.put(messages)

    def _write(self) -> None:
        while True:
            batch = [*self._waiting.get()]
            while not self._waiting.empty():
                batch.extend(self._waiting.get())
            try:
                self._send(batch)
            except OSError:  # the front is gone
                os._exit(0)

    def _send(self, batch: list[Any]) -> None:
        """Send all; what cannot travel is refused in words, so that nobody waits for it."""
        try:
            self._connection.send(batch)
        except OSError:
            raise
        except Exception:  # pickle raises what the object's class chose
            for message in batch:
                try:
                    self._connection.send([message])
                except OSError:
                    raise
                except Exception as error:
                    log.exception("a message cannot be sent to the front")
                    if (number := getattr(message, "number", None)) is not None:
                        told = f"{type(message).__name__}: {error}"
                        self._connection.send([m.Refused(number, GenerationFailed(told))])


class ModelWork(Protocol):
    """A model in a worker."""

    @property
    def progress(self) -> str:
        """What the start is doing."""

    def load(self) -> None:
        """Bring the model up. Blocks; raises StartError."""

    def traits(self) -> dict[str, Any]:
        """What the front must know of a loaded model."""

    def device(self) -> str:
        """Where it runs."""

    def take(self, message: Any) -> None:
        """A message about a request; called in the event loop."""

    def beat(self) -> m.Beat:
        """How it is."""

    def close(self) -> None:
        """Stop. Blocks."""


class Worker:
    """One model, served to the front."""

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        kind: str,
        name: str,
        group: tuple[list[Connection], Path | None],
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._outbox = Outbox(connection)
        self._work = _work(kind, settings, self._outbox, name, group)

    async def run(self) -> None:
        """Load, then serve until told to stop."""
        self._loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        threading.Thread(target=self._read, args=(stopped,), name="from front", daemon=True).start()
        beats = self._loop.create_task(self._beat())
        try:
            await asyncio.to_thread(self._work.load)
        except StartError as error:
            self._outbox.put(m.Unable(error))
            await stopped.wait()
            return
        if on_processor(self._settings):
            _give_way()
        traits, device = self._work.traits(), self._work.device()
        await asyncio.to_thread(give_back_freed_memory)
        self._outbox.put(m.ModelLoaded(traits, device, devices_here(self._settings)))
        await stopped.wait()
        beats.cancel()
        await asyncio.to_thread(self._work.close)

    def _read(self, stopped: asyncio.Event) -> None:
        """The thread that reads from the front."""
        try:
            while True:
                message = self._connection.recv()
                if isinstance(message, m.Stop):
                    self._loop.call_soon_threadsafe(stopped.set)
                else:
                    self._loop.call_soon_threadsafe(self._work.take, message)
        except (EOFError, OSError):  # the front is gone: nobody wants the results
            os._exit(0)

    async def _beat(self) -> None:
        shown = ""
        while True:
            if self._work.progress != shown:
                shown = self._work.progress
                self._outbox.put(m.Loading(shown))
            self._outbox.put(self._work.beat())
            await asyncio.sleep(BEAT_S)


def _give_way() -> None:
    """Lower the priority of all threads, and so of those that they start: a probe of the front must
    not wait for the end of a step to get a core. Linux has a priority for each thread; elsewhere
    nothing is done."""
    for thread in Path("/proc/self").glob("task/*"):
        with suppress(OSError):  # it has just ended
            os.setpriority(os.PRIO_PROCESS, int(thread.name), CPU_NICENESS)


def _work(
    kind: str,
    settings: Settings,
    outbox: Outbox,
    name: str,
    group: tuple[list[Connection], Path | None],
) -> ModelWork:
    if kind == "text":
        from atelier.workers.text_work import TextWork

        return TextWork(settings, outbox.put)
    from atelier.workers.image_work import ImageWork

    return ImageWork(settings, outbox.put, name, *group)


def main(
    connection: Connection,
    settings: Settings,
    kind: str,
    name: str,
    group: tuple[list[Connection], Path | None],
) -> None:
    """The process's body. Signals are the front's business: it tells its workers when to stop.
    `group` are the pipes to the followers, and the file that they meet at."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logs.set_up(settings, worker=name)
    log.debug("worker %s starts", name)
    asyncio.run(Worker(connection, settings, kind, name, group).run())
