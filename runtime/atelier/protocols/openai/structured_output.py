"""vLLM's own fields for answers of a form, which its clients send to any server: `guided_json` and
its kin, and what it calls them today, `structured_outputs`."""

from __future__ import annotations

from typing import Any

from atelier.bounds import read_json
from atelier.errors import InvalidRequest, shown

GUIDED = ("guided_choice", "guided_grammar", "guided_json", "guided_regex")
JSON = ("guided_json", "structured_outputs.json")


def structured_output(body: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema that these fields ask for, as OpenAI's `response_format`; nothing if they ask
    for nothing.

    Raises:
        InvalidRequest: they ask for another form than JSON, or `response_format` is there too.
    """
    asked = _asked(body)
    if not asked:
        return {}
    for name, value in asked.items():
        if name not in JSON:
            raise InvalidRequest(
                f"{name}={shown(value)} is not offered here: send a JSON schema in response_format",
                name,
            )
    name, schema = next(iter(asked.items()))
    if body.get("response_format") not in (None, {"type": "text"}):
        raise InvalidRequest(f"{name} beside response_format: send one of them", name)
    if isinstance(schema, str):
        schema = read_json(schema)
    wanted = {"type": "json_schema", "json_schema": {"name": "guided", "schema": schema}}
    return {"response_format": wanted}


def _asked(body: dict[str, Any]) -> dict[str, Any]:
    newer = body.get("structured_outputs")
    if not isinstance(newer, dict | None):
        raise InvalidRequest(
            f"structured_outputs={shown(newer)} must be an object", "structured_outputs"
        )
    asked = {f"structured_outputs.{name}": value for name, value in (newer or {}).items()}
    asked |= {name: body.get(name) for name in GUIDED}
    return {name: value for name, value in asked.items() if value not in (None, "", [], False)}
