"""`/tokenize` and `/detokenize` as vLLM spells them, told to llama.cpp, which has others."""

from __future__ import annotations

import json
from typing import Any

from atelier.bounds import read_json
from atelier.errors import InvalidRequest, shown

PATHS = ("/tokenize", "/detokenize")


def asked(path: str, body: bytes) -> tuple[bytes, bool]:
    """The body that llama.cpp reads, and whether its answer is to be translated: what is asked in
    its own words is answered in them.

    Raises:
        InvalidRequest: names what it cannot tokenize.
    """
    fields = read_json(body)
    if not isinstance(fields, dict) or "content" in fields:
        return body, False
    if path == "/detokenize":
        return body, True
    if fields.get("messages") is not None:
        raise InvalidRequest("messages: llama.cpp tokenizes text alone: send prompt", "messages")
    prompt = fields.get("prompt")
    if not isinstance(prompt, str):
        raise InvalidRequest(f"prompt={shown(prompt)} must be text", "prompt")
    special = fields.get("add_special_tokens")
    told = {
        "content": prompt,
        "add_special": True if special is None else special,
        "with_pieces": bool(fields.get("return_token_strs")),
    }
    return json.dumps(told).encode(), True


def answered(path: str, raw: bytes, context: int | None) -> bytes:
    """Its answer, in vLLM's words; `context` is what one prompt and its answer may have."""
    found: dict[str, Any] = json.loads(raw)
    if path == "/detokenize":
        return json.dumps({"prompt": found["content"]}).encode()
    tokens = found["tokens"]
    pieces = [one for one in tokens if isinstance(one, dict)]
    ids = [one["id"] for one in pieces] if pieces else tokens
    told = {"count": len(ids), "max_model_len": context, "tokens": ids}
    # A piece that is no text is the bytes of part of a character.
    strings = [
        one["piece"]
        if isinstance(one["piece"], str)
        else bytes(one["piece"]).decode("utf-8", "replace")
        for one in pieces
    ]
    return json.dumps(told | ({"token_strs": strings} if pieces else {})).encode()
