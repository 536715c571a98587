"""Every field that the installed `openai` package documents for a route is taken with its usual
values, or refused in words that name it: none is a surprise. Made from the package's own types, so
that a new field of a new version fails here until it is decided what becomes of it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import httpx
import pytest
from openai.types import (
    completion_create_params,
    embedding_create_params,
    image_create_variation_params,
    image_edit_params,
    image_generate_params,
)
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from atelier.protocols.openai import idle_fields, image_bodies
from tests.conftest import Server
from tests.protocols.pictures import encoded, mask

TEXT, PICTURES = "scenes", "shapes"
TOOL = {"type": "function", "function": {"name": "generate_image", "parameters": {}}}
FLAT = {"type": "function", "name": "generate_image", "parameters": {}}
TURN = {"role": "user", "content": "something round and red"}
IMAGE, MASK = encoded((128, 128, 128)), mask((0, 0, 32, 64))
SMALL = {"prompt": "a star", "size": "64x64", "steps": 1}

ROUTES: dict[str, tuple[str, str, Any, dict[str, Any]]] = {
    "chat": (
        TEXT,
        "chat/completions",
        chat_create_params.CompletionCreateParamsBase,
        {"messages": [TURN], "max_tokens": 1},
    ),
    "completions": (
        TEXT,
        "completions",
        completion_create_params.CompletionCreateParamsBase,
        {"prompt": "a red", "max_tokens": 1},
    ),
    "responses": (
        TEXT,
        "responses",
        response_create_params.ResponseCreateParamsBase,
        {"input": "a red circle", "max_output_tokens": 1},
    ),
    "embeddings": (
        TEXT,
        "embeddings",
        embedding_create_params.EmbeddingCreateParams,
        {"input": "a red circle"},
    ),
    "generations": (
        PICTURES,
        "images/generations",
        image_generate_params.ImageGenerateParamsBase,
        SMALL,
    ),
    "edits": (
        PICTURES,
        "images/edits",
        image_edit_params.ImageEditParamsBase,
        SMALL | {"image": IMAGE},
    ),
    "variations": (
        PICTURES,
        "images/variations",
        image_create_variation_params.ImageCreateVariationParams,
        SMALL | {"image": IMAGE},
    ),
}
"""Which server, which route, the package's type of its body, and the least that it needs."""

SAMPLES: dict[str, list[Any]] = {
    "access_programs": [{}, {"cyber": "standard"}],
    "audio": [{"voice": "alloy", "format": "wav"}],
    "background": ["auto", "opaque", "transparent"],
    "best_of": [1, 2],
    "chat.moderation": [{"model": "omni-moderation-latest"}],
    "chat.response_format": [{"type": "text"}, {"type": "json_object"}],
    "completions.logprobs": [0, 2],
    "context_management": [[], [{"type": "compaction", "compact_threshold": 1000}]],
    "conversation": ["conv_1", {"id": "conv_1"}],
    "dimensions": [256, 128],
    "echo": [False, True],
    "frame_count": [2],
    "frame_duration_ms": [200],
    "frequency_penalty": [0, 0.5],
    "function_call": ["none", "auto", {"name": "generate_image"}],
    "functions": [[], [{"name": "generate_image"}]],
    "image": [IMAGE],
    "include": [[], ["message.output_text.logprobs"], ["reasoning.encrypted_content"]],
    "input": ["a red circle", ["a red circle", "a star"], [1, 2], [[1, 2], [3]]],
    "instructions": ["", "Answer in JSON."],
    "logit_bias": [{}, {"5": 1}],
    "markup": [MASK],
    "mask": [MASK],
    "max_completion_tokens": [2],
    "max_output_tokens": [2],
    "max_tokens": [2],
    "max_tool_calls": [3],
    "messages": [[TURN], [{"role": "developer", "content": "Answer in JSON."}, TURN]],
    "metadata": [{}, {"run": "7"}],
    "modalities": [["text"], ["text", "audio"]],
    "model": [""],
    "n": [1, 2],
    "output_compression": [100],
    "partial_images": [0, 2],
    "prediction": [{"type": "content", "content": "a red circle"}],
    "presence_penalty": [0, 0.5],
    "previous_response_id": [None, ""],
    "prompt": ["a star"],
    "prompt_cache_key": ["someone"],
    "prompt_cache_options": [{}, {"mode": "implicit"}],
    "reasoning": [{}, {"effort": "low"}, {"effort": "high", "summary": "auto"}],
    "responses.background": [False, True],
    "responses.image": [{}, {"context_compression": "auto"}],
    "responses.input": ["a red circle", [TURN], [{"type": "message", **TURN}]],
    "responses.moderation": [{"model": "omni-moderation-latest"}],
    "responses.prompt": [{"id": "pmpt_1"}],
    "responses.tools": [[], [FLAT], [{"type": "web_search"}]],
    "safety_identifier": ["someone"],
    "seed": [7],
    "stop": ["blue", ["blue", "green"]],
    "stream_options": [None],
    "suffix": ["", "the end"],
    "svg": [{"model": "x"}],
    "temperature": [0, 1],
    "text": [{}, {"format": {"type": "json_object"}}, {"verbosity": "low"}],
    "tool_choice": ["none", "auto", "required"],
    "tools": [[TOOL]],
    "top_logprobs": [0, 2],
    "top_p": [0, 1],
    "user": ["someone"],
    "web_search_options": [{}, {"search_context_size": "low"}],
}
"""Values of the fields whose type does not list them, of all routes or of one."""

REFUSED: dict[str, list[Any]] = {
    "audio": SAMPLES["audio"],
    "background": ["transparent", True],
    "best_of": [2],
    "conversation": SAMPLES["conversation"],
    "dimensions": [128],
    "frame_count": [2],
    "frame_duration_ms": [200],
    "function_call": [{"name": "generate_image"}],
    "functions": [[{"name": "generate_image"}]],
    "markup": [MASK],
    "modalities": [["text", "audio"]],
    "output_format": ["gif", "svg"],
    "prompt": SAMPLES["responses.prompt"],
    "suffix": ["the end"],
    "svg": [{"model": "x"}],
    "web_search_options": SAMPLES["web_search_options"],
}
"""What this server cannot do at all. Everything else is taken."""

NEEDED: dict[str, dict[str, Any]] = {
    "top_logprobs": {"logprobs": True},
    "tool_choice": {"tools": [TOOL]},
    "responses.tool_choice": {"tools": [FLAT]},
}
"""Fields that say something only beside another."""


def literals(hint: Any) -> Iterator[Any]:
    """The values that a type lists, whatever it may be besides."""
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    elif get_origin(hint) is not list:
        for inner in get_args(hint):
            yield from literals(inner)


def values(route: str, field: str, hint: Any) -> list[Any]:
    for name in (f"{route}.{field}", field):
        if name in SAMPLES:
            return SAMPLES[name]
    listed = list(literals(hint)) or ([True, False] if bool in (hint, *get_args(hint)) else [])
    assert listed, f"{field} of {route} is new: say in SAMPLES what people send"
    return listed


FIELDS = [
    pytest.param(route, field, hint, id=f"{route}-{field}")
    for route, (_, _, body, _) in ROUTES.items()
    for field, hint in get_type_hints(body).items()
]


def send(server: Server, path: str, body: dict[str, Any]) -> httpx.Response:
    """JSON, or the form that OpenAI's clients make of a body with files."""
    url = f"{server.url}/v1/{path}"
    files = {key: value for key, value in body.items() if isinstance(value, bytes)}
    if not files:
        return httpx.post(url, json=body, timeout=60)
    text = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in body.items()
        if key not in files
    }
    uploads = {key: (f"{key}.png", io.BytesIO(value)) for key, value in files.items()}
    return httpx.post(url, data=text, files=uploads, timeout=60)


@pytest.mark.parametrize(("route", "field", "hint"), FIELDS)
def test_a_documented_field_is_taken_or_refused_by_name(
    route: str, field: str, hint: Any, request: pytest.FixtureRequest
) -> None:
    kind, path, _, least = ROUTES[route]
    server = request.getfixturevalue(kind)
    for value in values(route, field, hint):
        needed = NEEDED.get(f"{route}.{field}", NEEDED.get(field, {}))
        answer = send(server, path, least | needed | {field: value})
        if value in REFUSED.get(field, []):
            assert answer.status_code == 400, f"{field}={value!r:.60}"
            assert field in answer.json()["error"]["message"]
            assert answer.json()["error"]["param"] == field
        else:
            assert answer.status_code == 200, f"{field}={value!r:.60}: {answer.text}"


IDLE = {"chat": idle_fields.TAKEN, "responses": idle_fields.TAKEN_BY_RESPONSES}


@pytest.mark.parametrize(
    ("route", "field"), [(route, field) for route, fields in IDLE.items() for field in fields]
)
def test_a_field_without_effect_is_named_once(route: str, field: str, scenes: Server) -> None:
    _, path, body, least = ROUTES[route]
    hint, harmless = get_type_hints(body)[field], IDLE[route][field]
    telling = [v for v in values(route, field, hint) if v not in (*harmless, None)]
    for value in telling:
        told = send(scenes, path, least | {field: value}).json()["warnings"]
        assert [one.partition(":")[0] for one in told] == [field]
    for value in harmless:
        assert "warnings" not in send(scenes, path, least | {field: value}).json()


def test_a_stream_names_fields_without_effect_in_its_first_chunk(scenes: Server) -> None:
    _, path, _, least = ROUTES["chat"]
    answer = send(scenes, path, least | {"stream": True, "verbosity": "low"})
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line) for line in lines]
    assert chunks[0]["warnings"] == [idle_fields.without_effect("verbosity")]
    assert not [chunk for chunk in chunks[1:] if "warnings" in chunk]


@pytest.mark.parametrize("field", image_bodies.WITHOUT_EFFECT)
def test_a_picture_field_without_effect_is_named(field: str, shapes: Server) -> None:
    value = {"moderation": "low", "style": "vivid"}.get(field, "high")
    answer = send(shapes, "images/generations", SMALL | {field: value})
    assert answer.json()["warnings"] == [idle_fields.without_effect(field)]
