"""Step batching: many requests, one denoising thread, one batched module call at a time.

Every request runs its own pipeline call in a greenlet that parks at each module call (`drawing.py`,
`interception.py`). The loop below picks the group of the request that has waited longest, runs the
group's calls as one, and resumes each request with its rows. So requests join and leave at any
step, and their schedulers, guidance and steps stay their own.

It leaves to others: what arguments a pipeline takes (`model.py`), how calls are stacked
(`stacking.py`, `verifier.py`).
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from atelier.errors import (
    AtelierError,
    Busy,
    Cancelled,
    DeviceOutOfMemory,
    Draining,
    GenerationFailed,
)
from atelier.events import Queued
from atelier.images.adapters import Selection
from atelier.images.drawing import Drawing, PreparedRequest
from atelier.images.embeddings import EmbeddingCache
from atelier.images.interception import Call, Stage
from atelier.images.observer import ImageObserver, SilentImageObserver
from atelier.images.preview import LatentPreview
from atelier.images.pulse import Pulse
from atelier.images.stacking import Stacker, Unsplittable
from atelier.images.verifier import Verifier
from atelier.streams import EventStream

log = logging.getLogger(__name__)

# Latent positions of one decoder call, 64 pixels each with the usual VAE: one picture of 1024 x
# 1024, four of 512 x 512. A decoder is busy with that; eight large pictures at once need many
# gigabytes and leave the 32-bit index range of the fast convolutions, which made them slower than
# one by one on an H200.
DECODE_POSITIONS = 128 * 128

# what ran out of memory may have been a neighbour's doing: larger groups are tried again after this
# long
CAP_S = 60.0


@dataclass(frozen=True)
class EngineLimits:
    """How much the engine takes on: rows of one module call, requests queued and running, bytes of
    cached embeddings.

    `buckets` are the row counts that denoiser calls are padded to; empty, if nothing is compiled.
    """

    rows: int
    queue: int
    cache_bytes: int = 256 << 20
    buckets: tuple[int, ...] = ()


class ImageEngine:
    """One denoising thread for one device."""

    def __init__(
        self,
        limits: EngineLimits,
        *,
        use_adapters: Callable[[Selection], None] | None = None,
        observer: ImageObserver | None = None,
    ) -> None:
        self._limits = limits
        self._use_adapters = use_adapters or (lambda selection: None)
        self._observer = observer or SilentImageObserver()
        self.pulse = Pulse()
        self._preview = LatentPreview()
        self._verifier = Verifier()
        self._embeddings = EmbeddingCache(limits.cache_bytes)
        self._numbers = itertools.count()
        self._ticks = itertools.count()
        self._inbox: list[Drawing] = []
        self._drawings: list[Drawing] = []
        self._caps: dict[Hashable, tuple[int, float]] = {}  # rows, and until when that limit holds
        self._pace_s = 0.0
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
            ahead = len(self._drawings) + len(self._inbox)
            if ahead >= self._limits.queue:
                wait = self._wait_s()
                raise Busy(
                    f"{ahead} requests are waiting or running"
                    f" (MAX_QUEUE_SIZE={self._limits.queue})",
                    wait,
                )
            stream = EventStream(lambda: self._cancel(drawing))
            listeners = (
                self._observer.request(protocol, str(job.arguments.get("prompt", ""))),
                stream.put,
            )
            drawing = Drawing(job, listeners, self._preview, next(self._numbers))
            drawing.emit(Queued(ahead, self._wait_s() if ahead else 0.0))
            self._inbox.append(drawing)
            self._wake.notify()
        return stream

    @property
    def places(self) -> int:
        """Requests that may be waiting or running at once."""
        return self._limits.queue

    @property
    def depth(self) -> int:
        """Requests waiting or running."""
        return len(self._drawings) + len(self._inbox)

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

    def _cancel(self, drawing: Drawing) -> None:
        with self._wake:
            drawing.cancelled = True
            self._wake.notify()

    def _wait_s(self) -> float:
        """Seconds until a place is free: the steps that all requests still need, at the measured
        pace, shared equally."""
        steps = [
            max(1, d.steps_total - d.steps_done) if d.steps_total else 20
            for d in [*self._drawings, *self._inbox]
        ]
        return max(1.0, self._pace_s * sum(steps) / max(1, len(steps)))

    # The denoising thread

    def _run(self) -> None:
        # OpenMP keeps its thread count per calling thread; what was chosen at start must be said
        # again here.
        torch.set_num_threads(torch.get_num_threads())
        with torch.no_grad():
            while True:
                with self._wake:
                    while not (self._inbox or self._drawings or self._closed):
                        self._wake.wait()
                    self._take_in()
                if self._closed:
                    for drawing in list(self._drawings):
                        self._drop(
                            drawing, Draining("the server stopped before the picture was done")
                        )
                    return
                for drawing in list(self._drawings):
                    if drawing.cancelled:
                        self._drop(drawing, Cancelled("the request was cancelled"))
                    elif drawing.overdue:
                        self._drop(drawing, drawing.deadline_error())
                try:
                    with self.pulse.beat():
                        self._turn()
                except (
                    Exception
                ):  # a fault of this engine; the requests at hand fail, the server lives
                    log.exception(
                        "the engine failed; %d requests are given up", len(self._drawings)
                    )
                    for drawing in list(self._drawings):
                        self._drop(
                            drawing,
                            GenerationFailed("the engine failed; the server's log has the cause"),
                        )

    def _take_in(self) -> None:
        for drawing in self._inbox:
            drawing.parked_at = next(self._ticks)
            drawing.key = drawing.number
        self._drawings += self._inbox
        self._inbox.clear()

    def _drop(self, drawing: Drawing, error: AtelierError) -> None:
        self._drawings.remove(drawing)
        drawing.stop(error)

    def _turn(self) -> None:
        """Begin what is new, then run one group."""
        for drawing in [d for d in self._drawings if d.started is None and not d.job.exclusive]:
            self._step(drawing, drawing.begin)
        if group := self._next_group():
            began = time.monotonic()
            if group[0].started is None:
                self._alone(group[0])
            else:
                self._run_group(group)
            pace = (time.monotonic() - began) / len(group) * len(self._drawings or group)
            self._pace_s = pace if not self._pace_s else 0.9 * self._pace_s + 0.1 * pace

    def _next_group(self) -> list[Drawing]:
        """The parked calls that can run with the one that has waited longest, oldest first."""
        waiting = sorted(self._drawings, key=lambda d: d.parked_at)
        if not waiting:
            return []
        oldest, group, rows = waiting[0], [], 0
        limit = min(self._cap(oldest.key), _decode_limit(oldest.parked))
        for drawing in waiting:
            if drawing is oldest or (drawing.key == oldest.key and rows + drawing.rows <= limit):
                group.append(drawing)
                rows += drawing.rows
        return group

    def _cap(self, key: Hashable) -> int:
        """Rows that a group of this key may have: the limit, or less for a while after it ran out
        of memory."""
        rows, until = self._caps.get(key, (self._limits.rows, math.inf))
        if time.monotonic() > until:
            del self._caps[key]
            return self._limits.rows
        return rows

    def _run_group(self, group: list[Drawing]) -> None:
        calls = [drawing.parked for drawing in group if drawing.parked]
        began = time.monotonic()
        try:
            self._use_adapters(group[0].job.adapters)
            results = self._results(group, calls)
        except Exception as error:
            self._recover(group, error)
            return
        seconds = time.monotonic() - began
        ran = calls[: len(results)]
        rows = sum(call.layout.rows for call in ran)
        self._observer.call(ran[0].gate.stage.value, seconds, ran[0].layout.shape, rows, len(ran))
        for drawing, call, result in zip(group, calls, results, strict=False):
            drawing.spent(call.gate.stage, seconds)
            self._embeddings.put(
                EmbeddingCache.key(call, drawing.job.adapters, drawing.digest), result
            )
            self._step(drawing, drawing.resume, result)

    def _results(self, group: list[Drawing], calls: list[Call]) -> Sequence[Any]:
        """One result for each call that was run; fewer than asked for if stacking has yet to be
        proven or is off."""
        pipeline, gate = type(group[0].job.pipeline).__name__, calls[0].gate
        verdict = self._verifier.verdict(pipeline, gate.name)
        if verdict is None and len(calls) > 1:
            return self._verifier.examine(pipeline, calls[0], calls[1])
        rows = [call.layout.rows for call in calls]
        padded = self._padded(gate.stage, sum(rows))
        if not verdict or (len(calls) == 1 and padded == rows[0]):
            return [calls[0].run()]
        return Stacker.split(
            gate.real(**Stacker.stack([call.layout for call in calls], padded)), rows, padded
        )

    def _padded(self, stage: Stage, rows: int) -> int:
        """The bucket for this many rows of a compiled denoiser; other modules take any number."""
        buckets = self._limits.buckets if stage is Stage.DENOISE else ()
        return next((bucket for bucket in buckets if bucket >= rows), rows)

    def _recover(self, group: list[Drawing], error: Exception) -> None:
        """A group failed: halve it if memory ran out, run its calls alone otherwise; a lone call's
        request fails."""
        short_of_memory = is_out_of_memory(error)
        if short_of_memory:
            self._observer.out_of_memory()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if len(group) == 1:
            drawing = group[0]
            told = _does_not_fit(drawing.job) if short_of_memory else error
            self._step(drawing, drawing.fail, told)
            return
        if isinstance(error, Unsplittable) or not short_of_memory:
            log.warning("a group of %d failed and is run one by one: %s", len(group), error)
            cap = 1
        else:
            cap = max(1, sum(drawing.rows for drawing in group) // 2)
            log.warning(
                "out of memory for %d requests at once; at most %d rows for a minute",
                len(group),
                cap,
            )
        self._caps[group[0].key] = cap, time.monotonic() + CAP_S

    def _alone(self, drawing: Drawing) -> None:
        """Run a pipeline that cannot share the device from begin to end, looking for cancellation
        at each call."""
        self._step(drawing, drawing.begin)
        while (
            drawing in self._drawings
            and not self._closed
            and not drawing.cancelled
            and not drawing.overdue
        ):
            with self.pulse.beat():
                self._run_group([drawing])

    def _step(self, drawing: Drawing, action: Callable[..., None], *values: Any) -> None:
        """Let a request run on; note when it parked again, and let go of it when it is done."""
        action(*values)
        while call := drawing.parked:
            key = EmbeddingCache.key(call, drawing.job.adapters, drawing.digest)
            if key is None:
                break
            known = self._embeddings.get(key)
            self._observer.embedding(known is not None)
            if known is None:
                break
            drawing.resume(known)
        drawing.parked_at = next(self._ticks)
        if drawing.done:
            self._drawings.remove(drawing)


def _decode_limit(call: Call | None) -> float:
    """Rows that a decoder takes at once; other modules are limited by rows alone."""
    if call is None or call.gate.stage is not Stage.DECODE:
        return math.inf
    return max(1, DECODE_POSITIONS // call.layout.positions)


def is_out_of_memory(error: BaseException) -> bool:
    """Also true of the CPU allocator's failure, which is a plain RuntimeError."""
    return isinstance(
        error, torch.OutOfMemoryError | MemoryError
    ) or "can't allocate memory" in str(error)


def _does_not_fit(job: PreparedRequest) -> DeviceOutOfMemory:
    size = "x".join(
        str(job.arguments[name]) for name in ("width", "height") if name in job.arguments
    )
    return DeviceOutOfMemory(
        "the request does not fit the device's memory even alone; lower width and"
        f" height{f' (now {size})' if size else ''} or num_images_per_prompt (now {job.pictures}),"
        " or set ENABLE_VAE_TILING=true or QUANTIZATION=auto"
    )
