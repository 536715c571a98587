"""JSON bodies as objects, and answers as JSON, for all protocols."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Request, Response

from atelier.bounds import MAX_VALUES, read_json
from atelier.errors import InvalidRequest

TEXTS = ("prompt", "input", "text_input")
"""Fields whose empty text is a text."""


def json_object(raw: bytes | str, most: int = MAX_VALUES) -> dict[str, Any]:
    """The object that a JSON body holds, of at most `most` values.

    Raises:
        InvalidRequest: it is not JSON, not an object, or too large.
    """
    body = read_json(raw, most)
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    return body


async def read_object(request: Request) -> dict[str, Any]:
    """The fields of a request's JSON object that say something; errors as `json_object`."""
    return without_nothing(json_object(await request.body()))


def without_nothing(body: dict[str, Any]) -> dict[str, Any]:
    """A body without null, and without empty text where no text is asked for: what libraries send
    for a field that their user left out."""
    return {
        name: value
        for name, value in body.items()
        if value is not None and (value != "" or name in TEXTS)
    }


def json_response(data: Any, status: int = 200) -> Response:
    """A JSON answer, written by orjson: a token's log probabilities make bodies large."""
    return Response(orjson.dumps(data), status, media_type="application/json")
