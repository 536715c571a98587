"""What an endpoint's metrics tell over time: samples of the page that Prometheus reads, a few
minutes of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families

from atelier.studio.client import EndpointClient

SECONDS_BETWEEN = 1.0
"""Least time between two samples, however many browsers look."""

KEPT = 120

SHOWN = {
    "atelier_requests_waiting": "waiting",
    "atelier_requests_running": "running",
    "atelier_device_memory_used_bytes": "memory_used",
    "atelier_device_memory_free_bytes": "memory_free",
    "atelier_images_total": "pictures",
    "atelier_text_generated_tokens_total": "tokens",
    "atelier_text_kv_cache_usage_ratio": "cache_use",
}
"""Metrics by their names here."""

STAGE = "denoise"
"""The stage whose calls are the steps of pictures."""


@dataclass(frozen=True)
class MetricsSample:
    """One reading. `rows` maps the upper bounds of batch sizes to calls up to that size."""

    at: float
    values: Mapping[str, float] = field(default_factory=dict)
    steps: float = 0.0
    step_seconds: float = 0.0
    rows: Mapping[float, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, page: str, at: float) -> MetricsSample:
        """Read a metrics page."""
        values: dict[str, float] = {}
        rows: dict[float, float] = {}
        steps = seconds = 0.0
        for family in text_string_to_metric_families(page):
            for name, labels, value, *_ in family.samples:
                if name in SHOWN:
                    values[SHOWN[name]] = values.get(SHOWN[name], 0.0) + value
                elif labels.get("stage") != STAGE:
                    continue
                elif name == "atelier_step_seconds_count":
                    steps += value
                elif name == "atelier_step_seconds_sum":
                    seconds += value
                elif name == "atelier_batch_rows_bucket":
                    rows[float(labels["le"])] = value
        return cls(at, values, steps, seconds, rows)


class Readings:
    """The samples of one endpoint."""

    def __init__(self, endpoint: EndpointClient) -> None:
        self._endpoint = endpoint
        self.samples: deque[MetricsSample] = deque(maxlen=KEPT)

    async def take(self) -> None:
        """Add a sample, unless the last is fresh.

        Raises:
            EndpointError: the metrics cannot be had.
        """
        now = time.monotonic()
        if self.samples and now - self.samples[-1].at < SECONDS_BETWEEN:
            return
        self.samples.append(MetricsSample.parse(await self._endpoint.metrics(), now))

    def now(self, name: str) -> float | None:
        """The last value of a metric."""
        return self.samples[-1].values.get(name) if self.samples else None

    def course(self, name: str) -> list[float]:
        """All values of a metric, oldest first."""
        return [sample.values.get(name, 0.0) for sample in self.samples]

    def rate(self, name: str) -> list[float]:
        """What a counter gained a second, from sample to sample."""
        return [
            (now.values.get(name, 0.0) - then.values.get(name, 0.0)) / (now.at - then.at)
            for then, now in self._pairs()
        ]

    def step_times(self) -> list[float]:
        """Mean seconds of a denoiser call between two samples; 0 where there was none."""
        return [
            (now.step_seconds - then.step_seconds) / (now.steps - then.steps)
            if now.steps > then.steps
            else 0.0
            for then, now in self._pairs()
        ]

    def batch_sizes(self) -> list[tuple[str, float]]:
        """Denoiser calls by their rows since the server's start: ("5 to 8", 12.0)."""
        rows = self.samples[-1].rows if self.samples else {}
        sizes, below, least = [], 0.0, 1
        for bound in sorted(rows):
            words = (
                f"{least} and more" if bound == float("inf")
                else f"{bound:g}" if bound == least
                else f"{least} to {bound:g}"
            )  # fmt: skip
            sizes.append((words, rows[bound] - below))
            below, least = rows[bound], int(bound) + 1 if bound != float("inf") else least
        return sizes

    def _pairs(self) -> list[tuple[MetricsSample, MetricsSample]]:
        """Neighbours, as far as the server was not started anew between them."""
        return [(then, now) for then, now in pairwise(self.samples) if now.steps >= then.steps]
