"""JSON bodies as objects, and answers as JSON, for all protocols."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Request, Response

from atelier.bounds import MAX_VALUES, read_json
from atelier.errors import InvalidRequest


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
    """The JSON object of a request; errors as `json_object`."""
    return json_object(await request.body())


def json_response(data: Any, status: int = 200) -> Response:
    """A JSON answer, written by orjson: a token's log probabilities make bodies large."""
    return Response(orjson.dumps(data), status, media_type="application/json")
