"""A picture size that the model does not draw, in every protocol: refused in words that say which
sizes it draws, or, with SIZE_FALLBACK=nearest, drawn at the nearest with a warning."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.conftest import Server, StartServer
from tests.protocols.pictures import data_url, encoded, opened
from tests.triton import grpc as triton

TALL = {"width": 600, "height": 1000}
NEAREST = (96, 160)
"""The best that 16384 pixels in steps of 16 can do for 600 x 1000."""

WARNING = "size: 600 x 1000 is not drawn by this model; 96 x 160 is the nearest that is"


@pytest.fixture(scope="module")
def refusing(start_server: StartServer) -> Iterator[Server]:
    """The built-in picture model with default settings, which draws up to 256 x 256."""
    with start_server(model_id="builtin/shapes", model_name="shapes", warmup="off") as running:
        yield running


def post(server: Server, path: str, body: Any, **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, headers=headers, timeout=60)


def predict(server: Server, **instance: Any) -> httpx.Response:
    body = {"instances": [{"prompt": "a star", "num_inference_steps": 1} | instance]}
    return post(server, "/v1/models/shapes:predict", body)


def infer_body() -> dict[str, Any]:
    tensor = {"name": "prompt", "shape": [2], "datatype": "BYTES", "data": ["a star", "a circle"]}
    return {"inputs": [tensor], "parameters": {"num_inference_steps": 1} | TALL}


def test_a_v1_prediction_says_what_was_drawn_instead(shapes: Server) -> None:
    [drawn] = predict(shapes, **TALL).json()["predictions"]
    assert opened(drawn["image"]["b64"]).size == NEAREST
    assert drawn["warnings"] == [WARNING]
    [as_asked] = predict(shapes, width=64, height=96).json()["predictions"]
    assert opened(as_asked["image"]["b64"]).size == (64, 96)
    assert "warnings" not in as_asked


def test_a_v2_answer_says_it_once_for_all_prompts(shapes: Server) -> None:
    answer = post(shapes, "/v2/models/shapes/infer", infer_body()).json()
    assert {opened(text).size for text in answer["outputs"][0]["data"]} == {NEAREST}
    assert answer["parameters"]["warnings"] == WARNING


def test_a_grpc_answer_says_it_too(shapes: Server) -> None:
    prompt = triton.InferInput("prompt", [1], "BYTES")
    prompt.set_data_from_numpy(np.array([b"a star"], dtype=object))
    with triton.InferenceServerClient(shapes.grpc) as client:
        answer = client.infer("shapes", [prompt], parameters={"num_inference_steps": 1} | TALL)
    assert opened(answer.as_numpy("image")[0]).size == NEAREST
    assert answer.get_response().parameters["warnings"].string_param == WARNING


def test_openais_answer_has_the_size_that_was_drawn(shapes: Server) -> None:
    images = openai.OpenAI(base_url=f"{shapes.url}/v1", api_key="none", max_retries=0).images
    wanted = {"prompt": "a star", "size": "600x1000", "extra_body": {"steps": 1}}
    answer = images.generate(**wanted)
    assert opened(answer.data[0].b64_json).size == NEAREST
    assert (answer.size, answer.warnings) == ("96x160", [WARNING])
    last = list(images.generate(**wanted, stream=True))[-1]
    assert (last.size, last.warnings) == ("96x160", [WARNING])


def test_a_jobs_result_says_it_as_well(shapes: Server) -> None:
    body = {"prompt": "a star", "size": "600x1000", "steps": 1}
    started = post(shapes, "/v1/images/generations", body, Prefer="respond-async")
    url = shapes.url + started.headers["location"]
    ends = time.monotonic() + 60
    while (job := httpx.get(url).json())["status"] != "succeeded":
        assert time.monotonic() < ends and job["status"] in ("queued", "running"), job
        time.sleep(0.05)
    assert (job["result"]["size"], job["result"]["warnings"]) == ("96x160", [WARNING])


def test_an_edit_of_a_size_beyond_the_model_is_drawn_at_the_nearest(shapes: Server) -> None:
    picture = data_url(encoded((128, 128, 128), (96, 96)))
    body = {"prompt": "a star", "image": picture, "size": "600x1000", "steps": 2}
    answer = post(shapes, "/v1/images/edits", body).json()
    assert opened(answer["data"][0]["b64_json"]).size == NEAREST
    assert answer["warnings"] == [WARNING]


def test_a_refusal_says_which_sizes_the_model_draws(refusing: Server) -> None:
    answer = post(refusing, "/v1/images/generations", {"prompt": "a star", "size": "1024x1024"})
    assert answer.status_code == 400
    said = answer.json()["error"]["message"]
    assert "1024 x 1024 is larger than this model draws" in said
    assert "sides divisible by 16, none beyond 256" in said
    assert "the nearest is 256 x 256" in said


@pytest.mark.parametrize(
    ("size", "near"),
    [
        ({"width": 1792, "height": 1024}, "256 x 144"),
        ({"width": 1000}, "256 x 32"),
        ({"height": 100}, "128 x 96"),
    ],
)
def test_every_protocol_names_the_nearest(
    refusing: Server, size: dict[str, int], near: str
) -> None:
    said = predict(refusing, **size).json()["error"]
    assert f"the nearest is {near}" in said
    inferred = infer_body() | {"parameters": size}
    assert post(refusing, "/v2/models/shapes/infer", inferred).json()["error"] == said


def test_the_largest_size_that_is_named_is_drawn(refusing: Server) -> None:
    [drawn] = predict(refusing, width=256, height=256).json()["predictions"]
    assert opened(drawn["image"]["b64"]).size == (256, 256)


def test_a_picture_larger_than_the_model_draws_is_scaled_down_where_no_size_is_asked_for(
    refusing: Server,
) -> None:
    body = {"prompt": "a star", "steps": 2, "image": data_url(encoded((9, 9, 9), (600, 400)))}
    answer = post(refusing, "/v1/images/edits", body).json()
    assert answer["size"] == "256x176"
    assert "warnings" not in answer
