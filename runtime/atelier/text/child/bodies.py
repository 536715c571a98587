"""What is changed in a body before a child engine reads it: spellings that clients use and engines
refuse, and the salt that keeps one key's cached prompts from another."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Any

import orjson

SPELLINGS = re.compile(
    rb'"(?:top_p|top_logprobs)"\s*:\s*0(?:\.0*)?\s*[,}]|"seed"\s*:\s*-1\b|"suffix"\s*:\s*""'
)
"""Found in few bodies; the others are handed on unread."""

LIKELIEST = 1e-9
"""`top_p: 0` asks for the likeliest token alone; engines want it above 0."""


def prepared(body: bytes, caller: str, salted: bool) -> bytes:
    """The body that the engine gets: the one that came, if nothing is to be changed.

    Args:
        caller: whose cached prompts may be met; empty where all are one.
        salted: the engine reads `cache_salt` in a body of this route.
    """
    salted = salted and bool(caller)
    if not salted and SPELLINGS.search(body) is None:
        return body
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body  # the engine says what is wrong with it
    if not isinstance(fields, dict):
        return body
    _respell(fields)
    if salted:
        fields["cache_salt"] = salt(caller, fields.get("cache_salt"))
    try:
        return orjson.dumps(fields)
    except orjson.JSONEncodeError:  # deeper than it can be written again: the engine's to refuse
        return body


def salt(caller: str, own: Any = None) -> str:
    """The salt of a caller's prompts, 64 characters; `own` is one that the caller has sent."""
    text = own if isinstance(own, str) else ""
    return hashlib.sha256(f"{caller}\0{text}".encode()).hexdigest()


def _respell(fields: dict[str, Any]) -> None:
    if _is_zero(fields.get("top_p")):
        fields["top_p"] = LIKELIEST
    if fields.get("seed") == -1:
        fields["seed"] = secrets.randbelow(2**31)
    if fields.get("suffix") == "":
        del fields["suffix"]
    if not fields.get("logprobs") and _is_zero(fields.get("top_logprobs")):
        del fields["top_logprobs"]


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == 0
