"""Step batching: many requests, one denoising thread, one batched module call at a time.

Every request runs its own pipeline call in a greenlet that parks at each module call (`drawing.py`,
`interception.py`). The loop below asks the scheduler whose calls run next, runs them as one, and
resumes each request with its rows. So requests join and leave at any step, and their schedulers,
guidance and steps stay their own.

It leaves to others: who runs next (`scheduler.py`), what arguments a pipeline takes (`model.py`),
how calls are stacked (`batch.py`, `stacking.py`, `verifier.py`), and the state of the modules
(`modules.py`).
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from atelier.errors import AtelierError, Busy, Draining, GenerationFailed
from atelier.events import Queued, Warned
from atelier.images.batch import BatchRunner
from atelier.images.delivery import Delivery
from atelier.images.drawing import Drawing, PreparedRequest
from atelier.images.embeddings import EmbeddingCache
from atelier.images.expectation import expected
from atelier.images.graphs import GraphStore
from atelier.images.group import RankGroup
from atelier.images.interception import Stage
from atelier.images.modules import SharedModules
from atelier.images.observer import ImageObserver, SilentImageObserver
from atelier.images.preview import LatentPreview
from atelier.images.pulse import Pulse
from atelier.images.scheduler import Scheduler
from atelier.images.sharing import recorder_for
from atelier.images.shortage import is_out_of_memory, release
from atelier.images.stopwatch import Stopwatch
from atelier.images.verifier import Verifier
from atelier.streams import EventStream

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineLimits:
    """How much the engine takes on: rows of one module call, requests queued and running, bytes of
    cached embeddings, bytes that requests hold between their calls once they have begun.

    `graph_bytes` is what recorded denoiser calls may hold; 0: none is recorded.
    """

    rows: int
    queue: int
    cache_bytes: int = 256 << 20
    graph_bytes: int = 0
    begun_bytes: float = math.inf


class ImageEngine:
    """One denoising thread for one device."""

    def __init__(
        self,
        limits: EngineLimits,
        *,
        modules: SharedModules | None = None,
        observer: ImageObserver | None = None,
        group: RankGroup | None = None,
    ) -> None:
        self._limits = limits
        self._modules = modules
        self._observer = observer or SilentImageObserver()
        self.pulse = Pulse()
        self.scheduler: Scheduler[Drawing] = Scheduler(limits.rows, limits.begun_bytes)
        self.verifier = Verifier(self._observer.stacking)
        bound = limits.graph_bytes
        self._graphs = GraphStore(recorder_for(group), bound) if bound else None
        self.runner = BatchRunner(limits.rows, self.verifier, self._graphs, group)
        self._stopwatch = Stopwatch()
        self._preview = LatentPreview()
        self._delivery = Delivery()
        self._embeddings = EmbeddingCache(limits.cache_bytes)
        self._numbers = itertools.count()
        self._wake = threading.Condition()
        self._draining = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="denoising", daemon=True)
        self._thread.start()

    # Called from the event loop

    def submit(self, job: PreparedRequest, protocol: str = "") -> EventStream:
        """Admit a request and return the stream of its events. `protocol` is only reported.

        Raises:
            Busy: MAX_QUEUE_SIZE requests are here already.
            Draining: the server is shutting down.
        """
        with self._wake:
            if self._draining or self._closed:
                raise Draining("the server is shutting down; send the request to another replica")
            # A cancelled one is dropped before the next step; its place is free already.
            held = sum(drawing.must_go is None for drawing in self._all())
            if held >= self._limits.queue:
                raise Busy(
                    f"{held} requests are waiting or running (MAX_QUEUE_SIZE={self._limits.queue})",
                    max(1.0, self.scheduler.free_place_s()),
                )
            stream = EventStream(lambda: self._cancel(drawing))
            watch = self._observer.request(protocol, str(job.arguments.get("prompt", "")))
            drawing = Drawing(
                job=job,
                listeners=(watch, stream.put),
                preview=self._preview,
                delivery=self._delivery,
                number=next(self._numbers),
                arrived=time.monotonic(),
                unproven=True,
                **expected(job),
            )
            told = self.scheduler.add(drawing)
            drawing.emit(Queued(told.position, told.start_s))
            for warning in job.warnings:
                drawing.emit(Warned(warning))
            self._wake.notify()
        return stream

    @property
    def places(self) -> int:
        """Requests that may be waiting or running at once."""
        return self._limits.queue

    @property
    def depth(self) -> int:
        """Requests waiting or running."""
        return len(self.scheduler)

    def drain(self, seconds: float) -> None:
        """Admit nothing more, wait until the rest is done or `seconds` are over, and fail what is
        left. Blocks."""
        with self._wake:
            self._draining = True
        ends = time.monotonic() + seconds
        while self.depth and time.monotonic() < ends:
            time.sleep(0.02)
        self.close()

    def close(self) -> None:
        """Stop the thread; requests that still run fail with `Draining`."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()
        self._delivery.close()

    def _cancel(self, drawing: Drawing) -> None:
        with self._wake:
            drawing.cancelled = True
            self._wake.notify()

    # The denoising thread

    def _run(self) -> None:
        # OpenMP keeps its thread count per calling thread; what was chosen at start must be said
        # again here.
        torch.set_num_threads(torch.get_num_threads())
        with torch.no_grad():
            while True:
                with self._wake:
                    if not (self.depth or self._closed):
                        self._wake.wait(self._stopwatch.due_s)
                if self._closed:
                    self._drop(Draining("the server stopped before the picture was done"))
                    return
                try:
                    with self.pulse.beat():
                        self._turn()
                except Exception:  # a fault of ours: the requests at hand fail, the server lives
                    log.exception("the engine failed; %d requests are given up", self.depth)
                    self._drop(GenerationFailed("the engine failed; the server's log has why"))

    def _turn(self) -> None:
        """Drop who must go, then begin a request or run a batch."""
        self._stopwatch.collect()
        for drawing in self._all():
            if why := drawing.must_go:
                self._drop(why, drawing)
        with self._wake:
            batch = self.scheduler.next_batch(time.monotonic())
        if not batch:
            return
        if batch[0].greenlet is not None:
            self._run_batch(batch)
        elif batch[0].job.exclusive:
            self._run_alone(batch[0])
        else:
            self._step(batch[0], batch[0].begin)

    def _run_batch(self, batch: list[Drawing]) -> None:
        calls = [drawing.parked for drawing in batch if drawing.parked]
        job, gate = batch[0].job, calls[0].gate
        if gate.stage is not Stage.ENCODE:
            self._note_starts(batch)
        began = time.monotonic()
        try:
            with self._lent(job, gate.offloaded), self._stopwatch.timing() as lap:
                results = self.runner.run(job.family, calls, job.adapters, job.exclusive)
                ran = batch[: len(results)]
                lap.tell = self._teller(ran, calls[0].layout.shape, self.runner.typical)
        except Exception as error:
            self._recover(batch, error)
            return
        seconds = time.monotonic() - began
        for drawing, call, result in zip(ran, calls, results, strict=False):
            drawing.alone = False
            drawing.spent(gate.stage, seconds)
            key = EmbeddingCache.key(call, drawing.job.adapters, drawing.digest)
            self._embeddings.put(key, result)
            if drawing.cache is not None and gate.stage is Stage.DENOISE:
                drawing.cache.computed(call, result)
            self._step(drawing, drawing.resume, result)

    def _note_starts(self, batch: list[Drawing]) -> None:
        for drawing in batch:
            if not drawing.started:
                drawing.start()
                with self._wake:
                    self.scheduler.started(drawing, time.monotonic())

    def _teller(self, batch: list[Drawing], shape: str, typical: bool) -> Callable[[float], None]:
        """Tells how long the batch, as it is now, took on the device, which may be known later: the
        observer, and the scheduler if the next one like it will take as long."""
        (kind, stage), pixels = (batch[0].kind, batch[0].stage), batch[0].pixels
        rows = [drawing.rows for drawing in batch]

        def tell(seconds: float) -> None:
            self._observer.call(stage, seconds, shape, sum(rows), len(rows))
            if typical:
                with self._wake:
                    self.scheduler.ran((kind, stage), rows, seconds, pixels)

        return tell

    def _recover(self, batch: list[Drawing], error: Exception) -> None:
        """A batch failed: have it run in smaller ones; a lone call's request fails."""
        if len(batch) == 1:  # the request tells of memory that ran out, wherever in it that was
            self._step(batch[0], batch[0].fail, error)
            return
        log.warning("a batch of %d failed and is run in parts: %s", len(batch), error)
        if short_of_memory := is_out_of_memory(error):
            self._ran_out_of_memory()
        self.scheduler.fail(batch, time.monotonic(), short_of_memory)

    def _run_alone(self, drawing: Drawing) -> None:
        """Run a pipeline that cannot share the device from begin to end, looking at each call
        whether it must go."""
        with self._lent(drawing.job):
            self._step(drawing, drawing.begin)
            while drawing in self.scheduler.running and not self._closed:
                if why := drawing.must_go:
                    self._drop(why, drawing)
                    return
                with self.pulse.beat():
                    self._run_batch([drawing])

    def _lent(
        self, job: PreparedRequest, module: torch.nn.Module | None = None
    ) -> AbstractContextManager[None]:
        if self._modules is None:
            return nullcontext()
        self.scheduler.switched(self._modules.adapters, self._modules.switch_s)
        return self._modules.lent_to(job.adapters, module, alone=job.exclusive)

    def _step(self, drawing: Drawing, action: Callable[..., None], *values: Any) -> None:
        """Let a request run on, past all calls whose results are known; let go of it when it is
        done."""
        action(*values)
        while call := drawing.parked:
            if drawing.must_go:  # seen by the next turn
                return
            known = drawing.cached_answer()
            key = EmbeddingCache.key(call, drawing.job.adapters, drawing.digest)
            if known is None and key is not None:
                known = self._embeddings.get(key)
                self._observer.embedding(known is not None)
            if known is None:
                drawing.unproven = self.runner.is_unproven(drawing.job.family, call)
                return
            drawing.resume(known)
        if drawing.ran_short:
            self._ran_out_of_memory()
        self._let_go(drawing)

    def _ran_out_of_memory(self) -> None:
        self._observer.out_of_memory()
        if self._graphs is not None:
            self._graphs.clear()
        release()

    def _drop(self, error: AtelierError, *drawings: Drawing) -> None:
        """End these requests, or all, with an error."""
        for drawing in drawings or self._all():
            self._let_go(drawing)
            drawing.stop(error)

    def _let_go(self, drawing: Drawing) -> None:
        with self._wake:
            self.scheduler.finished(drawing, time.monotonic())

    def _all(self) -> list[Drawing]:
        with self._wake:
            return [*self.scheduler.running, *self.scheduler.waiting]
