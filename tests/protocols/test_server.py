"""The server as a process: ready, answering, and gone when told."""

from __future__ import annotations

import base64

import httpx

from tests.conftest import Server

PNG = b"\x89PNG\r\n\x1a\n"


def test_v2_has_the_picture_as_base64_in_json_and_as_bytes_in_the_binary_extension(
    server: Server,
) -> None:
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a red circle"]}
    fields = {"seed": 7, "num_inference_steps": 2, "width": 32, "height": 32}
    url = f"{server.url}/v2/models/{server.model}/infer"
    outputs = httpx.post(url, json={"inputs": [tensor], "parameters": fields}, timeout=60).json()[
        "outputs"
    ]
    picture, seed = (output["data"][0] for output in outputs)
    assert seed == 7
    asked = [{"name": "image", "parameters": {"binary_data": True}}]
    answer = httpx.post(
        url, json={"inputs": [tensor], "parameters": fields, "outputs": asked}, timeout=60
    )
    tail = answer.content[int(answer.headers["inference-header-content-length"]) :]
    assert tail[4:] == base64.b64decode(picture) and tail[4:].startswith(PNG)


def test_a_prediction_has_a_picture_and_the_seed(server: Server) -> None:
    body = {
        "instances": [
            {
                "prompt": "a red circle",
                "seed": 7,
                "num_inference_steps": 2,
                "width": 32,
                "height": 32,
            }
        ]
    }
    answer = httpx.post(
        f"{server.url}/v1/models/{server.model}:predict", json=body, timeout=60
    ).json()
    [prediction] = answer["predictions"]
    assert prediction["seed"] == 7
    assert base64.b64decode(prediction["image"]["b64"]).startswith(PNG)
