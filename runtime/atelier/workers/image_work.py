"""What a worker does for a picture model: draws, checks, gives back.

The engine inside is the one that `atelier generate` uses in its own process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from atelier.errors import AtelierError, GenerationFailed
from atelier.events import Event, Failed, Started
from atelier.hardware.plan import MemoryPlan
from atelier.hardware.ranks import device_names
from atelier.images.group import RankGroup
from atelier.images.model import ImageModel
from atelier.images.observer import SilentImageObserver
from atelier.settings import Settings
from atelier.streams import EventStream
from atelier.units import gib
from atelier.workers import messages as m

log = logging.getLogger(__name__)

DEVICE_LOST = re.compile(r"CUDA error|device-side assert|illegal memory access|NCCL error", re.I)
"""What a device says that answers nothing any more in this process; out of memory is not among it.
https://docs.nvidia.com/cuda/cuda-runtime-api: sticky errors corrupt the context."""

LOST_CODE = 75
"""Exit code of a worker whose device or group is lost: EX_TEMPFAIL of sysexits.h."""


class Reporter(SilentImageObserver):
    """The engine's observer: what it is told goes to the front, which has the metrics."""

    def __init__(self, put: Callable[[Any], None], worker: str) -> None:
        self._put = put
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
        self._put(m.Observed("call", told))

    def loaded(self, stage: str, seconds: float) -> None:
        self._put(m.Observed("loaded", (stage, seconds)))

    def embedding(self, hit: bool) -> None:
        self._put(m.Observed("embedding", (hit,)))

    def stacking(self, pipeline: str, module: str, stacked: bool) -> None:
        self._put(m.Observed("stacking", (pipeline, module, stacked)))

    def filtered(self, what: str, label: str, action: str) -> None:
        self._put(m.Observed("filtered", (what, label, action)))

    def out_of_memory(self) -> None:
        self._put(m.Observed("out_of_memory", ()))

    def memory_compared(self, error: float, worker: str) -> None:
        self._put(m.Observed("memory_compared", (error, worker)))


class ImageWork:
    """One picture model, served to the front. `put` sends a message there; `followers` are pipes to
    the other ranks of its group, which meet at the file `store`."""

    def __init__(
        self,
        settings: Settings,
        put: Callable[[Any], None],
        worker: str,
        followers: Sequence[Connection] = (),
        store: Path | None = None,
    ) -> None:
        group = RankGroup(followers, store, _leave) if store else None
        self._settings = settings
        self._worker = worker
        self._reporter = Reporter(put, worker)
        self._model = ImageModel(settings, self._reporter, group)
        self._most_taken = 0
        self._put = put
        self._streams: dict[int, EventStream] = {}
        self._begun: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def progress(self) -> str:
        return self._model.progress

    def load(self) -> None:
        self._model.load()

    def close(self) -> None:
        self._model.close()

    def device(self) -> str:
        return str(self._model.metadata().get("memory_plan", {}).get("device", ""))

    def traits(self) -> dict[str, Any]:
        """What protocols ask of a loaded model."""
        model = self._model
        return {
            "metadata": model.metadata(),
            "default_steps": model.default_steps,
            "gives_alpha": model.gives_alpha,
            "devices": device_names(self._settings),
        }

    def beat(self) -> m.Beat:
        busy, longest = self._model.busy_s()
        if promise := self._model.memory_promise():
            self._compare(*promise)
        return m.Beat(busy, longest, self._model.device_memory())

    def _compare(self, plan: MemoryPlan, taken: int) -> None:
        """Tell how the run's peak compares with the plan, the first time also in the log."""
        if taken <= self._most_taken:
            return
        error = plan.error_ratio(taken)
        if not self._most_taken:
            told = gib(taken), gib(plan.promised_bytes), 100 * error
            log.info("the first pictures took %s of the %s that were planned (%+.0f %%)", *told)
        self._most_taken = taken
        self._reporter.memory_compared(error, self._worker)

    def take(self, message: Any) -> None:
        if isinstance(message, m.Cancel):
            if stream := self._streams.get(message.number):
                stream.cancel()
        elif isinstance(message, m.Withdraw):
            self._withdraw(message.number)
        else:
            work = self._draw if isinstance(message, m.DrawPicture) else self._check
            task = asyncio.get_running_loop().create_task(work(message.number, message.request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _withdraw(self, number: int) -> None:
        stream = self._streams.get(number)
        if stream is not None and number not in self._begun:
            del self._streams[number]
            stream.cancel()
            self._put(m.Withdrawn(number))

    async def _check(self, number: int, request: Any) -> None:
        try:
            await self._model.prepared(request)
        except AtelierError as error:
            self._put(m.Refused(number, error))
        except Exception as error:
            self._put(m.Refused(number, _unforeseen(error)))
        else:
            self._put(m.Admitted(number))

    async def _draw(self, number: int, request: Any) -> None:
        try:
            stream = await self._model.submit(request)
        except AtelierError as error:
            self._put(m.Refused(number, error))
            return
        except Exception as error:
            self._put(m.Refused(number, _unforeseen(error)))
            return
        self._streams[number] = stream
        self._put(m.Admitted(number))
        async for event in stream:
            if number not in self._streams:  # it was withdrawn
                return
            if isinstance(event, Started):
                self._begun.add(number)
            self._leave_if_lost(event)
            self._put(m.Happened(number, event))
        self._streams.pop(number, None)
        self._begun.discard(number)

    def _leave_if_lost(self, event: Event) -> None:
        """End the process if the device is lost: the front draws the pictures again elsewhere."""
        if isinstance(event, Failed) and DEVICE_LOST.search(event.error.message):
            _leave(f"the device is lost: {event.error.message}")


def _leave(reason: str) -> None:
    log.error("the worker ends: %s", reason)
    logging.shutdown()
    os._exit(LOST_CODE)


def _unforeseen(error: Exception) -> GenerationFailed:
    """A fault of ours or of a library; the client must hear of it."""
    log.error("a request could not be prepared", exc_info=error)
    return GenerationFailed(f"{type(error).__name__}: {error}")
