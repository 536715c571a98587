"""A language model from MODEL_ID to events: fetch, load or start the engine, warm up, then serve
requests.

Which engine runs is this module's business; protocols see `submit`, or, for a child engine, the
address to forward to.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from atelier.errors import NotReady
from atelier.settings import Settings
from atelier.streams import EventStream, MakeStream
from atelier.text.calls import FORMATS, forced_call_grammar, form_for, schemas_of
from atelier.text.child.specs import served_paths
from atelier.text.observer import SilentTextObserver, TextObserver, counted_refusals
from atelier.text.parsing import THINK, AnswerParser
from atelier.text.refused_settings import check_embedded
from atelier.text.request import TextRequest, make_request
from atelier.text.template import PromptEncoder
from atelier.text.token_names import TokenNames

if TYPE_CHECKING:
    from atelier.sources.opened import OpenedCheckpoint
    from atelier.text.child.process import ProcessEngine
    from atelier.text.embedded.engine import TransformersEngine
    from atelier.text.embedded.loading import Loaded

log = logging.getLogger(__name__)

PREFILL_TOKENS = {"cpu": 512, "cuda": 4096}
"""Of one prefill step if MAX_NUM_BATCHED_TOKENS is unset: about as long as running answers may be
made to wait."""


class TextModel:
    """One language model, served. `load()` blocks and belongs in a thread; the rest is for the
    event loop."""

    def __init__(self, settings: Settings, observer: TextObserver | None = None) -> None:
        self.observer = observer or SilentTextObserver()
        self.name = settings.served_name
        self._progress = "not started"
        self.stages: dict[str, float] = {}
        self.child: ProcessEngine | None = None
        self._settings = settings
        self._engine: TransformersEngine | None = None
        self._loaded: Loaded | None = None
        self._encoder: PromptEncoder | None = None
        self._pooling = ""
        self._up = False
        # pools of their own, so that none waits for another's kind of work
        self._tokenizing = ThreadPoolExecutor(2, thread_name_prefix="tokenizing")
        self._embedding = ThreadPoolExecutor(1, thread_name_prefix="embedding")
        self._encoded = 0  # requests on their way to the engine

    @property
    def forwards(self) -> tuple[str, ...]:
        """Paths that the child engine answers itself."""
        if self.child is not None:
            return self.child.paths
        return served_paths(self._settings) if self._settings.engine != "transformers" else ()

    @property
    def progress(self) -> str:
        """What the start, or a restart, is doing."""
        return "ready" if self.ready else self._trouble()

    @property
    def expected_s(self) -> float | None:
        """Seconds until a child engine that is down serves again, if that is known."""
        return self.child.expected_s if self.child is not None and not self.ready else None

    @property
    def ready(self) -> bool:
        """Whether a request would be served now."""
        if self.child is not None:
            return self._up and self.child.healthy
        return self._up and self._engine is not None and self._engine.dead is None

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        return self._loaded.capacity.context if self._loaded is not None else 0

    @property
    def depth(self) -> int:
        """Requests waiting or running."""
        if self.child is not None:
            return self.child.inflight
        return self._engine.depth if self._engine is not None else 0

    def gauges(self) -> dict[str, float]:
        """What the embedded engine counts: sequences running and waiting, share of cache in use."""
        return self._engine.gauges() if self._engine is not None else {}

    def device_memory(self) -> tuple[int, int]:
        """Used and free bytes of the device; (0, 0) where nobody tells or a child owns it."""
        return self._loaded.runner.device_memory() if self._loaded is not None else (0, 0)

    @property
    def vocabulary_size(self) -> int:
        """Token ids go from 0 to one less."""
        return self._loaded.vocabulary.size if self._loaded is not None else 0

    @property
    def template_takes(self) -> list[str]:
        """Of the protocols' fields those that the chat template reads."""
        return self._encoder.takes if self._encoder is not None else []

    def load(self) -> None:
        """Bring the model up to `ready`; `progress` says at every moment what is being done.

        Raises:
            StartError: the source, the checkpoint, the engine's settings or the memory stand in the
                way.
        """
        from atelier.profiles import check_profile
        from atelier.sources.opened import open_checkpoint

        settings = self._settings
        check_profile(settings)
        with self._stage("source", f"fetching {settings.model_id}"):
            source = open_checkpoint(settings)
        start = self._load_embedded if settings.engine == "transformers" else self._start_child
        with source:
            start(source)
        took = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.stages.items())
        log.info("started in %s", took)
        self._up = True
        self._progress = "ready"

    async def submit(self, request: TextRequest, streams: MakeStream = EventStream) -> EventStream:
        """Encode the prompt in a thread, and submit it to the engine; `streams` makes the stream.

        Raises:
            NotReady: the model is still loading, or its engine is down.
            InvalidRequest, Busy, Draining: the request is refused.
        """
        self.check_ready()
        if self.child is not None:
            return self.child.submit(request)
        assert self._engine is not None and self._encoder is not None
        self._engine.check_room(self._encoded)
        self._encoded += 1
        try:
            prompt = await self._in_thread(self._encoder.encode, request)
            forced = self._forced_call(request)
            masked = forced is not None or request.response_format.type != "text"
            reasoning = masked and await self._in_thread(self._opened, request)
        finally:
            self._encoded -= 1
        return self._engine.submit(request, prompt, forced, reasoning, streams)

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """What tokenizes or renders; never on the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tokenizing, work, *arguments)

    def refusals(self, protocol: str) -> AbstractContextManager[None]:
        """Count an error raised inside as a request of this protocol that was not admitted."""
        return counted_refusals(self.observer, protocol)

    def parser(self, request: TextRequest) -> AnswerParser:
        """What takes this request's answer apart."""
        if self.child is not None or request.messages is None:
            return AnswerParser(None, reasoning=self.child is not None)
        template = self._encoder.template if self._encoder is not None else ""
        offered = bool(request.tools) and request.tool_choice != "none"
        name = form_for(template, self._settings.tool_call_parser) if offered else ""
        thinks = self._settings.reasoning_parser != "none"
        return AnswerParser(FORMATS.get(name), thinks, self._opened(request), schemas_of(request))

    async def tokenize(self, request: TextRequest) -> list[int]:
        """The prompt's token ids as the engine would see them."""
        ids: list[int] = await self._in_thread(self.encoder.encode, request)
        return ids

    async def detokenize(self, ids: list[int]) -> str:
        """Text of token ids, special tokens included."""
        text: str = await self._in_thread(self.encoder.decode, ids)
        return text

    async def embed(self, text: str | list[int]) -> tuple[list[float], int]:
        """The vector of a text and how many tokens it has."""
        from atelier.text.embedded.embeddings import embed

        request = (
            make_request(prompt=text) if isinstance(text, str) else make_request(prompt_ids=text)
        )
        ids = await self.tokenize(request)
        assert self._loaded is not None
        asked = self._loaded.model, ids, self._pooling, self.context
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._embedding, embed, *asked), len(ids)

    @property
    def encoder(self) -> PromptEncoder:
        """The embedded engine's tokenizer; NotReady before it is loaded."""
        self.check_ready()
        if self._encoder is None:
            raise NotReady(f"the model {self.name} has no tokenizer in this process")
        return self._encoder

    @property
    def names(self) -> TokenNames:
        """What token ids are called, made anew; NotReady before the tokenizer is loaded."""
        return self.encoder.names(self.vocabulary_size)

    async def child_metrics(self) -> str:
        """The child engine's own metrics; empty while it is down."""
        return await self.child.metrics() if self.child is not None else ""

    def check_ready(self) -> None:
        """Raise NotReady unless `ready`, with what is going on."""
        if not self.ready:
            raise NotReady(
                f"the model {self.name} is not ready: {self._trouble()}", self.expected_s
            )

    def drain(self, seconds: float) -> None:
        """Finish what runs, within `seconds`, and stop. Blocks."""
        engine = self.child or self._engine
        if engine is not None:
            engine.drain(seconds)
            engine.close()

    def close(self) -> None:
        """Stop at once; requests that still run fail."""
        self.drain(0)

    def metadata(self) -> dict[str, Any]:
        """What the model's metadata endpoint adds."""
        loaded = self._loaded.described() if self._loaded is not None else {}
        return {"engine": self._settings.engine, "stages": self.stages} | loaded

    def _load_embedded(self, source: OpenedCheckpoint) -> None:
        with self._stage("weights", f"loading {source.path}"):
            from atelier.hardware.container import set_cpu_threads
            from atelier.hardware.dtypes import DtypeSelector
            from atelier.hardware.machine import DeviceManager
            from atelier.text.embedded.admission import ContextLimits
            from atelier.text.embedded.embeddings import pooling
            from atelier.text.embedded.engine import TransformersEngine
            from atelier.text.embedded.loading import load, record_graphs, warm_up

            settings = self._settings
            check_embedded(settings)
            device = DeviceManager(settings).select()
            if device.kind == "cpu":
                set_cpu_threads(settings)
            checkpoint = source.inspect()
            checkpoint.check()
            dtype = DtypeSelector(device, settings).select(checkpoint).torch_dtype
            source.fill(checkpoint)
            self._pooling = pooling(source.path)
            self._loaded = load(source.path, settings, device.torch, dtype, source.close)
        if self._loaded.runner.graphs:
            with self._stage("compile", "recording the decode steps"):
                record_graphs(*self._loaded.runners)
        prefill = settings.max_num_batched_tokens or PREFILL_TOKENS.get(device.kind, 512)
        if settings.warmup == "auto":
            with self._stage("warmup", "warming up"):
                warm_up(self._loaded.runner, settings.warmup_prompts, prefill)
        self._encoder = PromptEncoder(self._loaded.vocabulary.tokenizer, self.context)
        queue, timeout, loaded = settings.max_queue_size, settings.request_timeout, self._loaded
        limits = ContextLimits(self.context, queue, timeout, prefill)
        parts = loaded.runner, loaded.vocabulary, limits, loaded.speculation
        self._engine = TransformersEngine(*parts)

    def _start_child(self, source: OpenedCheckpoint) -> None:
        from atelier.text.child.process import ProcessEngine

        settings = self._settings
        self.child = ProcessEngine(settings, source.path, self.name)
        with self._stage("weights", f"starting {settings.engine}"):
            self.child.start()
        if settings.warmup == "auto":
            with self._stage("warmup", "warming up"):
                self.child.warm_up()

    def _forced_call(self, request: TextRequest) -> str | None:
        assert self._encoder is not None and self._loaded is not None
        form = form_for(self._encoder.template, self._settings.tool_call_parser)
        special = set(self._loaded.vocabulary.tokenizer.get_added_vocab())
        return forced_call_grammar(request, form, special)

    def _opened(self, request: TextRequest) -> bool:
        """Whether the prompt ends within the reasoning, which the answer then has to close."""
        if request.messages is None or self._settings.reasoning_parser == "none":
            return False
        return THINK in self.encoder.template and self.encoder.render(request).rstrip().endswith(
            THINK
        )

    def _trouble(self) -> str:
        if self._engine is not None and self._engine.dead:
            return self._engine.dead
        if self.child is None or not self._up:
            return self._progress
        expected = self.child.expected_s
        soon = "" if expected is None else f", expected in about {expected:.0f} s"
        return self.child.trouble + soon

    @contextmanager
    def _stage(self, name: str, progress: str) -> Iterator[None]:
        """Time one stage of the start."""
        self._progress = progress
        begun = time.monotonic()
        yield
        self.stages[name] = time.monotonic() - begun
        self.observer.loaded(name, self.stages[name])
