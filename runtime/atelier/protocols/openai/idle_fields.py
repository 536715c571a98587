"""OpenAI's documented fields of the chat route that nothing here acts on.

Some are taken: the answer's `warnings` name them, unless the value asks for what is done anyway.
Some are refused, since the answer would not be what they ask for.
"""

from __future__ import annotations

from typing import Any

from atelier.errors import InvalidRequest, shown

TAKEN: dict[str, tuple[Any, ...]] = {
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
"""Fields without effect, with the values that need no warning."""

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "audio": ((), "answers are text; leave it out"),
    "modalities": (([], ["text"]), 'answers are text; send ["text"] or leave it out'),
    "web_search_options": ((), "this server does not search the web; leave it out"),
    "functions": (([],), "this is the older form of tools; send tools"),
    "function_call": (("none", "auto"), "this is the older form of tool_choice; send that"),
}
"""Fields that are refused, with the values that ask for nothing, and the remedy."""


def refuse(body: dict[str, Any]) -> None:
    """See that a chat body asks for nothing that this server cannot do at all.

    Raises:
        InvalidRequest: names the field, its value and what to send instead.
    """
    for name, (harmless, remedy) in REFUSED.items():
        value = body.get(name)
        if value is not None and value not in harmless:
            raise InvalidRequest(f"{name}={shown(value)} is not offered here: {remedy}", name)


def warnings(body: dict[str, Any]) -> list[str]:
    """What the answer says of the fields that were taken and do nothing."""
    return [
        without_effect(name)
        for name, harmless in TAKEN.items()
        if body.get(name) is not None and body[name] not in harmless
    ]


def without_effect(name: str) -> str:
    """The warning for one field."""
    return f"{name}: taken and without effect: this server has no such thing"
