"""Metrics of the server, named `atelier_*` with their units; Prometheus reads them on `/metrics`.

`Metrics` implements what the image engine reports (`images.observer.Observer`); it is made by the
server and handed down.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import Counter, Gauge, Histogram

from atelier.errors import report
from atelier.events import Event, Failed, Finished, Image, Preview, Queued, Started, Usage
from atelier.logs import current_request_id
from atelier.tracing import Tracer

log = logging.getLogger("atelier.requests")

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
STEP_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
ROWS = (1, 2, 4, 8, 16, 32, 64)
MAX_SHAPES = 64  # distinct values of the label `shape`; later ones are counted as `other`


class Metrics:
    """All metrics of one process."""

    def __init__(
        self, tracer: Tracer | None = None, log_prompts: bool = False, alias: str = ""
    ) -> None:
        """`alias` is the model name under which what waits and runs also stands under the names
        that autoscalers of vLLM query; empty: it does not."""
        self._tracer = tracer
        self._log_prompts = log_prompts
        self._shapes: set[str] = set()
        self.requests = Counter("atelier_requests", "Requests that ended.", ["protocol", "outcome"])
        self.seconds = Histogram(
            "atelier_request_seconds",
            "From admission to the last event.",
            ["protocol", "outcome"],
            buckets=SECONDS,
        )
        self.wait = Histogram(
            "atelier_queue_wait_seconds", "From admission to the first step.", buckets=SECONDS
        )
        self.first_preview = Histogram(
            "atelier_first_preview_seconds", "From admission to the first preview.", buckets=SECONDS
        )
        self.images = Counter("atelier_images", "Pictures drawn.")
        self.pixels = Counter("atelier_pixels", "Pixels drawn.")
        self.steps = Histogram(
            "atelier_step_seconds",
            "One module call, batched.",
            ["stage", "shape", "worker"],
            buckets=STEP_SECONDS,
        )
        self.rows = Histogram(
            "atelier_batch_rows", "Rows of a module call.", ["stage"], buckets=ROWS
        )
        self.shared = Histogram(
            "atelier_batch_requests", "Requests that share a module call.", ["stage"], buckets=ROWS
        )
        self.embeddings = Counter(
            "atelier_embedding_cache", "Prompt embeddings asked for.", ["result"]
        )
        self.out_of_memories = Counter(
            "atelier_out_of_memory", "Module calls that ran out of memory."
        )
        self.plan_errors = Gauge(
            "atelier_memory_plan_error_ratio",
            "Peak of the device's memory against the plan's promise: 0.1 is a tenth more.",
            ["worker"],
        )
        self.filters = Counter(
            "atelier_filtered",
            "Prompts and pictures that a filter stopped, blurred or flagged, by label.",
            ["what", "label", "action"],
        )
        self.load = Gauge(
            "atelier_load_seconds", "Seconds that a stage of the start took.", ["stage"]
        )
        self.workers = Gauge("atelier_workers_ready", "Workers that serve now.")
        self.worker_ends = Counter(
            "atelier_worker_ends", "Worker processes that ended by themselves.", ["worker"]
        )
        self.stackings = Counter(
            "atelier_stacking_verdicts",
            "Layouts of a module's calls that were compared: stacked from then on, or run alone.",
            ["pipeline", "module", "verdict"],
        )
        self.depth = Gauge("atelier_queue_depth", "Requests waiting or running.")
        states = {"waiting": "before their first step", "running": "past it"}
        self.states = {
            state: [Gauge(f"atelier_requests_{state}", f"Admitted requests {words}.")]
            for state, words in states.items()
        }
        if alias:
            for state, gauges in self.states.items():
                named = Gauge(
                    f"vllm:num_requests_{state}",
                    f"The same as atelier_requests_{state}.",
                    ["model_name"],
                )
                gauges.append(named.labels(alias))
        self._alias = alias
        self.guesses = {
            what: Counter(
                f"vllm:spec_decode_num_{what}_tokens", f"Guessed tokens {words}.", ["model_name"]
            )
            for what, words in (("draft", "of all answers"), ("accepted", "that came true"))
            if alias
        }
        self.memory_used = Gauge("atelier_device_memory_used_bytes", "Device memory in use.")
        self.memory_free = Gauge("atelier_device_memory_free_bytes", "Device memory not in use.")

    def watch(self, depth: Callable[[], int], memory: Callable[[], tuple[int, int]]) -> None:
        """Read queue depth and (used, free) device bytes whenever the metrics are read."""
        self.depth.set_function(depth)
        self.memory_used.set_function(lambda: memory()[0])
        self.memory_free.set_function(lambda: memory()[1])

    def watch_workers(self, ready: Callable[[], int]) -> None:
        """Read the number of workers that serve whenever the metrics are read."""
        self.workers.set_function(ready)

    def worker_ended(self, worker: str) -> None:
        """A worker's process is gone and was not told to go."""
        self.worker_ends.labels(worker).inc()

    def refused(self, protocol: str, error: BaseException) -> None:
        """A request that was never admitted."""
        self.requests.labels(protocol, report(error).code).inc()

    def request(self, protocol: str, prompt: str = "") -> Callable[[Event], None]:
        """See `Observer`."""
        logged = prompt if self._log_prompts else None
        return _Request(self, self._tracer, protocol, current_request_id(), logged)

    def call(
        self,
        stage: str,
        seconds: float,
        shape: str,
        rows: int,
        requests: int,
        worker: str = "0",
    ) -> None:
        """See `Observer`."""
        if shape not in self._shapes and len(self._shapes) >= MAX_SHAPES:
            shape = "other"
        self._shapes.add(shape)
        self.steps.labels(stage, shape, worker).observe(seconds)
        self.rows.labels(stage).observe(rows)
        self.shared.labels(stage).observe(requests)

    def embedding(self, hit: bool) -> None:
        """See `Observer`."""
        self.embeddings.labels("hit" if hit else "miss").inc()

    def out_of_memory(self) -> None:
        """See `Observer`."""
        self.out_of_memories.inc()

    def memory_compared(self, error: float, worker: str) -> None:
        """See `Observer`."""
        self.plan_errors.labels(worker).set(error)

    def stacking(self, pipeline: str, module: str, stacked: bool) -> None:
        """See `Observer`."""
        verdict = "stacked" if stacked else "alone"
        self.stackings.labels(pipeline, module, verdict).inc()

    def filtered(self, what: str, label: str, action: str) -> None:
        """See `Observer`."""
        self.filters.labels(what, label, action).inc()

    def moved(self, before: str, after: str) -> None:
        """A request went from one state to another: waiting, running, or neither, which is
        empty."""
        for gauge in self.states.get(before, ()):
            gauge.dec()
        for gauge in self.states.get(after, ()):
            gauge.inc()

    def guessed(self, usage: Usage) -> None:
        """Count guesses under the names that dashboards of vLLM query."""
        counts = {"draft": usage.drafted, "accepted": usage.accepted}
        for what, counter in self.guesses.items():
            counter.labels(self._alias).inc(counts[what])

    def loaded(self, stage: str, seconds: float) -> None:
        """See `Observer`."""
        self.load.labels(stage).set(seconds)


@dataclass
class _Request:
    """Follows the events of one request; a log line and a trace come at its end."""

    metrics: Metrics
    tracer: Tracer | None
    protocol: str
    request_id: str
    prompt: str | None  # None: not to be logged
    began: float = field(default_factory=time.time)
    previewed: bool = False
    pictures: int = 0
    state: str = ""

    def __call__(self, event: Event) -> None:
        passed = time.time() - self.began
        if isinstance(event, Queued):
            self.began = time.time()
            self._move("waiting")
        elif isinstance(event, Started):
            self.metrics.wait.observe(passed)
            self._move("running")
        elif isinstance(event, Preview) and not self.previewed:
            self.previewed = True
            self.metrics.first_preview.observe(passed)
        elif isinstance(event, Image):
            self.pictures += 1
            self.metrics.images.inc()
            self.metrics.pixels.inc(event.width * event.height)
        elif isinstance(event, Finished):
            if event.usage is not None:
                self.metrics.guessed(event.usage)
            self._end("ok", passed, event.timings, "")
        elif isinstance(event, Failed):
            self._end(report(event.error).code, passed, {}, event.error.message)

    def _move(self, state: str) -> None:
        self.metrics.moved(self.state, state)
        self.state = state

    def _end(self, outcome: str, seconds: float, timings: dict[str, float], reason: str) -> None:
        self._move("")
        self.metrics.requests.labels(self.protocol, outcome).inc()
        self.metrics.seconds.labels(self.protocol, outcome).observe(seconds)
        fields = {
            "protocol": self.protocol,
            "outcome": outcome,
            "seconds": round(seconds, 4),
            "pictures": self.pictures,
        }
        fields |= {f"{stage}_seconds": round(value, 4) for stage, value in timings.items()}
        if self.prompt is not None:
            fields["prompt"] = self.prompt
        if reason:
            fields["reason"] = reason
        log.info("request", extra={"fields": fields, "request_id": self.request_id})
        if self.tracer:
            self.tracer.record(
                self.protocol, outcome, self.request_id, self.began, seconds, timings
            )
