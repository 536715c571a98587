"""Every typed field of every route that takes a form: text is read as the type that it stands for,
as OpenAI's clients and curl write it, and what stands for none is a 400 that names it."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from atelier.errors import InvalidRequest
from atelier.protocols.openai.form_fields import nested
from atelier.protocols.openai.image_bodies import EditBody, GenerationBody, VariationBody, check
from atelier.protocols.openai.image_upscaling import UpscaleBody
from tests.conftest import Server
from tests.protocols.pictures import FAST, SIZE, data_url, striped

ROUTES: dict[str, type[BaseModel]] = {
    "generations": GenerationBody,
    "edits": EditBody,
    "variations": VariationBody,
    "upscale": UpscaleBody,
}
TRUTHS = [("true", True), ("false", False), ("1", True), ("0", False), ("True", True)]
ENTRY = {"name": "edges", "image": "AAAA", "weight": "0.5"}
OBJECTS: dict[str, list[tuple[list[tuple[str, str]], Any]]] = {
    "lora": [
        ([("lora", '{"ring": 0.5}')], {"ring": 0.5}),
        ([("lora[ring]", "0.5"), ("lora[a.b]", "1")], {"ring": 0.5, "a.b": 1.0}),
    ],
    "highres": [
        ([("highres", '{"scale": 1.5}')], {"scale": 1.5}),
        ([("highres[scale]", "1.5"), ("highres[strength]", "0.25")],
         {"scale": 1.5, "strength": 0.25}),
    ],
    "output": [
        ([("output", '{"s3": "s3://bucket/prefix"}')], {"s3": "s3://bucket/prefix"}),
        ([("output[s3]", "s3://bucket/prefix")], {"s3": "s3://bucket/prefix"}),
    ],
    "control": [([(f"control[][{key}]", value) for key, value in ENTRY.items()], [ENTRY])],
    "image_prompt": [
        ([(f"image_prompt[][{key}]", value) for key, value in ENTRY.items()], [ENTRY])
    ],
}  # fmt: skip
"""Fields that are objects or lists, with how a form writes them."""


def kinds(body: type[BaseModel], name: str) -> list[dict[str, Any]]:
    """The schemas that a field may follow."""
    told = body.model_json_schema()["properties"][name]
    return [one for one in told.get("anyOf", [told]) if one.get("type") != "null"]


def spelled(body: type[BaseModel], name: str) -> list[tuple[list[tuple[str, str]], Any]]:
    """What a form sends for the field, and what JSON would; nothing of free text."""
    if name in OBJECTS:
        return OBJECTS[name]
    found: list[tuple[list[tuple[str, str]], Any]] = []
    for kind in kinds(body, name):
        if "enum" in kind:
            found += [([(name, str(one))], one) for one in kind["enum"]]
        elif kind["type"] == "boolean":
            found += [([(name, text)], value) for text, value in TRUTHS]
        elif kind["type"] == "integer":
            least = kind.get("minimum", 1)
            found += [([(name, str(least))], least)]
        elif kind["type"] == "number":
            found += [([(name, "0.5")], 0.5), ([(name, "5e-1")], 0.5)]
    return found


TYPED = [
    (route, name)
    for route, body in ROUTES.items()
    for name in body.model_fields
    if spelled(body, name) or any("pattern" in one for one in kinds(body, name))
]


def test_most_fields_are_typed() -> None:
    assert {("edits", "stream"), ("edits", "n"), ("upscale", "upscale")} <= set(TYPED)
    assert len(TYPED) > 60


@pytest.mark.parametrize(("route", "name"), TYPED)
def test_text_is_read_as_its_type(route: str, name: str) -> None:
    body = ROUTES[route]
    prompt = [] if route == "upscale" else [("prompt", "a")]
    for items, value in spelled(body, name):
        read = check(body, nested([*prompt, *items]))
        expected = check(body, dict(prompt) | {name: value})
        assert read == expected
        assert getattr(read, name) is not None


@pytest.mark.parametrize(("route", "name"), TYPED)
def test_text_that_stands_for_nothing_is_a_400(server: Server, route: str, name: str) -> None:
    form = {} if route == "upscale" else {"prompt": "a"}
    files: dict[str, Any] = {"user": (None, "me")}  # so that it is a form of parts
    if route != "generations":
        files["image"] = striped()
    answer = httpx.post(f"{server.url}/v1/images/{route}", data=form | {name: "maybe"}, files=files)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"] or "").partition(".")[0] == name
    assert name in error["message"] and "'maybe'" in error["message"]


def test_a_pipelines_own_arguments_are_read_too(server: Server) -> None:
    """By OpenAI's client, in a form, as the same values in JSON."""
    extra: dict[str, Any] = FAST | {
        "strength": 0.9,
        "eta": 0.5,
        "scheduler": "EulerDiscreteScheduler",
        "timesteps": [900, 500, 100],
        "highres": {"scale": 1.5, "strength": 0.7},
        "guidance": 3.5,
    }
    del extra["steps"]
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    form = client.images.edit(
        image=("in.png", striped()), prompt="a cup", size=SIZE, stream=False,
        extra_body=extra | {"highres": None},
    )  # fmt: skip
    body = {"prompt": "a cup", "size": SIZE, "image": data_url(striped())}
    json = httpx.post(
        f"{server.url}/v1/images/edits", json=body | extra | {"highres": None}, timeout=60
    ).json()
    assert form.data and form.data[0].b64_json == json["data"][0]["b64_json"]
    plain = {name: value for name, value in extra.items() if name != "strength"}
    url = f"{server.url}/v1/images/generations"
    drawn = httpx.post(url, json=body | plain | {"image": None}, timeout=60).json()
    parts = [("prompt", "a cup"), ("size", SIZE), ("highres[scale]", "1.5"),
             ("highres[strength]", "0.7"), ("timesteps", "[900, 500, 100]")]  # fmt: skip
    parts += [
        (name, str(value)) for name, value in plain.items() if name not in ("highres", "timesteps")
    ]
    sent = httpx.post(url, files=[(name, (None, value)) for name, value in parts], timeout=60)
    assert sent.status_code == 200, sent.text
    assert sent.json()["data"] == drawn["data"]
    assert sent.json()["size"] == "96x96"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("eta", "maybe", "eta: 'maybe' is not what this model takes for it: float"),
        ("eta", "nan", "eta: nan is beyond"),
        ("timesteps", "[1, true]", "timesteps: [1, True] is not a list of numbers"),
        ("strength", "much", "strength: 'much' is not valid"),
        ("clip_skip", "1.5", "clip_skip: '1.5' is not valid"),
        ("lora[ring][x]", "1", "lora: lora[ring][x] is not read here; send lora as JSON text"),
    ],
)
def test_a_pipelines_own_argument_that_is_none_is_a_400(
    server: Server, name: str, value: str, told: str
) -> None:
    answer = httpx.post(
        f"{server.url}/v1/images/edits",
        data={"prompt": "a", name: value},
        files={"image": striped()},
    )
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]


def test_parts_of_a_field_are_put_together() -> None:
    """The names of all entries first, as OpenAI's Python client sends them, or entry by entry."""
    entries = [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]
    by_key = [(f"control[][{key}]", one[key]) for key in ("name", "image") for one in entries]
    by_entry = [(f"control[][{key}]", one[key]) for one in entries for key in ("name", "image")]
    assert nested(by_key) == nested(by_entry) == {"control": entries}
    assert nested([("sigmas[]", "1"), ("sigmas[]", "0.5")]) == {"sigmas": ["1", "0.5"]}
    assert nested([("odd[name", "1"), ("a b", "2")]) == {"odd[name": "1", "a b": "2"}


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([("n", "1"), ("n", "2")], "n: the form has it twice"),
        ([("lora[a]", "1"), ("lora[a]", "2")], "lora.a: the form has it twice"),
        ([("lora", "{}"), ("lora[a]", "2")], "lora: the form has it twice"),
        ([("lora[a]", "2"), ("lora", "{}")], "lora: the form has it twice"),
        ([("lora[a]", "2"), ("lora[]", "1")], r"lora: lora\[\] is not read here"),
        (
            [("control[][name]", "a"), ("control[][name]", "b"), ("control[][weight]", "1")],
            "control: 1 of 2 entries have weight",
        ),
        ([("control[0][name]", "a")], r"control: control\[0\]\[name\] is not read here"),
    ],
)
def test_parts_that_do_not_fit_are_refused(items: list[tuple[str, str]], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        nested(items)
