"""LiteLLM as a library, with its defaults."""

from __future__ import annotations

from typing import Any

import litellm
from cases import DRAW, KEY, SCENES, SHAPES, THING, WISH, picture, run, size_of

litellm.suppress_debug_info = True
TEXT: dict[str, Any] = {"model": "openai/scenes", "api_base": SCENES, "api_key": KEY}
IMAGES: dict[str, Any] = {"model": "openai/shapes", "api_base": SHAPES, "api_key": KEY}


def ask(content: str, **more: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    return litellm.completion(messages=messages, temperature=0, **TEXT, **more)


def completion() -> str:
    return ask("something round and red").choices[0].message.content


def stream() -> dict[str, Any]:
    chunks = list(
        ask("something round and red", stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return {"text": text, "tokens": chunks[-1].usage.completion_tokens}


def tools() -> list[str]:
    call = ask(WISH, tools=[DRAW]).choices[0].message.tool_calls[0]
    return [call.function.name, call.function.arguments]


def json_mode() -> str:
    return ask(THING, response_format={"type": "json_object"}).choices[0].message.content


def embedding() -> list[int]:
    answer = litellm.embedding(input=["a red circle", "a blue square"], **TEXT)
    return [len(entry["embedding"]) for entry in answer.data]


def generation() -> list[int]:
    answer = litellm.image_generation(prompt="a red circle", **IMAGES)
    return size_of(answer.data[0].b64_json)


def generation_with_all_fields() -> list[Any]:
    answer = litellm.image_generation(
        prompt="a red circle",
        n=2,
        quality="low",
        size="1024x1024",
        user="someone",
        extra_body={"style": "vivid", "moderation": "low", "response_format": "b64_json"},
        **IMAGES,
    )
    return [size_of(each.b64_json) for each in answer.data]


def edit() -> list[int]:
    answer = litellm.image_edit(image=picture(), prompt="a red circle", **IMAGES)
    return size_of(answer.data[0].b64_json)


def edit_with_size() -> list[int]:
    answer = litellm.image_edit(
        image=[picture()],
        prompt="a red circle",
        size="1024x1024",
        quality="low",
        n=1,
        extra_body={"input_fidelity": "high"},
        **IMAGES,
    )
    return size_of(answer.data[0].b64_json)


def error() -> list[Any]:
    try:
        ask("hello", max_tokens=-1)
    except litellm.BadRequestError as error:
        return [error.status_code, str(error)]
    return []


run(
    completion,
    stream,
    tools,
    json_mode,
    embedding,
    generation,
    generation_with_all_fields,
    edit,
    edit_with_size,
    error,
)
