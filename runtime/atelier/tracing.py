"""OpenTelemetry traces, when OTEL_EXPORTER_OTLP_ENDPOINT is set: a span a request, with its stages
inside."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from atelier.errors import SettingsError

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
STAGES = ("queue", "encode", "denoise", "decode")


class Tracer:
    """Records finished requests. Spans are made at the end, with the times that were measured on
    the way."""

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer

    @classmethod
    def from_environment(cls, service: str) -> Tracer | None:
        """A tracer that exports by OTLP over HTTP, or None if no endpoint is set.

        Raises:
            SettingsError: an endpoint is set, but the exporter is not installed.
        """
        if not os.environ.get(ENDPOINT):
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise SettingsError(
                f"{ENDPOINT} is set, but {error.name} is missing: pip install 'atelier[tracing]'"
            ) from None
        provider = TracerProvider(resource=Resource.create({"service.name": service}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider.get_tracer("atelier"))

    def record(
        self,
        protocol: str,
        outcome: str,
        request_id: str,
        began: float,
        seconds: float,
        timings: Mapping[str, float],
    ) -> None:
        """One request: `began` in seconds since the epoch, `timings` in seconds by stage, laid end
        to end."""
        from opentelemetry import trace

        attributes = {
            "atelier.protocol": protocol,
            "atelier.outcome": outcome,
            "atelier.request_id": request_id,
        }
        span = self._tracer.start_span("request", start_time=_ns(began), attributes=attributes)
        inside, at = trace.set_span_in_context(span), began
        for stage in STAGES:
            if stage in timings:
                child = self._tracer.start_span(stage, context=inside, start_time=_ns(at))
                at += timings[stage]
                child.end(_ns(at))
        span.end(_ns(began + seconds))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
