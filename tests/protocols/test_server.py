"""The server as a process: ready, answering, and gone when told."""

from __future__ import annotations

import base64

import httpx

from tests.conftest import Server

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_prediction_has_a_picture_and_the_seed(server: Server) -> None:
    body = {"instances": [{"prompt": "a red circle", "seed": 7, "num_inference_steps": 2, "width": 32, "height": 32}]}
    answer = httpx.post(f"{server.url}/v1/models/{server.model}:predict", json=body, timeout=60).json()
    [prediction] = answer["predictions"]
    assert prediction["seed"] == 7
    assert base64.b64decode(prediction["image"]["b64"]).startswith(PNG)
