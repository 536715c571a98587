"""The server's own OpenAPI document is true: requests made from it never meet a fault of the
server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CheckContext
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from tests.conftest import Server, StartServer

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
