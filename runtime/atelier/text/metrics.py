"""Metrics that only language models have: time to first token, gaps between tokens, tokens, queue,
cache."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from atelier.errors import Cancelled
from atelier.events import Event, Failed, Finished, Token

TTFT = Histogram(
    "atelier_text_time_to_first_token_seconds",
    "Seconds from admission to the first token",
    ["model"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)
ITL = Histogram(
    "atelier_text_inter_token_latency_seconds",
    "Seconds between two pieces of an answer",
    ["model"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1),
)
PROMPT = Counter("atelier_text_prompt_tokens_total", "Tokens of prompts", ["model"])
CACHED = Counter(
    "atelier_text_cached_tokens_total", "Tokens of prompts found in the cache", ["model"]
)
GENERATED = Counter("atelier_text_generated_tokens_total", "Tokens generated", ["model"])
DRAFTED = Counter("atelier_text_drafted_tokens_total", "Tokens guessed before", ["model"])
ACCEPTED = Counter(
    "atelier_text_accepted_draft_tokens_total", "Tokens guessed before that came true", ["model"]
)
RUNNING = Gauge("atelier_text_running_sequences", "Sequences in the batch", ["model"])
WAITING = Gauge("atelier_text_waiting_sequences", "Sequences not yet in the batch", ["model"])
CACHE_USE = Gauge(
    "atelier_text_kv_cache_usage_ratio", "Share of the key-value cache in use", ["model"]
)


def follow_engine(model: str, engine: Any) -> None:
    """Let the gauges read the engine whenever they are scraped."""
    RUNNING.labels(model).set_function(lambda: engine.running)
    WAITING.labels(model).set_function(lambda: engine.waiting)
    CACHE_USE.labels(model).set_function(lambda: engine.cache_use)


async def measured(
    model: str, events: AsyncIterator[Event], follow: Callable[[Event], None]
) -> AsyncIterator[Event]:
    """Pass events through, record them, and show them to `follow`. A client that leaves early
    counts as cancelled."""
    begun = last = time.monotonic()
    first, ended = True, False
    try:
        async for event in events:
            now = time.monotonic()
            if isinstance(event, Token):
                (TTFT if first else ITL).labels(model).observe(now - (begun if first else last))
                first, last = False, now
            elif isinstance(event, Finished) and event.usage is not None:
                PROMPT.labels(model).inc(event.usage.prompt)
                CACHED.labels(model).inc(event.usage.cached)
                GENERATED.labels(model).inc(event.usage.generated)
                DRAFTED.labels(model).inc(event.usage.drafted)
                ACCEPTED.labels(model).inc(event.usage.accepted)
            ended = isinstance(event, Finished | Failed)
            follow(event)
            yield event
    finally:
        if not ended:
            follow(Failed(Cancelled("the client went away")))
