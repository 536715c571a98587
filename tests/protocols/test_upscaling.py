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
from tests.triton import grpc as triton_grpc


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


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_v1_enlarges_with_and_without_a_prompt(enlarging: Server, network: Path) -> None:
    (wide, one), (high, other) = sent(), sent(24, 40)
    fields = {"task": "upscale", "upscale": 2}
    body = {"instances": [{"image": b64(one)}, {"image": b64(other), "prompt": ""}]}
    answer = httpx.post(
        f"{enlarging.url}/v1/models/{enlarging.model}:predict",
        json=body | {"parameters": fields},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    for told, picture in zip(answer.json()["predictions"], (wide, high), strict=True):
        made = pixels(base64.b64decode(told["image"]["b64"]))
        assert difference(made, whole(network, picture)) <= 1


def v2(server: Server, *inputs: dict[str, Any], **parameters: Any) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v2/models/{server.model}/infer",
        json={"inputs": list(inputs), "parameters": parameters},
        timeout=60,
    )


def tensor(name: str, *data: Any) -> dict[str, Any]:
    kind = "INT64" if isinstance(data[0], int) else "BYTES"
    return {"name": name, "datatype": kind, "shape": [len(data)], "data": list(data)}


def test_v2_enlarges_by_tensors_and_by_parameters(enlarging: Server, network: Path) -> None:
    (wide, one), (high, other) = sent(), sent(24, 40)
    pictures = tensor("image", b64(one), b64(other))
    answers = [
        v2(enlarging, pictures, tensor("task", "upscale"), tensor("upscale", 2, 2)),
        v2(enlarging, tensor("prompt", "", ""), pictures, task="upscale", upscale=2),
        v2(enlarging, pictures, task="upscale", upscale=2, upscaler="soft", format="WEBP",
           compression=100),
    ]  # fmt: skip
    for answer in answers:
        assert answer.status_code == 200, answer.text
        told = {each["name"]: each["data"] for each in answer.json()["outputs"]}
        for text, picture in zip(told["image"], (wide, high), strict=True):
            made = pixels(base64.b64decode(text))
            assert made.shape == whole(network, picture).shape
            if answer is not answers[2]:  # WebP loses a little
                assert difference(made, whole(network, picture)) <= 1


def test_grpc_enlarges_bytes(enlarging: Server, network: Path) -> None:
    picture, file = sent()
    image = triton_grpc.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([file], dtype=object))
    scale = triton_grpc.InferInput("upscale", [1], "INT64")
    scale.set_data_from_numpy(np.array([2]))
    with triton_grpc.InferenceServerClient(enlarging.grpc) as client:
        answer = client.infer(enlarging.model, [image, scale], parameters={"task": "upscale"})
        assert difference(pixels(answer.as_numpy("image")[0]), whole(network, picture)) <= 1
        with pytest.raises(triton_grpc.InferenceServerException, match="nothing here enlarges 4"):
            client.infer(enlarging.model, [image], parameters={"task": "upscale", "upscale": 4})


def test_v2_draws_and_enlarges(enlarging: Server, network: Path) -> None:
    """Beside a request that only draws the same picture."""
    size = {"width": 32, "height": 48, "num_inference_steps": 2, "seed": 3}
    prompts = tensor("prompt", "a cat")
    plain, large = (
        pixels(base64.b64decode(answer.json()["outputs"][0]["data"][0]))
        for answer in (v2(enlarging, prompts, **size), v2(enlarging, prompts, **size, upscale=2))
    )
    assert difference(large, whole(network, plain)) <= 1


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ([tensor("upscale", 2)], "an input tensor named image is needed"),
        ([tensor("image", "AAAA", "AAAA"), tensor("upscale", 2, 2, 2)],
         "upscale: 3 elements for 2 images; send 2 or 1"),
        ([tensor("image", b64(sent()[1])), tensor("upscale", 3)], "upscale: 3 is not valid"),
        ([tensor("image", b64(sent()[1]))], "upscale: is missing; it is 2 or 4"),
        ([tensor("image", "AAAA"), tensor("upscale", 2)], "image"),
    ],
)  # fmt: skip
def test_what_v2_cannot_enlarge_is_a_400(
    enlarging: Server, inputs: list[dict[str, Any]], told: str
) -> None:
    answer = v2(enlarging, *inputs, task="upscale")
    assert answer.status_code == 400
    assert told in answer.json()["error"]


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
    answer = post(
        enlarging, data=data, files=[("image", sent()[1])] * files or {"image": (None, "")}
    )
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
