"""What Open WebUI sends to a server of OpenAI's protocol, by the forms of its source
(github.com/open-webui/open-webui, backend/open_webui/routers/images.py and openai.py). It is an
application, so its requests are played here."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.conftest import Server
from tests.protocols.pictures import encoded, opened

HEADERS = {
    "Authorization": "Bearer none",
    "X-OpenWebUI-User-Name": "Someone",
    "X-OpenWebUI-User-Email": "someone@example.com",
    "X-OpenWebUI-User-Role": "user",
}
WISH = "something round and red"
PICTURE = encoded((128, 128, 128), (96, 64))


def chat(server: Server, **fields: Any) -> httpx.Response:
    body = {"model": server.model, "messages": [{"role": "user", "content": WISH}]} | fields
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=HEADERS, timeout=60)


def test_it_finds_the_models(shapes: Server, scenes: Server) -> None:
    for server in (shapes, scenes):
        listed = httpx.get(f"{server.url}/v1/models", headers=HEADERS).json()["data"]
        assert [model["id"] for model in listed] == [server.model]


def test_its_chat_with_all_of_a_models_parameters(scenes: Server) -> None:
    parameters = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "top_p": 0.9,
        "min_p": 0.0,
        "top_k": 40,
        "max_tokens": 128,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "seed": 0,
        "stop": ["###"],
        "logit_bias": {},
        "reasoning_effort": "medium",
        "user": {"name": "Someone", "id": "1", "email": "someone@example.com", "role": "user"},
    }
    answer = chat(scenes, **parameters)
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]]
    assert "".join(pieces) == "a red circle"
    assert chunks[-1]["usage"]["completion_tokens"] == 4


def test_its_tasks_such_as_a_chats_title(scenes: Server) -> None:
    answer = chat(scenes, stream=False, max_completion_tokens=1000, temperature=0)
    assert answer.json()["choices"][0]["message"]["content"] == "a red circle"


def test_its_messages_of_parts(scenes: Server) -> None:
    parts = [{"type": "text", "text": WISH}]
    answer = chat(scenes, messages=[{"role": "user", "content": parts}], temperature=0)
    assert answer.json()["choices"][0]["message"]["content"] == "a red circle"


@pytest.mark.parametrize("size", ["512x512", "auto", "1024x1024"])
def test_its_picture_of_a_prompt(shapes: Server, size: str) -> None:
    """512x512 is what it asks for unless told otherwise; here it becomes the nearest."""
    body = {
        "model": "shapes",
        "prompt": "a star",
        "n": 1,
        "size": size,
        "response_format": "b64_json",
        "steps": 2,  # of its field "additional parameters"
    }
    url = f"{shapes.url}/v1/images/generations?api-version=2025-04-01"
    answer = httpx.post(url, json=body, headers=HEADERS, timeout=60).json()
    assert opened(answer["data"][0]["b64_json"]).size == (128, 128)


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_its_edit_of_a_picture(shapes: Server, name: str) -> None:
    """A form whose numbers are text; several pictures are called `image[]`."""
    fields = {
        "model": "shapes",
        "prompt": "a star",
        "n": "1",
        "size": "512x512",
        "background": "auto",
        "response_format": "b64_json",
        "quality": "low",
    }
    files = [(name, ("image.png", PICTURE, "image/png"))]
    url = f"{shapes.url}/v1/images/edits"
    answer = httpx.post(url, data=fields, files=files, headers=HEADERS, timeout=60).json()
    assert opened(answer["data"][0]["b64_json"]).size == (128, 128)
