"""A first look at a caller's JSON schema: the shape that everything behind relies on, and its size.

What a grammar cannot follow beyond that, its compiler says.
"""

from __future__ import annotations

from typing import Any

import orjson

from atelier.bounds import MAX_SCHEMA_BYTES
from atelier.errors import shown

OBJECTS = ("properties", "$defs", "definitions", "patternProperties")
"""Keywords with an object of schemas."""

LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
"""Keywords with a list of schemas."""

ONE = ("items", "additionalProperties", "not")


def check_schema(schema: Any, where: str = "the schema") -> None:
    """See that `schema` has the shape of a JSON schema.

    Raises:
        ValueError: it has not, or is too large; the message names the keyword.
    """
    size = len(orjson.dumps(schema))
    if size > MAX_SCHEMA_BYTES:
        raise ValueError(f"{where} has {size} bytes; at most {MAX_SCHEMA_BYTES} are taken")
    _check(schema, where)


def _check(schema: Any, where: str) -> None:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise ValueError(f"{where} must be an object, not {shown(schema)}")
    kinds = schema.get("type", "object")
    if not isinstance(kinds, str) and not _all_text(kinds):
        raise ValueError(f"{where}.type={shown(kinds)} must be text or a list of texts")
    if not _all_text(schema.get("required", [])):
        raise ValueError(f"{where}.required must be a list of names")
    if not isinstance(schema.get("enum", []), list):
        raise ValueError(f"{where}.enum must be a list")
    for keyword in OBJECTS:
        inner = schema.get(keyword, {})
        if not isinstance(inner, dict):
            raise ValueError(f"{where}.{keyword} must be an object of schemas")
        for name, one in inner.items():
            _check(one, f"{where}.{keyword}.{name}")
    for keyword in LISTS:
        inner = schema.get(keyword, [])
        if not isinstance(inner, list):
            raise ValueError(f"{where}.{keyword} must be a list of schemas")
        for index, one in enumerate(inner):
            _check(one, f"{where}.{keyword}[{index}]")
    for keyword in ONE:
        if keyword in schema and not isinstance(schema[keyword], list):
            _check(schema[keyword], f"{where}.{keyword}")


def _all_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
