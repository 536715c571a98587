"""LangChain's chat models, embeddings and DALL-E wrapper."""

from __future__ import annotations

import urllib.request
from functools import partial
from types import SimpleNamespace
from typing import Any

import openai
from cases import KEY, SCENES, SCENES_BASE, SHAPES, THING, WISH, run, size_of
from langchain_anthropic import ChatAnthropic
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

CHATS: dict[str, Any] = {
    "openai": ChatOpenAI(
        model="scenes", base_url=SCENES, api_key=KEY, temperature=0, use_responses_api=False
    ),
    "anthropic": ChatAnthropic(
        model="scenes", base_url=SCENES_BASE, api_key=KEY, temperature=0, max_tokens=100
    ),
}


class Thing(BaseModel):
    """What is seen."""

    shape: str
    color: str


@tool
def generate_image(prompt: str) -> str:
    """Draw a picture."""
    return f"drawn: {prompt}"


def chat() -> list[str]:
    return [model.invoke("something round and red").content for model in CHATS.values()]


def stream() -> list[str]:
    return [
        "".join(str(chunk.text) for chunk in model.stream("something round and red"))
        for model in CHATS.values()
    ]


def usage() -> list[int]:
    return [
        model.invoke("something round and red").usage_metadata["output_tokens"]
        for model in CHATS.values()
    ]


def tool_loop() -> list[Any]:
    """A call, its result, and what the model says then."""
    told = []
    for model in CHATS.values():
        able = model.bind_tools([generate_image])
        asked = able.invoke(WISH)
        result: ToolMessage = generate_image.invoke(asked.tool_calls[0])
        last = able.invoke([HumanMessage(WISH), asked, result])
        told.append([asked.tool_calls[0]["args"], str(last.text)])
    return told


def structured() -> list[Any]:
    """Each way of asking for an object."""
    model = CHATS["openai"]
    ways = ("json_schema", "function_calling", "json_mode")
    things = [model.with_structured_output(Thing, method=way).invoke(THING) for way in ways]
    model, ways = CHATS["anthropic"], ("json_schema", "function_calling")
    things += [model.with_structured_output(Thing, method=way).invoke(THING) for way in ways]
    return [thing.model_dump() for thing in things]


def one_tool_at_a_time() -> list[Any]:
    able = CHATS["openai"].bind_tools(
        [generate_image], tool_choice="generate_image", strict=True, parallel_tool_calls=False
    )
    return [call["name"] for call in able.invoke(WISH).tool_calls]


def embeddings() -> list[int]:
    """With its own tokenizer switched off: it would be fetched, and it is another model's."""
    model = OpenAIEmbeddings(
        model="scenes", base_url=SCENES, api_key=KEY, check_embedding_ctx_length=False
    )
    return [len(vector) for vector in model.embed_documents(["a red circle", "a blue square"])]


def image() -> list[int]:
    """1024x1024 is its default. It reads URLs and does not ask for them, so the client it is given
    does."""
    images = openai.OpenAI(base_url=SHAPES, api_key=KEY).images
    asking = SimpleNamespace(generate=partial(images.generate, response_format="url"))
    wrapper = DallEAPIWrapper(model="shapes", client=asking, async_client=asking)
    with urllib.request.urlopen(wrapper.run("a red circle")) as answer:
        return size_of(answer.read())


run(chat, stream, usage, tool_loop, structured, one_tool_at_a_time, embeddings, image)
