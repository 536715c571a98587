"""A picture model from MODEL_ID to events: fetch, inspect, plan, load, probe, then serve requests
through the engine."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from atelier.errors import AtelierError, NotReady, SettingsError
from atelier.images.observer import ImageObserver, SilentImageObserver
from atelier.images.request import ImageRequest
from atelier.settings import Settings
from atelier.streams import EventStream

if TYPE_CHECKING:
    from atelier.hardware.choice import MemoryPlan
    from atelier.hardware.kernel_cache import KernelCache
    from atelier.images.conditioners import Conditioners
    from atelier.images.drawing import PreparedRequest
    from atelier.images.engine import ImageEngine
    from atelier.images.family import PipelineFamily
    from atelier.images.group import RankGroup
    from atelier.images.modules import SharedModules
    from atelier.images.preparation import Preparation
    from atelier.sources import AdapterSource, Checkpoint
    from atelier.sources.conditioning import Conditioning
    from atelier.sources.opened import OpenedCheckpoint

log = logging.getLogger(__name__)

LEAST_BEGUN_BYTES = 64 << 20
"""What requests that have begun may hold even where the plan leaves next to nothing."""


class ImageModel:
    """One checkpoint, served. `load()` blocks and belongs in a thread; everything else is for the
    event loop."""

    def __init__(
        self,
        settings: Settings,
        observer: ImageObserver | None = None,
        group: RankGroup | None = None,
    ) -> None:
        """`group` are the processes that share its denoiser calls, this one the first of them."""
        self.name = settings.served_name
        self.ready = False
        self.progress = "not started"
        self._settings = settings
        self._observer = observer or SilentImageObserver()
        self._group = group
        self._compiled = False
        self._kernels: KernelCache | None = None
        self._plan: MemoryPlan
        self._modules: SharedModules
        self._family: PipelineFamily
        self._conditioners: Conditioners
        self._preparation: Preparation
        self._engine: ImageEngine | None = None
        self._decoding = ThreadPoolExecutor(2, thread_name_prefix="decoding")

    def load(self) -> None:
        """Bring the model up to `ready`; `progress` says at every moment what is being done.

        Raises:
            StartError: the source, the checkpoint or the memory plan stands in the way.
        """
        from atelier.hardware.ranks import settings_of
        from atelier.sources import fetch_adapters
        from atelier.sources.checkpoint.classifier import check_own
        from atelier.sources.conditioning import find_conditioning
        from atelier.sources.opened import open_checkpoint

        settings = self._settings = settings_of(self._settings, 0, bool(self._group))
        images = (*settings.controlnets, *settings.ip_adapters)
        beside = (*settings.lora_paths, *images, *settings.embeddings, *settings.upscalers)
        with ExitStack() as held:
            with self._stage("source", f"fetching {', '.join((settings.model_id, *beside))}"):
                source = held.enter_context(open_checkpoint(settings))
                checkpoint = source.inspect()
                checkpoint.check()
                check_own(settings, checkpoint)
                adapters = fetch_adapters(settings)
                conditioning = find_conditioning(settings, checkpoint)
            doing = f"loading {checkpoint.pipeline_class} from {checkpoint.path}"
            with self._stage("weights", doing):
                self._build(source, checkpoint, adapters, conditioning)
        if settings.warmup == "auto":
            with self._stage("warmup", "drawing the first pictures"):
                self._warm_up()
        if self._kernels is not None:
            self._kernels.seal()
        self.progress = "ready"
        self.ready = True

    @contextmanager
    def _stage(self, name: str, doing: str) -> Iterator[None]:
        """A part of the start: shown while it runs, logged and measured when it is done."""
        self.progress = doing
        log.info("%s", doing)
        began = time.monotonic()
        yield
        self._observer.loaded(name, time.monotonic() - began)

    def _build(
        self,
        source: OpenedCheckpoint,
        checkpoint: Checkpoint,
        adapters: Sequence[AdapterSource],
        conditioning: Conditioning,
    ) -> None:
        """Plan, load, place, compile, and start the engine."""
        from atelier.hardware.choice import OptimizationManager
        from atelier.hardware.container import set_cpu_threads
        from atelier.hardware.machine import DeviceManager
        from atelier.images import compilation
        from atelier.images.adapters import Adapters
        from atelier.images.conditioners import Conditioners
        from atelier.images.content_filter import ContentFilter
        from atelier.images.engine import EngineLimits, ImageEngine
        from atelier.images.family import PipelineFamily
        from atelier.images.graphs import graph_bytes
        from atelier.images.joint_adapters import JointAdapters
        from atelier.images.loader import PipelineLoader
        from atelier.images.modules import SharedModules
        from atelier.images.preparation import Preparation
        from atelier.images.sharing import share_calls

        settings = self._settings
        device = DeviceManager(settings).select()
        if device.kind == "cpu":
            set_cpu_threads(settings)
        others = self._group.devices() if self._group else []
        self._plan = OptimizationManager(device, settings, others, conditioning).plan(checkpoint)
        if self._plan.quantization == "fp8" and adapters:
            raise SettingsError(
                "LORA_PATHS with QUANTIZATION=fp8: an adapter needs layers that are not in fp8; set"
                " QUANTIZATION to nf4, int8 or none"
            )
        self._compiled = self._plan.compile != "off"
        if self._compiled:
            self._kernels = compilation.keep_caches(
                settings.cache_dir, self._plan.device, source.identity
            )
        source.fill(checkpoint)
        variables = self._kernels.environment() if self._kernels else {}
        loading = self._group.load(checkpoint, self._plan, variables) if self._group else 0
        loader = PipelineLoader(checkpoint, self._plan, settings, words=conditioning.embeddings)
        with self._group.turn() if self._group and self._plan.sharded else nullcontext():
            self._family = PipelineFamily(loader.load())
        if self._group:
            self._group.meet(loading, self._family.base)
        plan, base = self._plan, self._family.base
        loras = Adapters(base, adapters, settings.default_adapters, keep=settings.max_loras)
        self._conditioners = beside = Conditioners(base, loras, conditioning, plan, settings)
        content_filter = ContentFilter(settings, plan.device, self._observer.filtered)
        self._preparation = Preparation(settings, plan, self._family, beside, content_filter)
        use = JointAdapters(self._group, beside).use if self._group else beside.use
        self._modules = modules = SharedModules(base, use, beside.gates)
        if self._compiled:
            modules.speed_up(self._plan.compile)
        if self._group:
            share_calls(self._group, modules.gates, loader.sharded)
        rows = min(settings.max_batch_size, self._plan.max_rows)
        limits = EngineLimits(
            rows,
            settings.max_queue_size,
            graph_bytes=graph_bytes(plan) if settings.enable_cuda_graphs != "false" else 0,
            begun_bytes=max(LEAST_BEGUN_BYTES, self._plan.headroom_bytes // 2),
        )
        self._engine = ImageEngine(
            limits, modules=modules, observer=self._observer, group=self._group
        )
        loras.when_dropped = self._engine.runner.forget_adapter

    def _warm_up(self) -> None:
        from atelier.images import compilation
        from atelier.images.sharing import mirrored
        from atelier.images.warmup import warm_up

        assert self._engine is not None
        group = self._group if self._compiled else None
        with mirrored(group, self._modules.gates) if group else nullcontext():
            warm_up(self._engine, self._family.base, self._warmup_sizes())
        if self._compiled:
            compilation.finish()
            if self._group:
                self._group.stop_compiling()

    def _warmup_sizes(self) -> list[tuple[int, int]]:
        """WARMUP_SIZES; if something is compiled, also the size that requests get who name none."""
        from atelier.images.sizes import native_size

        wanted = [tuple(map(int, size.split("x"))) for size in self._settings.warmup_sizes]
        native = [native_size(self._family.base)] if self._compiled else []
        return list(dict.fromkeys([(size[0], size[1]) for size in [*native, *wanted]]))

    def check_ready(self) -> None:
        """See that requests can be served.

        Raises:
            NotReady: the model is still loading.
        """
        if self._engine is None or not self.ready:
            raise NotReady(f"the model {self.name} is not ready: {self.progress}")

    def check_room(self) -> None:
        """See that requests can be served; the engine has the queue.

        Raises:
            NotReady: the model is still loading.
        """
        self.check_ready()

    async def submit(self, request: ImageRequest, protocol: str = "") -> EventStream:
        """Check the request against the loaded pipeline and hand it to the engine.

        Raises:
            NotReady: the model is still loading.
            InvalidRequest, Busy, Draining: the request is refused.
        """
        with self.refusals(protocol):
            self.check_ready()
            assert self._engine is not None
            return self._engine.submit(await self.prepared(request), protocol)

    @contextmanager
    def refusals(self, protocol: str) -> Iterator[None]:
        """Count an error raised inside as a request of this protocol that was not admitted."""
        try:
            yield
        except AtelierError as error:
            self._observer.refused(protocol, error)
            raise

    async def prepared(self, request: ImageRequest) -> PreparedRequest:
        """The request, prepared in a thread: of the two that decode pictures, if it has some, which
        may be large. Others do not wait for them."""
        pool = self._decoding if request.has_pictures else None
        return await asyncio.get_running_loop().run_in_executor(
            pool, self._preparation.prepare, request
        )

    def busy_s(self) -> tuple[float, float]:
        """Seconds that the device loop has been at what it does now, and the longest so far."""
        if self._engine is None:
            return 0.0, 0.0
        return self._engine.pulse.busy_s(), self._engine.pulse.longest_s

    @property
    def depth(self) -> int:
        """Requests waiting or running."""
        return self._engine.depth if self._engine else 0

    def device_memory(self) -> tuple[int, int]:
        """Bytes of the device used and free; zeros before the model is placed."""
        from atelier.hardware.machine import memory_now

        return memory_now(self._plan.device) if self.ready else (0, 0)

    def memory_promise(self) -> tuple[MemoryPlan, int] | None:
        """The plan and the bytes of the device that a run took at most; None before the first
        picture, and where nothing counts them."""
        from atelier.hardware.machine import peak_bytes

        begun = self.ready and self._engine is not None and self._engine.pulse.longest_s > 0
        taken = peak_bytes(self._plan.device) if begun else None
        return None if taken is None else (self._plan, taken)

    def drain(self, seconds: float) -> None:
        """Finish what runs, within `seconds`, and stop. Blocks."""
        if self._engine is not None:
            self._engine.drain(seconds)
        if self._group:
            self._group.close()

    def close(self) -> None:
        """Stop at once; requests that still run fail."""
        if self._engine is not None:
            self._engine.close()
        if self._group:
            self._group.close()

    @property
    def default_steps(self) -> int | None:
        """The pipeline's own number of steps; None if it has no such argument."""
        from atelier.images.description import default_steps

        return default_steps(self._family.base)

    @property
    def gives_alpha(self) -> bool:
        """True if the VAE decodes to four channels."""
        from atelier.images.description import gives_alpha

        return gives_alpha(self._family.base)

    def metadata(self) -> dict[str, Any]:
        """What the model's metadata endpoint adds: the pipeline's description, adapters, which
        calls are stacked, the memory plan."""
        from atelier.images.description import describe

        if not self.ready:
            return {}
        told = describe(self._family.base, self._settings, self._plan)
        return {
            **told,
            **self._conditioners.names,
            "stacking": self._engine.verifier.summary() if self._engine else [],
            "memory_plan": self._plan.asdict(),
        }
