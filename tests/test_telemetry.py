"""What a running server tells of itself: metrics by protocol and outcome, JSON logs, prompts kept
out of them, traces."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Server, StartServer
from tests.manifests.metric_names import EXPORTED, series

FIELDS = {"num_inference_steps": 3, "width": 32, "height": 32}
SECRET_PROMPT = "an unrepeatable walrus"
OWN_LABELS = {"le"}


class Collector:
    """An OTLP collector on loopback that keeps the spans it is sent."""

    def __init__(self) -> None:
        spans = self.spans = list[Span]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sent = ExportTraceServiceRequest.FromString(
                    self.rfile.read(int(self.headers["Content-Length"]))
                )
                spans.extend(
                    span for r in sent.resource_spans for s in r.scope_spans for span in s.spans
                )
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()


@pytest.fixture(scope="module")
def told(
    start_server: StartServer, tiny_checkpoint: Path, collector: Collector
) -> Iterator[Server]:
    """A server that logs in JSON and sends traces."""
    traces = {"otel_exporter_otlp_endpoint": collector.url, "otel_bsp_schedule_delay": "100"}
    with start_server(
        model_id=str(tiny_checkpoint), log_format="json", max_steps="30", executed=True, **traces
    ) as server:
        yield server


def predict(server: Server, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    body = {"instances": [{"prompt": SECRET_PROMPT} | FIELDS | fields]}
    return httpx.post(
        f"{server.url}/v1/models/{server.model}:predict", json=body, headers=headers, timeout=60
    )


def metrics(server: Server) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    """Series by name, then by labels."""
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


def outcomes(server: Server, protocol: str) -> dict[str, float]:
    counted = metrics(server).get("atelier_requests_total", {})
    return {
        dict(labels)["outcome"]: n
        for labels, n in counted.items()
        if dict(labels)["protocol"] == protocol
    }


def log_lines(server: Server) -> list[dict[str, Any]]:
    """Every line on standard error; what is printed on standard output, the hint, is left out."""
    return [
        json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")
    ]


def request_lines(server: Server) -> list[dict[str, Any]]:
    return [line for line in log_lines(server) if line["logger"] == "atelier.requests"]


def until(holds: Any, seconds: float = 20) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "it did not come to hold"
        time.sleep(0.05)


def test_what_manifests_count_on_is_exported_with_its_labels(told: Server) -> None:
    assert predict(told).status_code == 200
    found = metrics(told)
    for name, metric in EXPORTED.items():
        for each in series(name):
            assert each in found, f"{each} is not exported"
            if metric.labels:
                labels = {frozenset(dict(labels)) - OWN_LABELS for labels in found[each]}
                assert all(metric.labels <= given for given in labels), (
                    f"{each} has labels {labels}"
                )


def test_names_carry_their_units(told: Server) -> None:
    names = {name for name in metrics(told) if name.startswith("atelier_")}
    assert {name for name in names if not re.fullmatch(r"atelier_[a-z_]+", name)} == set()
    for family, unit in {
        "load": "seconds",
        "request": "seconds",
        "device_memory_used": "bytes",
    }.items():
        assert any(name.startswith(f"atelier_{family}_{unit}") for name in names), family


def test_ended_requests_are_counted_by_protocol_and_outcome(told: Server) -> None:
    before = {protocol: outcomes(told, protocol) for protocol in ("v1", "v2", "openai")}
    assert predict(told).status_code == 200
    assert predict(told, seed=-2).status_code == 400  # refused by the request's own type
    assert predict(told, width=33).status_code == 400  # refused by the pipeline's sizes
    assert predict(told, num_inference_steps=30, timeout=0.001).status_code == 504
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a cat"]}
    body = {"inputs": [tensor], "parameters": FIELDS}
    assert httpx.post(f"{told.url}/v2/models/tiny/infer", json=body, timeout=60).status_code == 200
    openai = {"prompt": "a cat", "size": "32x32", "steps": 2, "model": "tiny"}
    assert (
        httpx.post(f"{told.url}/v1/images/generations", json=openai, timeout=60).status_code == 200
    )
    assert (
        httpx.post(f"{told.url}/v1/images/generations", json=openai | {"n": 0}).status_code == 400
    )

    def grown(protocol: str) -> dict[str, float]:
        now, old = outcomes(told, protocol), before[protocol]
        return {
            name: value - old.get(name, 0)
            for name, value in now.items()
            if value > old.get(name, 0)
        }

    assert grown("v1") == {"ok": 1, "invalid_value": 2, "deadline_exceeded": 1}
    assert grown("v2") == {"ok": 1}
    assert grown("openai") == {"ok": 1, "invalid_value": 1}


def test_pictures_and_pixels_are_counted(told: Server) -> None:
    before = metrics(told)
    assert predict(told, num_images_per_prompt=2).status_code == 200
    after = metrics(told)
    none: frozenset[tuple[str, str]] = frozenset()
    assert after["atelier_images_total"][none] - before["atelier_images_total"][none] == 2
    assert after["atelier_pixels_total"][none] - before["atelier_pixels_total"][none] == 2 * 32 * 32


def test_the_queue_is_seen_to_fill_and_to_empty(told: Server) -> None:
    def depth() -> float:
        return metrics(told)["atelier_queue_depth"][frozenset()]

    threads = [
        threading.Thread(target=predict, args=(told,), kwargs={"num_inference_steps": 30})
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    until(lambda: depth() >= 2)
    for thread in threads:
        thread.join()
    assert depth() == 0


def test_what_waits_and_runs_has_the_names_that_autoscalers_query(told: Server) -> None:
    def of(state: str) -> float:
        own = metrics(told)[f"atelier_requests_{state}"][frozenset()]
        label = frozenset({("model_name", told.model)})
        assert metrics(told)[f"vllm:num_requests_{state}"].keys() == {label}
        return own

    before = metrics(told)["atelier_queue_wait_seconds_sum"][frozenset()]
    fields = {"num_inference_steps": 30, "width": 128, "height": 128}
    threads = [
        threading.Thread(target=predict, args=(told,), kwargs=fields | {"seed": seed})
        for seed in range(12)
    ]
    for thread in threads:
        thread.start()
    until(lambda: of("waiting") > 0 and of("running") > 0)
    for thread in threads:
        thread.join()
    assert of("waiting") == of("running") == 0
    assert metrics(told)["atelier_queue_wait_seconds_sum"][frozenset()] > before + 0.1


def test_each_stage_of_the_start_is_measured(told: Server) -> None:
    stages = {
        dict(labels)["stage"]: value
        for labels, value in metrics(told)["atelier_load_seconds"].items()
    }
    assert stages.keys() == {"source", "weights", "warmup"}
    assert all(0 <= value < 120 for value in stages.values()) and stages["weights"] > 0


def test_module_calls_are_measured_by_stage(told: Server) -> None:
    assert predict(told, prompt="never encoded before").status_code == 200
    stages = {dict(labels)["stage"] for labels in metrics(told)["atelier_step_seconds_count"]}
    assert stages == {"encode", "denoise", "decode"}


def test_a_log_line_carries_the_id_that_the_client_gets_back(told: Server) -> None:
    answer = predict(told)
    made = answer.headers["X-Request-ID"]
    assert predict(told, {"X-Request-ID": "my-own-id"}).headers["X-Request-ID"] == "my-own-id"
    lines = {line["request_id"]: line for line in request_lines(told) if "request_id" in line}
    assert {made, "my-own-id"} <= lines.keys()
    line = lines[made]
    assert (line["protocol"], line["outcome"], line["pictures"]) == ("v1", "ok", 1)
    assert line["seconds"] >= line["denoise_seconds"] > 0


def test_an_id_that_could_forge_a_log_line_is_replaced(told: Server) -> None:
    assert predict(told, {"X-Request-ID": "x" * 200}).headers["X-Request-ID"] != "x" * 200


def test_every_line_on_standard_error_is_json(told: Server) -> None:
    text = told.log.read_text()
    hint = (
        text[text.find("\nTry it:") :].partition("picture.png\n")[0] if "\nTry it:" in text else ""
    )
    rest = text.replace(hint + "picture.png\n", "") if hint else text
    assert [line for line in rest.splitlines() if line.strip() and not line.startswith("{")] == []


def test_prompts_are_not_logged(told: Server) -> None:
    assert predict(told).status_code == 200
    assert predict(told, width=33).status_code == 400
    assert predict(told, seed="walrus seed").status_code == 400
    assert "unrepeatable" not in told.log.read_text()


def test_prompts_are_logged_if_asked_for(start_server: StartServer, tiny_checkpoint: Path) -> None:
    with start_server(
        model_id=str(tiny_checkpoint), log_format="json", log_prompts="true"
    ) as server:
        assert predict(server).status_code == 200
        assert [line["prompt"] for line in request_lines(server) if line["protocol"] == "v1"] == [
            SECRET_PROMPT
        ]


def test_a_request_is_a_span_with_its_stages_inside(told: Server, collector: Collector) -> None:
    predict(told, {"X-Request-ID": "traced"}, prompt="a prompt that no cache has")

    def request() -> list[Span]:
        return [
            s
            for s in collector.spans
            if any(a.value.string_value == "traced" for a in s.attributes)
        ]

    until(lambda: request())
    [span] = request()
    until(lambda: len([s for s in collector.spans if s.parent_span_id == span.span_id]) == 4)
    inside = sorted(
        (s for s in collector.spans if s.parent_span_id == span.span_id),
        key=lambda s: s.start_time_unix_nano,
    )
    assert [child.name for child in inside] == ["queue", "encode", "denoise", "decode"]
    assert {child.trace_id for child in inside} == {span.trace_id}
    assert {a.key: a.value.string_value for a in span.attributes} == {
        "atelier.protocol": "v1",
        "atelier.outcome": "ok",
        "atelier.request_id": "traced",
    }
    for child in inside:
        assert span.start_time_unix_nano <= child.start_time_unix_nano <= child.end_time_unix_nano
        # two threads note the ends, and a busy machine may hold one of them up
        assert child.end_time_unix_nano <= span.end_time_unix_nano + 50_000_000


def test_refused_lines_name_no_prompt_in_their_reason(told: Server) -> None:
    predict(told, timeout=0.001, num_inference_steps=30)
    reasons = [
        line["reason"] for line in request_lines(told) if line["outcome"] == "deadline_exceeded"
    ]
    assert reasons and not [reason for reason in reasons if "walrus" in reason]
