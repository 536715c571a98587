"""The server's own OpenAPI document is true: requests made from it never meet a fault of the
server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CheckContext
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from tests.conftest import Server, StartServer

SOUND = {"prompt": "a", "width": 32, "height": 32, "num_inference_steps": 3}
EXAMPLES = 12
"""Requests for each operation."""


@pytest.fixture(scope="module")
def small(start_server: StartServer, tiny_checkpoint: Path) -> Iterator[Server]:
    """A server whose limits keep every request short."""
    limits = {
        "max_steps": "3",
        "max_pixels": "4096",
        "request_timeout": "5",
        "max_images_per_request": "2",
    }
    with start_server(model_id=str(tiny_checkpoint), **limits) as running:
        yield running


def no_fault(ctx: CheckContext, response: schemathesis.Response, case: schemathesis.Case) -> None:
    """503 and 504 are none: a random `timeout` may be too short."""
    assert response.status_code in (503, 504) or response.status_code < 500, response.text


def test_no_request_made_from_the_document_is_a_fault(small: Server) -> None:
    checks = [no_fault, status_code_conformance, content_type_conformance]
    document = schemathesis.openapi.from_url(f"{small.url}/openapi.json")
    tried = 0
    for found in document.get_all_operations():
        operation = found.ok()
        cases = st.one_of(
            operation.as_strategy(generation_mode=GenerationMode.POSITIVE),
            operation.as_strategy(generation_mode=GenerationMode.NEGATIVE),
        )

        @given(case=cases)
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        def ask(case: schemathesis.Case) -> None:
            nonlocal tried
            tried += 1
            for name in {"name", "model_name"} & set(case.path_parameters or {}):
                case.path_parameters[name] = (
                    small.model if tried % 4 else case.path_parameters[name]
                )
            case.validate_response(case.call(timeout=30), checks=checks)

        ask()
    assert tried > 100


def test_walks_from_a_job_to_its_state_events_and_end_meet_no_fault(small: Server) -> None:
    """Schemathesis follows the document's links: a job that another call has begun, ended or
    forgotten is asked for in any order."""
    checks = [no_fault, status_code_conformance, content_type_conformance]
    # Links that it guesses come from answers that depend on how far a job is: no walk could be
    # repeated.
    declared = {"phases": {"stateful": {"inference": {"algorithms": []}}}}
    document = schemathesis.openapi.from_url(
        f"{small.url}/openapi.json", config=schemathesis.Config.from_dict(declared)
    )
    asked: Counter[tuple[str, int]] = Counter()

    class Walk(document.include(path_regex="generations|jobs|predict").as_state_machine()):  # type: ignore[misc]
        """Steps of one walk, each answer checked."""

        def before_call(self, case: schemathesis.Case) -> None:
            if "model_name" in (case.path_parameters or {}):
                case.path_parameters["model_name"] = small.model
            sound = {
                "/v1/images/generations": SOUND,
                "/v1/models/{model_name}:predict": {"instances": [SOUND]},
            }.get(case.operation.path)
            if sound and len(repr(case.body)) % 3:  # a random body seldom starts a job
                case.body, case.media_type = sound, "application/json"
                case.headers = {"Prefer": "respond-async"}

        def get_call_kwargs(self, case: schemathesis.Case) -> dict[str, Any]:
            return {"timeout": 30}

        def validate_response(
            self, response: schemathesis.Response, case: schemathesis.Case, **_: Any
        ) -> None:
            asked[case.operation.label, response.status_code] += 1
            case.validate_response(response, checks=checks)

    Walk.run(
        settings=settings(
            max_examples=20,
            stateful_step_count=6,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
    )
    job = "/v1/jobs/{job_id}"
    for operation in (f"GET {job}", f"GET {job}/events", f"DELETE {job}"):
        assert asked[operation, 200] > 0, asked


def test_every_route_is_described_once(small: Server) -> None:
    paths = httpx.get(f"{small.url}/openapi.json").json()["paths"]
    assert {"/v1/images/generations", "/v1/images/edits", "/v1/images/variations"} <= set(paths)
    assert {
        "/v1/models/{model_name}:predict",
        "/v2/models/{model_name}/infer",
        "/v1/jobs/{job_id}",
    } <= set(paths)
    assert "multipart/form-data" in paths["/v1/images/edits"]["post"]["requestBody"]["content"]
    assert not any(
        "422" in operation["responses"] for path in paths.values() for operation in path.values()
    )
