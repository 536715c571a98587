"""KServe's v1 predict, whatever the body is labelled as."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.conftest import Server

BODY = {
    "instances": [{"prompt": "a", "seed": 7, "num_inference_steps": 2, "width": 32, "height": 32}]
}
TYPES = [
    "application/json",
    "application/json; charset=utf-8",
    "text/plain",
    "application/x-www-form-urlencoded",
    "",
]


@pytest.mark.parametrize("kind", TYPES)
def test_json_is_read_whatever_its_content_type_says(server: Server, kind: str) -> None:
    headers = {"content-type": kind} if kind else {}
    answer = httpx.post(
        f"{server.url}/v1/models/tiny:predict",
        content=json.dumps(BODY),
        headers=headers,
        timeout=60,
    )
    assert answer.json()["predictions"][0]["seed"] == 7


def test_a_cloud_event_is_answered_with_a_cloud_event(server: Server) -> None:
    event = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "test", "ce-type": "draw"}
    headers = event | {"content-type": "application/json"}
    answer = httpx.post(
        f"{server.url}/v1/models/tiny:predict", json=BODY, headers=headers, timeout=60
    )
    assert answer.json()["predictions"][0]["seed"] == 7
    assert answer.headers["ce-specversion"] == "1.0"


def test_another_models_name_is_not_found(server: Server) -> None:
    assert httpx.post(f"{server.url}/v1/models/other:predict", json=BODY).status_code == 404


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b'{"instances": 1}', b'{"instances": []}']
)
def test_a_body_that_is_not_what_v1_says_is_a_400(server: Server, content: bytes) -> None:
    answer = httpx.post(f"{server.url}/v1/models/tiny:predict", content=content)
    assert answer.status_code == 400 and isinstance(answer.json()["error"], str)
