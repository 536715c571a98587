"""Control by pictures on every picture route of a real server: equal fields, equal pictures."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.conftest import Server, StartServer
from tests.protocols.pictures import encoded, striped
from tests.tiny_controls import controlled_settings

STRIPES = base64.b64encode(striped()).decode()
CONTROL = [{"name": "edges", "image": STRIPES, "weight": 0.8, "end": 0.9, "preprocess": "canny"}]
PROMPTED = [{"name": "look", "image": STRIPES, "weight": 0.5}]
FIELDS = {"seed": 7, "num_inference_steps": 3, "width": 64, "height": 64}
BESIDE = {"control": CONTROL, "image_prompt": PROMPTED}


@pytest.fixture(scope="module")
def served(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_server(**controlled_settings(tmp_path_factory.mktemp("control"))) as server:
        yield server


def v1(server: Server, **fields: Any) -> str:
    body = {"instances": [{"prompt": "a cat", **FIELDS, **fields}]}
    answer = httpx.post(f"{server.url}/v1/models/tiny:predict", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["predictions"][0]["image"]["b64"])


def v2(server: Server, **fields: Any) -> str:
    """`control` as a tensor of text, `image_prompt` as a parameter."""
    given = dict(fields)
    tensor = {
        "name": "control", "shape": [1], "datatype": "BYTES",
        "data": [json.dumps(given.pop("control", []))],
    }  # fmt: skip
    parameters = FIELDS | {name: json.dumps(value) for name, value in given.items()}
    body = {
        "inputs": [
            {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a cat"]},
            tensor,
        ],
        "parameters": parameters,
    }
    answer = httpx.post(f"{server.url}/v2/models/tiny/infer", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    outputs = {one["name"]: one["data"] for one in answer.json()["outputs"]}
    return str(outputs["image"][0])


def openai_json(server: Server, **fields: Any) -> str:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    answer = client.images.generate(prompt="a cat", extra_body=FIELDS | fields)
    assert answer.data and answer.data[0].b64_json
    return answer.data[0].b64_json


def openai_form(server: Server, **fields: Any) -> str:
    form = {"prompt": "a cat"} | {
        name: json.dumps(value) if isinstance(value, list) else str(value)
        for name, value in (FIELDS | fields).items()
    }
    answer = httpx.post(f"{server.url}/v1/images/generations", data=form, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"][0]["b64_json"])


def job(server: Server, **fields: Any) -> str:
    body = {"instances": [{"prompt": "a cat", **FIELDS, **fields}]}
    accepted = httpx.post(
        f"{server.url}/v1/models/tiny:predict", json=body, headers={"Prefer": "respond-async"}
    )
    assert accepted.status_code == 202, accepted.text
    for _ in range(600):
        state = httpx.get(server.url + accepted.headers["location"]).json()
        if state["status"] not in ("queued", "running"):
            return str(state["result"]["predictions"][0]["image"]["b64"])
        time.sleep(0.05)
    raise AssertionError(state)


def test_every_route_draws_the_same_controlled_picture(served: Server) -> None:
    wanted = v1(served, **BESIDE)
    assert wanted not in (
        v1(served),
        v1(served, control=CONTROL),
        v1(served, image_prompt=PROMPTED),
    )
    routes: list[Callable[..., str]] = [v2, openai_json, openai_form, job]
    for route in routes:
        assert route(served, **BESIDE) == wanted, route.__name__


def test_edits_take_a_control(served: Server) -> None:
    client = OpenAI(base_url=f"{served.url}/v1", api_key="none")
    pictures = []
    for weight in (0.2, 2):
        extra = {"seed": 3, "steps": 4, "control": json.dumps([CONTROL[0] | {"weight": weight}])}
        picture = ("a.png", encoded((200, 30, 30)))
        answer = client.images.edit(image=picture, prompt="a cat", extra_body=extra)
        assert answer.data and answer.data[0].b64_json
        pictures.append(answer.data[0].b64_json)
    assert pictures[0] != pictures[1]


def test_the_model_tells_what_it_can_be_controlled_by(served: Server) -> None:
    told = httpx.get(f"{served.url}/v2/models/tiny").json()["properties"]
    assert (told["controls"], told["image_prompts"]) == (["edges"], ["look"])
    assert told["memory_plan"]["reserved_bytes"].keys() == {"CONTROLNETS", "IP_ADAPTERS"}
    assert {one["module"] for one in told["stacking"]} & {"unet"}


def test_a_bad_control_is_a_400_that_names_it(served: Server) -> None:
    def told(path: str, **fields: Any) -> str:
        body: dict[str, Any] = {"prompt": "a cat", **FIELDS, **fields}
        body = {"instances": [body]} if path.endswith("predict") else body
        answer = httpx.post(f"{served.url}{path}", json=body)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)

    for path in ("/v1/models/tiny:predict", "/v1/images/generations"):
        nameless = [{"image": STRIPES}]
        assert "control.0.name: is missing" in told(path, control=nameless)
        assert "'none' is not here; available: edges" in told(
            path, control=[CONTROL[0] | {"name": "none"}]
        )
        assert "control.0.image: not base64" in told(path, control=[CONTROL[0] | {"image": "?"}])
        assert "image_prompt.0: 'x' is not an object" in told(path, image_prompt='["x"]')
        assert "image_prompt: 'x' is not JSON" in told(path, image_prompt="x")
