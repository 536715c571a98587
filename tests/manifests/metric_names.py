"""The metrics that dashboards, alerts and autoscaling count on: name to kind and labels.

`test_metrics.py` holds every query under manifests/ against this list, and the list against what a
running server exports. Labels that Prometheus adds while scraping are not in it.
"""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    kind: str
    labels: frozenset[str] = frozenset()


EXPORTED = {
    "atelier_requests_total": Metric("counter", frozenset({"protocol", "outcome"})),
    "atelier_request_seconds": Metric("histogram", frozenset({"protocol", "outcome"})),
    "atelier_queue_depth": Metric("gauge"),
    "atelier_queue_wait_seconds": Metric("histogram"),
    "atelier_requests_waiting": Metric("gauge"),
    "atelier_requests_running": Metric("gauge"),
    "vllm:num_requests_waiting": Metric("gauge", frozenset({"model_name"})),
    "atelier_step_seconds": Metric("histogram", frozenset({"stage", "shape", "worker"})),
    "atelier_batch_rows": Metric("histogram", frozenset({"stage"})),
    "atelier_images_total": Metric("counter"),
    "atelier_out_of_memory_total": Metric("counter"),
    "atelier_device_memory_used_bytes": Metric("gauge"),
    "atelier_device_memory_free_bytes": Metric("gauge"),
    "atelier_load_seconds": Metric("gauge", frozenset({"stage"})),
}
SCRAPED = frozenset({"namespace", "pod", "inferenceservice", "job", "container", "le"})
"""Labels that scraping adds (components/monitoring/podmonitor.yaml) or that a histogram has."""
FOREIGN = {"up", "kube_pod_container_status_restarts_total"}
"""Metrics of Prometheus and of kube-state-metrics."""


def series(name: str) -> set[str]:
    """The series a metric has in Prometheus."""
    return (
        {f"{name}{end}" for end in ("_bucket", "_sum", "_count")}
        if EXPORTED[name].kind == "histogram"
        else {name}
    )
