"""A picture model served by workers: what protocols ask of `ImageModel`, without torch."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from atelier.errors import AtelierError, NotReady
from atelier.images.observer import ImageObserver, SilentImageObserver
from atelier.images.request import ImageRequest
from atelier.settings import Settings
from atelier.streams import EventStream
from atelier.workers.handle import WorkerHandle
from atelier.workers.pool import Pool
from atelier.workers.ticket import Ticket

GUESSED_STEPS = 28
"""Steps of a request that names none, where the pipeline has no default either."""

NATIVE_PIXELS = 1024 * 1024
"""Pixels of a request that names no size: only the order of requests depends on it."""


class ImageFront:
    """One checkpoint, served by workers. For the event loop."""

    def __init__(
        self,
        settings: Settings,
        observer: ImageObserver | None = None,
        on_beyond_repair: Callable[[AtelierError], None] = lambda error: None,
    ) -> None:
        self.name = settings.served_name
        self.on_beyond_repair = on_beyond_repair
        self._settings = settings
        self._observer = observer or SilentImageObserver()
        self._pool: Pool | None = None

    async def load(self) -> None:
        """Start the workers; returns when the first can serve.

        Raises:
            StartError: none can.
        """
        self._pool = Pool(
            self._settings, self._observed, lambda error: self.on_beyond_repair(error)
        )
        await self._pool.start()

    def _observed(self, method: str, arguments: tuple[Any, ...]) -> None:
        getattr(self._observer, method)(*arguments)

    @property
    def workers(self) -> list[WorkerHandle]:
        """All workers, in order."""
        return self._pool.workers if self._pool else []

    @property
    def ready(self) -> bool:
        """Whether a request would be served now: at least one worker is up, and none is refused
        because the server shuts down."""
        return self._pool is not None and self._pool.open

    @property
    def progress(self) -> str:
        """What the start, or the restart, is doing now."""
        return self._pool.progress if self._pool else "not started"

    def check_ready(self) -> None:
        """See that requests can be served.

        Raises:
            NotReady, Draining: they cannot.
        """
        if self._pool is None:
            raise NotReady(f"the model {self.name} is not ready: not started")
        self._pool.check_open()

    def check_room(self) -> None:
        """See that one request more can be taken, before its pictures are decoded.

        Raises:
            Busy, NotReady, Draining: it cannot.
        """
        self.check_ready()
        assert self._pool is not None
        self._pool.check_room()

    async def submit(self, request: ImageRequest, protocol: str = "") -> EventStream:
        """Have a request admitted; its events follow in the stream.

        The seed is chosen here, so that another worker can draw the same pictures if one dies.

        Raises:
            NotReady, InvalidRequest, Busy, Draining: the request is refused.
        """
        with self.refusals(protocol):
            self.check_ready()
            assert self._pool is not None
            pool = self._pool
            if request.seed is None:
                request = request.model_copy(update={"seed": secrets.randbelow(2**32)})
            limit = self._settings.request_timeout
            stream = EventStream(lambda: pool.cancel(ticket))
            listeners = (self._observer.request(protocol, request.prompt), stream.put_from_loop)
            ticket: Ticket = await pool.submit(
                request, self._work(request), min(request.timeout or limit, limit), listeners
            )
            return stream

    def _work(self, request: ImageRequest) -> float:
        """Pixel steps of a request, as far as the front can know."""
        steps = request.num_inference_steps or self.default_steps or GUESSED_STEPS
        pixels = request.width * request.height if request.width and request.height else 0
        return float(steps * (pixels or NATIVE_PIXELS) * request.num_images_per_prompt)

    @contextmanager
    def refusals(self, protocol: str) -> Iterator[None]:
        """Count an error raised inside as a request of this protocol that was not admitted."""
        try:
            yield
        except AtelierError as error:
            self._observer.refused(protocol, error)
            raise

    @property
    def depth(self) -> int:
        """Requests waiting or running."""
        return self._pool.depth if self._pool else 0

    def device_memory(self) -> tuple[int, int]:
        """Bytes of all workers' devices used and free."""
        return memory_of((one.number, one.device, one.memory) for one in self.workers)

    async def drain(self, seconds: float) -> None:
        """Finish what runs, within `seconds`, and end the workers."""
        if self._pool is not None:
            await self._pool.drain(seconds)

    def _trait(self, name: str, default: Any) -> Any:
        """What the workers say of the model; the same of every one."""
        return next((one.traits[name] for one in self.workers if name in one.traits), default)

    @property
    def default_steps(self) -> int | None:
        """The pipeline's own number of steps; None if it has no such argument."""
        steps: int | None = self._trait("default_steps", None)
        return steps

    @property
    def gives_alpha(self) -> bool:
        """True if the VAE decodes to four channels."""
        return bool(self._trait("gives_alpha", False))

    def metadata(self) -> dict[str, Any]:
        """What the model's metadata endpoint adds: what a worker says of the model, and the workers
        with their devices, states and what they draw."""
        described = [worker.describe() for worker in self.workers]
        return self._trait("metadata", {}) | ({"workers": described} if described else {})


def memory_of(workers: Iterable[tuple[int, str, tuple[int, int]]]) -> tuple[int, int]:
    """Bytes used and free of the devices of workers, by number, device and memory. Workers on a
    processor share one; every other has its own, though each calls it `cuda:0`."""
    devices = {
        "cpu" if device.startswith("cpu") else number: memory
        for number, device, memory in workers
        if any(memory)
    }
    return sum(used for used, _ in devices.values()), sum(free for _, free in devices.values())
