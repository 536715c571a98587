"""`POST /v1/images/upscale` and `upscale` on the OpenAI routes, against a real server: forms, JSON,
links, jobs, and refusals in OpenAI's shape."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest

from tests.conftest import Server, StartServer
from tests.gallery import difference, pixels
from tests.tiny_upscalers import compact, whole


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compact(tmp_path_factory.mktemp("networks") / "soft.safetensors")


@pytest.fixture(scope="module")
def enlarging(start_server: StartServer, tiny_checkpoint: Path, network: Path) -> Iterator[Server]:
    with start_server(model_id=str(tiny_checkpoint), upscalers=str(network)) as running:
        yield running


def sent(width: int = 40, height: int = 24) -> tuple[Any, bytes]:
    generator = np.random.default_rng(1)
    picture = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(picture).save(file, "PNG")
    return picture, file.getvalue()


def post(server: Server, **request: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/images/upscale", timeout=60, **request)


def test_a_form_and_json_enlarge_alike(enlarging: Server, network: Path) -> None:
    picture, file = sent()
    form = post(enlarging, data={"upscale": "2", "upscaler": "soft"}, files={"image": file})
    json = post(enlarging, json={"image": base64.b64encode(file).decode()})
    for answer in (form, json):
        assert answer.status_code == 200, answer.text
        assert answer.json()["size"] == "80x48"
        made = pixels(base64.b64decode(answer.json()["data"][0]["b64_json"]))
        assert difference(made, whole(network, picture)) <= 1
    linked = post(enlarging, data={"response_format": "url"}, files={"image": file}).json()
    assert httpx.get(linked["data"][0]["url"]).content.startswith(b"\x89PNG")


def test_a_job_enlarges(enlarging: Server) -> None:
    answer = post(enlarging, files={"image": sent()[1]}, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202
    place = enlarging.url + answer.headers["location"]
    ends = time.monotonic() + 60
    while (job := httpx.get(place).json())["status"] != "succeeded" and time.monotonic() < ends:
        time.sleep(0.1)
    assert job["status"] == "succeeded", job


def test_generations_and_edits_take_upscale(enlarging: Server) -> None:
    fields = {"prompt": "a cat", "size": "32x32", "steps": 2, "upscale": 2}
    drawn = httpx.post(f"{enlarging.url}/v1/images/generations", json=fields, timeout=60)
    assert drawn.json()["size"] == "64x64", drawn.text
    edited = httpx.post(
        f"{enlarging.url}/v1/images/edits",
        data={name: str(value) for name, value in fields.items()} | {"strength": "0.9"},
        files={"image": sent(32, 32)[1]},
        timeout=60,
    )
    assert edited.json()["size"] == "64x64", edited.text


@pytest.mark.parametrize(
    ("data", "files", "told"),
    [
        ({}, 0, "image: to be enlarged, exactly one is taken"),
        ({}, 2, "image: to be enlarged, exactly one is taken"),
        ({"upscale": "4"}, 1, "upscale: nothing here enlarges 4 times; available: soft"),
        ({"upscale": "3"}, 1, "upscale: '3' is not valid"),
        ({"prompt": "a cat"}, 1, "prompt: 'a cat' is not valid"),
        ({"upscaler": "x"}, 1, "upscaler: 'x' is not here; available: soft"),
    ],
)
def test_what_cannot_be_enlarged_is_a_400(
    enlarging: Server, data: dict[str, str], files: int, told: str
) -> None:
    answer = post(enlarging, data=data, files=[("image", sent()[1])] * files or {"x": b""})
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]


def test_the_document_tells_of_the_route(enlarging: Server) -> None:
    route = httpx.get(f"{enlarging.url}/openapi.json").json()["paths"]["/v1/images/upscale"]
    schema = route["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"image", "upscale", "upscaler"} <= set(schema["properties"])


def test_a_server_without_networks_says_so(server: Server) -> None:
    answer = post(server, files={"image": sent()[1]})
    assert answer.status_code == 400
    assert "UPSCALERS is empty" in answer.json()["error"]["message"]
