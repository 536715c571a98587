"""One worker process as the front sees it: started, spoken to, watched, killed.

Workers are forked from a server process that has imported the heavy libraries once, as
multiprocessing's forkserver does it: a second worker and a restarted one are there in a moment. The
front itself imports none of them.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import forkserver, reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Protocol

from atelier.errors import SettingsError
from atelier.settings import Settings
from atelier.sources.memory_folder import forget
from atelier.workers import messages as m
from atelier.workers.group import FollowerProcesses
from atelier.workers.placement import Place

log = logging.getLogger(__name__)

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = {"text": "atelier.workers.preloaded_text", "image": "atelier.workers.preloaded"}

State = Literal["starting", "ready", "lost", "stopped"]
Kind = Literal["image", "text"]

MOST_TMPDIR = 107 - len("/pymp-12345678/listener-12345678")
"""Bytes of a path in which multiprocessing puts sockets; theirs may have 107: man 7 unix."""


class Held(Protocol):
    """A request that a worker has."""

    started: bool

    @property
    def remaining(self) -> float:
        """Work that is left, in a unit of the kind of model."""

    def describe(self) -> dict[str, Any]:
        """Its progress, for people."""


def prepare(kind: Kind | None) -> None:
    """Start the process that workers are forked from; it imports while the front does. No wait.
    `kind` is None as long as nobody knows: pictures need all that language models do.

    Raises:
        SettingsError: the path of temporary files is too long for that of a socket.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > MOST_TMPDIR:
        raise SettingsError(
            f"TMPDIR={folder}: sockets of worker processes lie there, and their paths would be too"
            f" long; name a folder whose path has {MOST_TMPDIR} bytes at most"
        )
    CONTEXT.set_forkserver_preload([PRELOADED[kind or "image"], "atelier.workers.frozen"])
    forkserver.ensure_running()


class WorkerHandle:
    """A worker process. For the event loop; `on_message` and `on_lost` are called there."""

    def __init__(
        self,
        number: int,
        place: Place,
        settings: Settings,
        kind: Kind,
        on_message: Callable[[WorkerHandle, Any], None],
        on_lost: Callable[[WorkerHandle], None],
    ) -> None:
        self.number = number
        self.place = place
        self.state: State = "starting"
        self.progress = "starting"
        self.device = place.label
        self.traits: dict[str, Any] = {}
        self.tickets: dict[int, Held] = {}
        self.adapters: dict[str, float] | None = None
        self.memory = (0, 0)
        self.withdrawing: int | None = None
        self._on_message = on_message
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._heard = time.monotonic()
        self._beat = m.Beat(0.0, 0.0)
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        own, theirs = CONTEXT.Pipe()
        self._connection: Connection = own
        settings = settings.model_copy(update=place.overrides)
        environment = os.environ | place.environment
        self._followers = FollowerProcesses(CONTEXT, settings, self.name, environment, _Output())
        group = self._followers.ends, self._followers.store
        self.process = CONTEXT.Process(
            target=_main,
            args=(theirs, settings, kind, self.name, environment, _Output(), group),
            name=f"worker {number}",
            daemon=True,
        )
        threading.Thread(target=self._start, args=(theirs,), daemon=True).start()

    @property
    def name(self) -> str:
        """As logs and metrics have it."""
        return str(self.number)

    @property
    def work(self) -> float:
        """What the requests with it still need, in pixel steps."""
        return sum(ticket.remaining for ticket in self.tickets.values())

    def send(self, message: Any) -> None:
        """Send a message; never blocks."""
        self._outgoing.put(message)

    def kill(self, reason: str) -> None:
        """End the process at once; `on_lost` follows."""
        log.error("worker %s is killed: %s", self.name, reason)
        if self.process.pid is not None:
            self.process.kill()

    def silent_s(self) -> float:
        """Seconds without a sign of life, or that the device has been at one call, if longer."""
        quiet = time.monotonic() - self._heard
        return quiet + self._beat.busy_s if self._beat.busy_s else quiet

    @property
    def gauges(self) -> dict[str, float]:
        """What its engine counts, as of the last beat."""
        return self._beat.gauges

    @property
    def longest_s(self) -> float:
        """The longest call of the device so far."""
        return self._beat.longest_s

    def stop(self) -> None:
        """Ask the process to end; no restart follows."""
        self.state = "stopped"
        self.send(m.Stop())

    def join(self, seconds: float) -> None:
        """Wait for the end, then enforce it. Blocks."""
        if self.process.pid is None:
            return
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join(5)
        self._clear_up()

    def _clear_up(self) -> None:
        """What a process that is gone may have left."""
        self._followers.end()
        if self.process.pid is not None:
            forget(self.process.pid)

    def describe(self) -> dict[str, Any]:
        """For the model's metadata."""
        return {
            "worker": self.number,
            "pid": self.process.pid,
            "device": self.device,
            **self._describe_group(),
            "state": self.state if self.state != "starting" else self.progress,
            "requests": len(self.tickets),
            "drawing": [ticket.describe() for ticket in self.tickets.values() if ticket.started],
        }

    def _describe_group(self) -> dict[str, Any]:
        """The devices of a group, its first rank's first, and the processes of the others."""
        pids = self._followers.pids
        return {"devices": self.traits.get("devices", []), "followers": pids} if pids else {}

    # Threads of this handle

    def _start(self, theirs: Connection) -> None:
        """Starting waits for the fork server, which may still import; then this thread reads."""
        if self.state == "stopped":
            self._followers.release()
            self._lost_soon()
            return
        self.process.start()
        self._followers.start()
        theirs.close()
        threading.Thread(target=self._write, daemon=True).start()
        try:
            while True:
                batch = self._connection.recv()
                self._loop.call_soon_threadsafe(self._hear, batch)
        except (EOFError, OSError):
            self.process.join(10)
            self._clear_up()
            self._lost_soon()

    def _lost_soon(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._lose)

    def _write(self) -> None:
        while True:
            message = self._outgoing.get()
            try:
                self._connection.send(message)
            except OSError:  # it died; the reading thread says so
                return
            if isinstance(message, m.Stop):
                return

    # In the event loop

    def _hear(self, batch: list[Any]) -> None:
        self._heard = time.monotonic()
        for message in batch:
            if isinstance(message, m.Beat):
                self._beat = message
                self.memory = message.memory
            else:
                self._on_message(self, message)

    def _lose(self) -> None:
        if self.state not in ("lost", "stopped"):
            self.state = "lost"
        self._on_lost(self)


class _Output:
    """Standard output and error of this process, for a worker: the fork server may have others."""

    def __getstate__(self) -> tuple[Any, Any]:
        return reduction.DupFd(1), reduction.DupFd(2)

    def __setstate__(self, state: tuple[Any, Any]) -> None:
        for number, duplicate in zip((1, 2), state, strict=True):
            os.dup2(duplicate.detach(), number)


def _main(
    connection: Connection,
    settings: Settings,
    kind: Kind,
    name: str,
    environment: dict[str, str],
    output: _Output,
    group: tuple[list[Connection], Path | None],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    from atelier.workers.worker import main

    main(connection, settings, kind, name, group)
