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
        from atelier.images.engine import ImageEngine, Limits
        from atelier.images.family import PipelineFamily
        from atelier.images.interception import install
        from atelier.images.loader import PipelineLoader

        self._family = PipelineFamily(PipelineLoader(checkpoint, self._plan, settings).load())
        self._adapters = Adapters(
            self._family.base, settings.lora_paths, settings.default_adapters, keep=settings.max_loras
        )
        install(self._family.base)
        limits = Limits(min(settings.max_batch_size, self._plan.max_rows), settings.max_queue_size)
        self._engine = ImageEngine(limits, use_adapters=self._adapters.use, observer=self._observer)
        self.ready = True
        self.progress = "ready"

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
