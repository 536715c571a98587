"""A picture model from MODEL_ID to events: fetch, inspect, plan, load, probe, then serve requests through the engine."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import TYPE_CHECKING, Any

from atelier.errors import NotReady
from atelier.images.request import ImageRequest
from atelier.settings import Settings
from atelier.streams import EventStream

if TYPE_CHECKING:
    from atelier.hardware.memory import MemoryPlan
    from atelier.images.adapters import Adapters
    from atelier.images.drawing import Job
    from atelier.images.engine import ImageEngine
    from atelier.images.family import PipelineFamily
    from atelier.images.observer import Observer

log = logging.getLogger(__name__)


class ImageModel:
    """One checkpoint, served. `load()` blocks and belongs in a thread; everything else is for the event loop."""

    def __init__(self, settings: Settings, observer: Observer | None = None) -> None:
        self.name = settings.served_name
        self.ready = False
        self.progress = "not started"
        self._settings = settings
        self._observer = observer
        self._plan: MemoryPlan
        self._family: PipelineFamily
        self._adapters: Adapters
        self._engine: ImageEngine | None = None

    def load(self) -> None:
        """Bring the model up to `ready`; `progress` says at every moment what is being done.

        Raises:
            StartError: the source, the checkpoint or the memory plan stands in the way.
        """
        from atelier.hardware.devices import DeviceManager
        from atelier.hardware.memory import OptimizationManager
        from atelier.sources import fetch
        from atelier.sources.checkpoint import inspect

        settings = self._settings
        self.progress = f"fetching {settings.model_id}"
        path = fetch(settings)
        self.progress = f"reading headers of {path}"
        checkpoint = inspect(
            path,
            variant=settings.variant,
            allow_pickle=settings.allow_pickle,
            trust_remote_code=settings.trust_remote_code,
        )
        checkpoint.check()
        self._plan = OptimizationManager(DeviceManager(settings).select(), settings).plan(checkpoint)
        self.progress = f"loading {checkpoint.pipeline_class} from {path}"
        from atelier.images.adapters import Adapters
        from atelier.images.compilation import buckets, compile_denoisers, keep_caches
        from atelier.images.engine import ImageEngine, Limits
        from atelier.images.family import PipelineFamily
        from atelier.images.interception import install
        from atelier.images.loader import PipelineLoader
        from atelier.images.warmup import warm_up

        compiled = self._plan.compile != "off"
        if compiled:
            keep_caches(settings.cache_dir, self._plan.device, path)
        self._family = PipelineFamily(PipelineLoader(checkpoint, self._plan, settings).load())
        self._adapters = Adapters(
            self._family.base, settings.lora_paths, settings.default_adapters, keep=settings.max_loras
        )
        gates = install(self._family.base)
        if compiled:
            compile_denoisers(gates, self._plan.compile)
        rows = min(settings.max_batch_size, self._plan.max_rows)
        limits = Limits(rows, settings.max_queue_size, buckets=buckets(rows) if compiled else ())
        self._engine = ImageEngine(limits, use_adapters=self._adapters.use, observer=self._observer)
        if not settings.skip_warmup:
            self.progress = "drawing the first pictures"
            warm_up(self._engine, self._family.base, self._warmup_sizes(compiled), limits.buckets or (rows,))
        self.ready = True
        self.progress = "ready"

    def _warmup_sizes(self, compiled: bool) -> list[tuple[int, int]]:
        """WARMUP_SIZES; if something is compiled, also the size that requests get who name none."""
        from atelier.images.arguments import native_size

        wanted = [tuple(map(int, size.split("x"))) for size in self._settings.warmup_sizes]
        native = [native_size(self._family.base)] if compiled else []
        return list(dict.fromkeys([(size[0], size[1]) for size in [*native, *wanted]]))

    async def submit(self, request: ImageRequest, protocol: str = "") -> EventStream:
        """Check the request against the loaded pipeline and hand it to the engine.

        Raises:
            NotReady: the model is still loading.
            InvalidRequest, Busy, Draining: the request is refused.
        """
        if self._engine is None or not self.ready:
            raise NotReady(f"the model {self.name} is not ready: {self.progress}")
        job = await asyncio.to_thread(self.prepare, request)
        return self._engine.submit(job, protocol)

    def prepare(self, request: ImageRequest) -> Job:
        """Everything about a request that needs no device: pipeline, arguments, decoded pictures, seed, deadline."""
        from atelier.images.arguments import build
        from atelier.images.drawing import Job
        from atelier.images.family import must_run_alone, scheduler_for

        pipeline = self._family.pipeline_for(request)
        seconds = min(request.timeout or self._settings.request_timeout, self._settings.request_timeout)
        return Job(
            pipeline=pipeline,
            arguments=build(pipeline, request, self._settings.max_pixels),
            seed=secrets.randbelow(2**32) if request.seed is None else request.seed,
            pictures=request.num_images_per_prompt,
            deadline=time.monotonic() + seconds,
            scheduler=scheduler_for(pipeline, request.scheduler, "scheduler") if request.scheduler else None,
            exclusive=must_run_alone(pipeline),
            adapters=self._adapters.select(request.lora),
            previews=request.previews,
        )

    def drain(self, seconds: float) -> None:
        """Finish what runs, within `seconds`, and stop. Blocks."""
        if self._engine is not None:
            self._engine.drain(seconds)

    def close(self) -> None:
        """Stop at once; requests that still run fail."""
        if self._engine is not None:
            self._engine.close()

    def metadata(self) -> dict[str, Any]:
        """What the model's metadata endpoint adds: pipeline class, accepted arguments, memory plan."""
        from atelier.images.arguments import accepted

        if not self.ready:
            return {}
        return {
            "pipeline": type(self._family.base).__name__,
            "arguments": accepted(self._family.base),
            "adapters": self._adapters.names,
            "memory_plan": self._plan.asdict(),
        }
