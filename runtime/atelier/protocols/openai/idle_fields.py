"""OpenAI's documented fields of the routes of text that nothing here acts on, or not always.

Some are taken: the answer's `warnings` name them, unless the value asks for what is done anyway.
Some are refused, since the answer would not be what they ask for.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from atelier.errors import InvalidRequest, shown

log = logging.getLogger(__name__)

Taken = dict[str, tuple[Any, ...]]
Refused = dict[str, tuple[tuple[Any, ...], str]]

TAKEN: Taken = {
    "metadata": ({},),
    "moderation": (),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_options": ({},),
    "prompt_cache_retention": ("in_memory",),
    "reasoning_effort": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": ("medium",),
}
"""Fields of a chat without effect, with the values that need no warning."""

TAKEN_OF_VLLM: Taken = dict.fromkeys(
    (
        "documents", "length_penalty", "min_tokens", "truncate_prompt_tokens", "typical_p",
    ),
    (),
)  # fmt: skip
TAKEN_OF_VLLM |= {"add_generation_prompt": (True,)}
"""And fields of vLLM's, which its clients send to any server."""

TAKEN_BY_CHATS = TAKEN | TAKEN_OF_VLLM

TAKEN_BY_RESPONSES: Taken = {
    "access_programs": ({},),
    "context_management": ([],),
    "image": ({},),
    "max_tool_calls": (),
    "moderation": (),
    "prompt_cache_key": (),
    "prompt_cache_options": ({},),
    "prompt_cache_retention": ("in_memory",),
    "service_tier": ("auto", "default"),
    "stream_options": ({}, {"include_obfuscation": False}),
}
"""The same of a response."""

REFUSED: Refused = {
    "audio": ((), "answers are text; leave it out"),
    "modalities": (([], ["text"]), 'answers are text; send ["text"] or leave it out'),
    "web_search_options": ((), "this server does not search the web; leave it out"),
    "echo": ((False,), "a chat's prompt is no text; leave it out or use /v1/completions"),
    "continue_final_message": ((False,), "an answer is a turn of its own; leave it out"),
    "functions": (([],), "this is the older form of tools; send tools"),
    "function_call": (("none", "auto"), "this is the older form of tool_choice; send that"),
}
"""Fields of a chat that are refused, with the values that ask for nothing, and the remedy."""

REFUSED_BY_RESPONSES: Refused = {
    "background": ((False,), "an answer is given at once or streamed; leave it out"),
    "conversation": ((), "conversations are not kept; send previous_response_id or the items"),
    "prompt": ((), "prompts are not kept; send instructions and input"),
    "max_tokens": ((), "it is called max_output_tokens in a response"),
    "max_completion_tokens": ((), "it is called max_output_tokens in a response"),
    "messages": ((), "they are called input in a response"),
    "response_format": ((), "it is called text.format in a response"),
}
"""The same of a response."""


def refuse(body: dict[str, Any], refused: Refused = REFUSED) -> None:
    """See that a body asks for nothing that this server cannot do at all.

    Raises:
        InvalidRequest: names the field, its value and what to send instead.
    """
    for name, (harmless, remedy) in refused.items():
        value = body.get(name)
        if value not in (None, "", *harmless):
            raise InvalidRequest(f"{name}={shown(value)} is not offered here: {remedy}", name)


def warnings(
    body: dict[str, Any], taken: Taken = TAKEN_BY_CHATS, read: Collection[str] = ()
) -> list[str]:
    """What the answer says of the fields that were taken and do nothing; those that are `read` by
    the chat template do something."""
    return [
        without_effect(name)
        for name, harmless in taken.items()
        if body.get(name) is not None and body[name] not in harmless and name not in read
    ]


def without_effect(name: str) -> str:
    """The warning for one field."""
    return f"{name}: taken and without effect: this server has no such thing"


def log_user(body: dict[str, Any]) -> None:
    """Who the client says it asks for goes to the log."""
    if who := body.get("user") or body.get("safety_identifier"):
        log.info("the request is from user %s", shown(who))
