"""LlamaIndex's models for servers that speak OpenAI's protocol."""

from __future__ import annotations

from typing import Any

from cases import KEY, SCENES, THING, WISH, run
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

LLM = OpenAILike(
    model="scenes",
    api_base=SCENES,
    api_key=KEY,
    temperature=0,
    is_chat_model=True,
    is_function_calling_model=True,
    context_window=2048,
    max_tokens=100,
)


class Thing(BaseModel):
    """What is seen."""

    shape: str
    color: str


def generate_image(prompt: str) -> str:
    """Draw a picture."""
    return prompt


def chat() -> str | None:
    return LLM.chat([ChatMessage("something round and red")]).message.content


def stream() -> str:
    answers = LLM.stream_chat([ChatMessage("something round and red")])
    return "".join(answer.delta or "" for answer in answers)


def complete() -> str:
    """`/v1/completions`, which it asks where the model is said to be no chat model."""
    plain = OpenAILike(
        model="scenes", api_base=SCENES, api_key=KEY, temperature=0, max_tokens=4, context_window=99
    )
    return plain.complete("a red circle above").text


def tools() -> list[Any]:
    able = [FunctionTool.from_defaults(generate_image)]
    answer = LLM.chat_with_tools(able, user_msg=WISH)
    calls = LLM.get_tool_calls_from_response(answer)
    return [calls[0].tool_name, calls[0].tool_kwargs]


def structured() -> Any:
    return LLM.structured_predict(Thing, _template(THING)).model_dump()


def embeddings() -> list[int]:
    model = OpenAILikeEmbedding(model_name="scenes", api_base=SCENES, api_key=KEY)
    return [len(vector) for vector in model.get_text_embedding_batch(["a red circle", "a star"])]


def _template(text: str) -> Any:
    from llama_index.core import PromptTemplate

    return PromptTemplate(text)


run(chat, stream, complete, tools, structured, embeddings)
