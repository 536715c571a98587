"""API keys, body limits, and where input pictures may come from, against a server that has all of
them set."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from tritonclient.utils import InferenceServerException

from tests.conftest import Server, StartServer
from tests.protocols.pictures import FAST, SIZE, data_url, striped
from tests.triton import grpc as triton

LIMIT = 100_000
BEARER = {"authorization": "Bearer second-key"}
BODY = {"prompt": "a", "size": SIZE, **FAST}


@pytest.fixture(scope="module")
def guarded(start_server: StartServer, tiny_checkpoint: Path) -> Iterator[Server]:
    settings = {
        "api_keys": "first-key, second-key",
        "max_body_bytes": str(LIMIT),
        "allowed_image_hosts": "localhost",
    }
    with start_server(model_id=str(tiny_checkpoint), **settings) as running:
        yield running


GUARDED = [
    ("POST", "/v1/images/generations"),
    ("POST", "/v1/images/edits"),
    ("POST", "/v1/images/variations"),
    ("POST", "/openai/v1/images/generations"),
    ("POST", "/v1/models/tiny:predict"),
    ("POST", "/v1/models/tiny%3Apredict"),
    ("POST", "/v1/models/tiny:explain"),
    ("POST", "/v2/models/tiny/infer"),
    ("POST", "/v2/models/tiny/versions/1/infer"),
    ("POST", "/v2/repository/models/tiny/unload"),
    ("GET", "/v1/jobs/x"),
    ("DELETE", "/v1/jobs/x"),
    ("GET", "/v1/jobs/x/events"),
    ("GET", "/somewhere/else"),
]


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize(
    "key", ["", "Bearer wrong", "Bearer", "Basic second-key", "Bearer first-key,second-key"]
)
def test_without_a_good_key_nothing_is_done(
    guarded: Server, method: str, path: str, key: str
) -> None:
    answer = httpx.request(
        method, guarded.url + path, headers={"authorization": key} if key else {}
    )
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("key", ["first-key", "second-key"])
def test_each_of_the_keys_opens_every_route(guarded: Server, key: str) -> None:
    client = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=key, max_retries=0)
    assert client.images.generate(prompt="a", size=SIZE, extra_body=FAST).data
    headers = {"authorization": f"bearer {key}"}
    for method, path in GUARDED:
        assert httpx.request(method, guarded.url + path, headers=headers).status_code != 401


OPEN = ["/", "/health", "/metrics", "/openapi.json", "/v1/models", "/v1/models/tiny",
    "/openai/v1/models", "/v2",
        "/v2/health/live", "/v2/health/ready", "/v2/models", "/v2/models/tiny",
        "/v2/models/tiny/ready", "/v2/models/tiny/config"]  # fmt: skip


@pytest.mark.parametrize("path", OPEN)
def test_probes_metrics_and_lists_need_no_key(guarded: Server, path: str) -> None:
    assert httpx.get(guarded.url + path).status_code == 200


def test_a_wrong_key_is_an_authentication_error_in_openais_words(guarded: Server) -> None:
    client = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as raised:
        client.images.generate(prompt="a")
    assert raised.value.code == "invalid_api_key"


def test_a_pictures_url_is_its_own_permission(guarded: Server) -> None:
    body = BODY | {"response_format": "url"}
    answer = httpx.post(
        f"{guarded.url}/v1/images/generations", json=body, headers=BEARER, timeout=60
    ).json()
    assert httpx.get(answer["data"][0]["url"]).status_code == 200
    assert httpx.get(f"{guarded.url}/v1/images/files/guessed.png").status_code == 404


def infer(server: Server, headers: dict[str, str], prompt: bytes = b"a") -> triton.InferResult:
    tensor = triton.InferInput("prompt", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([prompt], dtype=object))
    parameters = {"width": 64, "height": 64, "num_inference_steps": 2}
    with triton.InferenceServerClient(server.grpc) as client:
        return client.infer("tiny", [tensor], headers=headers, parameters=parameters)


def test_grpc_needs_a_key_too(guarded: Server) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}):
        with pytest.raises(InferenceServerException) as raised:
            infer(guarded, headers)
        assert raised.value.status() == "StatusCode.UNAUTHENTICATED"
    assert infer(guarded, BEARER).as_numpy("image")[0].startswith(b"\x89PNG")


def test_the_model_cannot_be_unloaded(guarded: Server) -> None:
    answer = httpx.post(f"{guarded.url}/v2/repository/models/tiny/unload", headers=BEARER)
    assert answer.status_code == 400
    with (
        triton.InferenceServerClient(guarded.grpc) as client,
        pytest.raises(InferenceServerException),
    ):
        client.unload_model("tiny")
    assert httpx.get(f"{guarded.url}/v2/models/tiny/ready").status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/images/generations", "/v1/models/tiny:predict", "/v2/models/tiny/infer"]
)
def test_a_declared_body_that_is_too_large_is_refused(guarded: Server, path: str) -> None:
    answer = httpx.post(guarded.url + path, content=b" " * (LIMIT + 1), headers=BEARER)
    assert answer.status_code == 413
    assert f"MAX_BODY_BYTES={LIMIT}" in answer.text


@pytest.mark.parametrize(
    "path", ["/v1/images/edits", "/v1/models/tiny:predict", "/v2/models/tiny/infer"]
)
def test_a_body_of_unknown_length_is_refused_when_it_passes_the_limit(
    guarded: Server, path: str
) -> None:
    """Sent slowly and without an end: the answer comes while the client is still sending."""
    host, port = guarded.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.putrequest("POST", path)
    for name, value in (
        BEARER | {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
    ).items():
        connection.putheader(name, value)
    connection.endheaders()
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    for _ in range(LIMIT // 0x8000 + 1):
        connection.send(chunk)
        time.sleep(0.02)
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("connection")) == (413, "close")
    connection.close()


def test_a_body_just_below_the_limit_is_read(guarded: Server) -> None:
    body = {"prompt": "a", "size": SIZE, "user": "x" * (LIMIT - 1000), **FAST}
    assert (
        httpx.post(
            f"{guarded.url}/v1/images/generations", json=body, headers=BEARER, timeout=60
        ).status_code
        == 200
    )


def test_a_grpc_message_above_the_limit_is_refused(guarded: Server) -> None:
    with pytest.raises(InferenceServerException) as raised:
        infer(guarded, BEARER, b"x" * (LIMIT + 1))
    assert raised.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


REMOTE = [
    ("http://localhost:{port}/health", "not a public address"),
    ("http://example.com/x.png", "ALLOWED_IMAGE_HOSTS"),
    ("http://127.0.0.1:{port}/health", "ALLOWED_IMAGE_HOSTS"),
    ("https://localhost@example.com/x.png", "ALLOWED_IMAGE_HOSTS"),
    ("http://[localhost/x.png", "not a URL"),
    ("http://localhost:99999/x.png", "not a URL"),
]


@pytest.mark.parametrize(("url", "words"), REMOTE)
def test_pictures_come_only_from_allowed_hosts_at_public_addresses(
    guarded: Server, url: str, words: str
) -> None:
    url = url.format(port=guarded.url.rsplit(":", 1)[1])
    images = {"prompt": "a", "image": url}
    answer = httpx.post(f"{guarded.url}/v1/images/edits", json=images, headers=BEARER)
    assert (answer.status_code, words in answer.text) == (400, True), answer.text
    predict = {"instances": [images | {"mask_image": data_url(striped())}]}
    answer = httpx.post(f"{guarded.url}/v1/models/tiny:predict", json=predict, headers=BEARER)
    assert (answer.status_code, words in answer.text) == (400, True), answer.text
