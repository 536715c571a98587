"""Pydantic AI's agents and Instructor, which both want objects of a class."""

from __future__ import annotations

from typing import Any

import instructor
import openai
from cases import KEY, SCENES, SCENES_BASE, THING, WISH, run
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

MODELS: dict[str, Any] = {
    "openai": OpenAIChatModel("scenes", provider=OpenAIProvider(base_url=SCENES, api_key=KEY)),
    "anthropic": AnthropicModel(
        "scenes",
        provider=AnthropicProvider(base_url=SCENES_BASE, api_key=KEY),
    ),
}
GREEDY: Any = {"temperature": 0, "max_tokens": 100}


class Thing(BaseModel):
    """What is seen."""

    shape: str
    color: str


def chat() -> list[str]:
    return [
        Agent(model, model_settings=GREEDY).run_sync("something round and red").output
        for model in MODELS.values()
    ]


def tool_loop() -> list[Any]:
    """A call, its result, and what the model says then; with what was drawn on the way."""
    return [list(_drawing(model)) for model in MODELS.values()]


def _drawing(model: Any) -> tuple[str, list[str]]:
    drawn = []

    def generate_image(prompt: str) -> str:
        """Draw a picture."""
        drawn.append(prompt)
        return prompt

    agent = Agent(model, tools=[generate_image], model_settings=GREEDY)
    return agent.run_sync(WISH).output, drawn


def structured() -> list[Any]:
    """By a schema and by a tool."""
    wanted: list[Any] = [NativeOutput(Thing), ToolOutput(Thing)]
    agents = [Agent(MODELS["openai"], output_type=one, model_settings=GREEDY) for one in wanted]
    agents.append(Agent(MODELS["anthropic"], output_type=ToolOutput(Thing), model_settings=GREEDY))
    return [agent.run_sync(THING).output.model_dump() for agent in agents]


def instructed() -> list[Any]:
    """Instructor, in each of its ways to ask."""
    plain = openai.OpenAI(base_url=SCENES, api_key=KEY)
    told = []
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(plain, mode=mode)
        thing = client.chat.completions.create(
            model="scenes",
            messages=[{"role": "user", "content": THING}],
            response_model=Thing,
            temperature=0,
            max_retries=0,
        )
        told.append(thing.model_dump())
    return told


run(chat, tool_loop, structured, instructed)
