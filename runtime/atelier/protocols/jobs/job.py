"""Jobs: work that outlives its HTTP request. `Prefer: respond-async` starts one; `/v1/jobs/{id}`
follows, cancels and collects.

A running job is held by the engine's own queue limit; a finished one stays in the result store for
as long as that has room.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from atelier.errors import AtelierError, GenerationFailed, NotFound, shown
from atelier.events import Event, Image, Preview, Queued, Started, Step
from atelier.images.request import ImageRequest
from atelier.images.service import PictureService
from atelier.protocols.http.error_bodies import error_object
from atelier.protocols.http.pools import writing
from atelier.protocols.http.results import ResultStore
from atelier.protocols.picture_requests import DrawnRequest, collect_all, submit_all
from atelier.protocols.picture_writer import PictureWriter
from atelier.streams import EventStream

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Finish = Callable[[list[DrawnRequest]], Awaitable[bytes]]


@dataclass
class RequestProgress:
    """Where one request of a job stands."""

    position: int = 0
    wait_s: float = 0.0
    started: float | None = None
    step: int = 0
    total: int = 0
    pictures: int = 0


class Job:
    """One job's state, for one event loop. Followers see the latest state, and skip what they are
    too slow for."""

    def __init__(self, requests: Sequence[ImageRequest]) -> None:
        self.id = secrets.token_urlsafe(18)
        self.status: Status = "queued"
        self.result = ""
        self.error: AtelierError | None = None
        self.preview: tuple[int, Preview] | None = None
        self.requests = requests
        self.task: asyncio.Task[None]
        self._created = int(time.time())
        self._progress = [RequestProgress() for _ in requests]
        self._changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        return self.status not in ("queued", "running")

    def watch(self, index: int, event: Event) -> None:
        """Take in what the engine says about request `index`."""
        progress = self._progress[index]
        if isinstance(event, Queued):
            progress.position, progress.wait_s = event.position, event.wait_s
        elif isinstance(event, Started):
            progress.started = time.monotonic()
            self.status = "running"
        elif isinstance(event, Step):
            progress.step, progress.total = event.index, event.total
        elif isinstance(event, Image):
            progress.pictures += 1
        elif isinstance(event, Preview):
            self.preview = index, event
        self.touch()

    def end(self, status: Status, result: str, error: AtelierError | None = None) -> None:
        """The last change. `result` names the entry of the result store. Input pictures go: what
        is kept of a job is counted by the store."""
        self.status, self.result, self.error = status, result, error
        self.preview = None
        self.requests = [
            one.model_copy(update={"image": None, "mask_image": None}) for one in self.requests
        ]
        self.touch()

    def touch(self) -> None:
        """Wake all followers."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def describe(self) -> dict[str, Any]:
        """The state as `GET /v1/jobs/{id}` tells it, without the result. Times are seconds."""
        state: dict[str, Any] = {
            "id": self.id,
            "object": "job",
            "status": self.status,
            "created_at": self._created,
        }
        if not self.ended:
            waiting = [p for p in self._progress if p.started is None]
            state["queue_position"] = max((p.position for p in waiting), default=None)
            state["estimate_seconds"] = self._estimate()
        state["step"] = sum(p.step for p in self._progress)
        state["total_steps"] = (
            sum(p.total for p in self._progress) if all(p.total for p in self._progress) else None
        )
        if self.error:
            state["error"] = error_object(self.error)
        return state

    async def states(self) -> AsyncGenerator[dict[str, Any]]:
        """The state now and after every change, up to the last. A follower that is slow may find
        the job ended when it comes back: it is still told so."""
        while True:
            changed, last = self._changed, self.ended
            yield self.describe()
            if last:
                return
            await changed.wait()

    def _estimate(self) -> float | None:
        """Seconds left, from this job's own pace; before its first step, the engine's estimate for
        a place in the queue."""
        left = []
        for progress in self._progress:
            if progress.started is None:
                left.append(progress.wait_s)
            elif progress.step:
                pace = (time.monotonic() - progress.started) / progress.step
                left.append(pace * (progress.total - progress.step))
        return round(max(left), 2) if left else None


class Jobs:
    """All jobs of a server."""

    def __init__(self, model: PictureService, writer: PictureWriter, store: ResultStore) -> None:
        self._model = model
        self.writer = writer
        self._store = store
        self._jobs: dict[str, Job] = {}

    async def start(self, requests: Sequence[ImageRequest], protocol: str, finish: Finish) -> Job:
        """Have the requests admitted and go on without the caller. `finish` makes the answer, a
        JSON body.

        Raises:
            NotReady, InvalidRequest, Busy, Draining: the requests are refused, just as without a
                job.
        """
        streams = await submit_all(self._model, requests, protocol)
        self._forget()
        job = Job(requests)
        self._jobs[job.id] = job
        job.task = asyncio.create_task(self._run(job, streams, finish))
        return job

    def get(self, name: str) -> Job:
        """The job.

        Raises:
            NotFound: there is none of this name, or not any more.
        """
        self._forget()
        if name not in self._jobs:
            raise NotFound(
                f"there is no job {shown(name)}; finished jobs stay for {self._store.seconds:g} s,"
                " or less under load"
            )
        return self._jobs[name]

    async def body(self, job: Job) -> bytes:
        """The state and, of a job that succeeded, its result: what the same request without a job
        would have answered."""
        state = job.describe()
        if job.status == "succeeded":
            state["result"] = orjson.Fragment(self._store.get(job.result).data)
        return await writing(orjson.dumps, state)

    async def cancel(self, job: Job) -> None:
        """Stop a job that runs; forget one that has ended."""
        if job.ended:
            self._store.remove(job.result)
            return
        job.task.cancel()
        await asyncio.wait({job.task})

    async def _run(self, job: Job, streams: Sequence[EventStream], finish: Finish) -> None:
        try:
            answer = await finish(await collect_all(self.writer, job.requests, streams, job.watch))
            job.end("succeeded", self._store.put(answer, "application/json"))
        except asyncio.CancelledError:
            job.end("cancelled", self._store.put(b"", ""))
        except AtelierError as error:
            job.end("failed", self._store.put(b"", ""), error)
        except Exception as error:
            job.end(
                "failed",
                self._store.put(b"", ""),
                GenerationFailed(f"{type(error).__name__}: {error}"),
            )
            raise

    def _forget(self) -> None:
        """Drop the jobs that the result store has let go of."""
        self._store.expire()
        for name in [
            name for name, job in self._jobs.items() if job.ended and job.result not in self._store
        ]:
            del self._jobs[name]
