"""Every query of the dashboard, the alerts and the autoscaler is valid PromQL and asks for metrics
that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx
import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from atelier.errors import REPORTS
from tests.conftest import Server
from tests.manifests.metric_names import EXPORTED, FOREIGN, SCRAPED, series
from tests.manifests.rendering import needs_kubectl, objects, of_kind

pytestmark = needs_kubectl

DOCS = "overlays/sdxl-production"
GRAFANA = {"$__rate_interval": "5m", "$namespace": "atelier", "$model": "sdxl"}


def queries() -> Iterator[tuple[str, str]]:
    """Name and PromQL of every query under manifests/."""
    docs = objects(DOCS)
    for rule in of_kind(docs, "PrometheusRule")[0]["spec"]["groups"][0]["rules"]:
        yield rule["alert"], rule["expr"]
    dashboard = json.loads(of_kind(docs, "ConfigMap")[0]["data"]["atelier.json"])
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in GRAFANA.items():
                expression = expression.replace(variable, value)
            yield panel["title"], expression
    scaling = of_kind(docs, "InferenceService")[0]["spec"]["predictor"]["autoScaling"]
    yield "autoscaling", scaling["metrics"][0]["external"]["metric"]["query"]


def selectors(expression: str) -> list[tuple[str, dict[str, str]]]:
    """Metric name and label matchers of every vector selector in an expression."""
    found = []

    def walk(node: object) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name or "", {m.name: m.value for m in node.matchers.matchers}))
        for name in ("expr", "lhs", "rhs", "vector_selector", "vs", "param"):
            if (child := getattr(node, name, None)) is not None:
                walk(child)
        for child in getattr(node, "args", None) or []:
            walk(child)

    walk(promql_parser.parse(expression))
    return found


def test_a_query_asks_for_what_the_server_exports(subtests: pytest.Subtests) -> None:
    known = {each: metric for metric in EXPORTED for each in series(metric)}
    for name, expression in queries():
        with subtests.test(name):
            check(name, expression, known)


def check(name: str, expression: str, known: dict[str, str]) -> None:
    asked = selectors(expression)
    assert asked, f"{name}: no metric in {expression}"
    for metric, matchers in asked:
        assert metric in known or metric in FOREIGN, (
            f"{name} asks for {metric}, which nobody exports"
        )
        if metric in known:
            assert matchers.keys() <= EXPORTED[known[metric]].labels | SCRAPED, (
                f"{name}: labels of {metric}"
            )
        for outcome in re.split(r"\|", matchers.get("outcome", "")):
            assert not outcome or outcome in {report.code for report in REPORTS.values()}, outcome


def test_the_server_exports_these_metrics_with_these_labels(server: Server) -> None:
    body = {"instances": [{"prompt": "a cup", "num_inference_steps": 1, "width": 32, "height": 32}]}
    httpx.post(
        f"{server.url}/v1/models/{server.model}:predict", json=body, timeout=60
    ).raise_for_status()
    families = {
        f.name: f for f in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)
    }
    for name, metric in EXPORTED.items():
        family = families[name.removesuffix("_total")]
        assert family.type == metric.kind, name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == metric.labels, name
    stages = {sample.labels["stage"] for sample in families["atelier_step_seconds"].samples}
    assert "denoise" in stages, "queries ask for this stage"


def test_labels_in_aggregations_exist() -> None:
    labels = SCRAPED.union(*(metric.labels for metric in EXPORTED.values()))
    for name, expression in queries():
        for group in re.findall(r"\b(?:by|on|group_left) ?\(([^)]*)\)", expression):
            assert {label.strip() for label in group.split(",")} <= labels, name


def test_every_metric_is_watched_somewhere() -> None:
    asked = {metric for _, expression in queries() for metric, _ in selectors(expression)}
    assert {name for name in EXPORTED if not series(name) & asked} == set()


def test_every_alert_says_what_to_do() -> None:
    for rule in of_kind(objects(DOCS), "PrometheusRule")[0]["spec"]["groups"][0]["rules"]:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert {"summary", "description", "runbook"} <= rule["annotations"].keys(), rule["alert"]
        assert len(rule["annotations"]["runbook"]) > 80


def test_the_autoscaler_asks_for_its_own_service_only() -> None:
    (query,) = [expression for name, expression in queries() if name == "autoscaling"]
    own = {"inferenceservice": "sdxl"}
    assert selectors(query) == [
        ("vllm:num_requests_waiting", own),
        ("atelier_requests_running", own),
    ]
