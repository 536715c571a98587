"""The built-in language model behind a real server: answers that are right or wrong, and a tool
call that draws."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator

import httpx
import openai
import pytest
from PIL import Image

from tests.text.running import ROOT, Server, serving

PROMPT = {"type": "object", "properties": {"prompt": {"type": "string"}}, "required": ["prompt"]}
TOOL = {
    "type": "function",
    "function": {"name": "generate_image", "description": "Draw a scene", "parameters": PROMPT},
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("scenes") / "server.log"
    with serving(
        ROOT / "runtime" / "atelier" / "builtin" / "scenes", log, name="scenes"
    ) as running:
        yield running


def ask(server: Server, text: str, **fields: object) -> openai.types.chat.ChatCompletionMessage:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    messages = [{"role": "user", "content": text}]
    return (
        client.chat.completions.create(model=server.name, messages=messages, **fields)
        .choices[0]
        .message
    )


def test_a_wish_becomes_a_scene(scenes: Server) -> None:
    assert (
        ask(scenes, "something round and red over something blue").content
        == "a red circle above a blue circle"
    )


def test_a_question_about_a_scene_is_answered(scenes: Server) -> None:
    said = ask(scenes, "There is a red circle above a blue square. Is there a star?").content
    assert said == "No, there is no star."


def test_a_scene_comes_as_json_of_a_schema(scenes: Server) -> None:
    thing = {
        "type": "object",
        "properties": {"shape": {"type": "string"}, "color": {"type": "string"}},
    }
    thing |= {"required": ["shape", "color"], "additionalProperties": False}
    schema = {
        "type": "object",
        "properties": {"objects": {"type": "array", "items": thing}},
        "required": ["objects"],
    }
    form = {
        "type": "json_schema",
        "json_schema": {"name": "scene", "strict": True, "schema": schema},
    }
    said = ask(scenes, "a red circle as JSON", response_format=form, max_tokens=100).content
    assert json.loads(said or "")["objects"][0] == {"shape": "circle", "color": "red"}


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_wish_with_a_tool_calls_it(scenes: Server, choice: str) -> None:
    said = ask(
        scenes, "Please draw a red circle above a blue square.", tools=[TOOL], tool_choice=choice
    )
    (call,) = said.tool_calls or []
    assert call.function.name == "generate_image"
    assert json.loads(call.function.arguments) == {"prompt": "a red circle above a blue square"}


def test_a_tool_call_carried_to_the_picture_server_draws_the_scene(
    scenes: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from atelier.builtin.shapes.checker import check

    said = ask(scenes, "Please draw a red circle above a blue square.", tools=[TOOL], seed=1)
    prompt = json.loads((said.tool_calls or [])[0].function.arguments)["prompt"]
    log = tmp_path_factory.mktemp("shapes") / "server.log"
    with serving(
        ROOT / "runtime" / "atelier" / "builtin" / "shapes", log, name="shapes", ready_s=120
    ) as shapes:
        body = {"instances": [{"prompt": prompt, "seed": 4, "num_images_per_prompt": 4}]}
        answer = httpx.post(f"{shapes.url}/v1/models/shapes:predict", json=body, timeout=120).json()
    drawn = [
        Image.open(io.BytesIO(base64.b64decode(each["b64"])))
        for each in answer["predictions"][0]["images"]
    ]
    assert any(
        check(picture, prompt) for picture in drawn
    )  # the picture model misses a shape now and then
