"""Fields of a form as OpenAI's clients write what is no text: objects as `lora[ring]`, lists as
`sigmas[]`, lists of objects as `control[][name]`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from atelier.errors import InvalidRequest

NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])+)")
KEY = re.compile(r"\[([^\[\]]*)\]")

Items = Iterable[tuple[str, str]]


def nested(items: Items) -> dict[str, Any]:
    """The fields of a form by name, put together from their parts; texts stay texts.

    A client may send the names of all entries of a list before their pictures, so the n-th value of
    a key belongs to the n-th entry.

    Raises:
        InvalidRequest: a field is there twice, or its parts do not fit together.
    """
    fields: dict[str, Any] = {}
    columns: dict[str, dict[str, list[str]]] = {}
    for name, value in items:
        base, keys = _parts(name)
        if base in fields and (not keys or not isinstance(fields[base], dict | list)):
            raise InvalidRequest(f"{base}: the form has it twice", base)
        match keys:
            case []:
                fields[base] = value
            case [""]:
                _grown(fields, base, list, name).append(value)
            case [key]:
                found = _grown(fields, base, dict, name)
                if key in found:
                    raise InvalidRequest(f"{base}.{key}: the form has it twice", base)
                found[key] = value
            case ["", key]:
                _grown(fields, base, list, name)
                columns.setdefault(base, {}).setdefault(key, []).append(value)
            case _:
                raise _unread(base, name)
    for base, columns_of in columns.items():
        fields[base] += _entries(base, columns_of)
    return fields


def _parts(name: str) -> tuple[str, list[str]]:
    """`control[][name]` as `control` and the keys behind it."""
    found = NAME.fullmatch(name)
    return (found[1], KEY.findall(found[2])) if found else (name, [])


def _grown(fields: dict[str, Any], base: str, kind: type, name: str) -> Any:
    value = fields.setdefault(base, kind())
    if not isinstance(value, kind):
        raise _unread(base, name)
    return value


def _entries(base: str, columns: dict[str, list[str]]) -> list[dict[str, str]]:
    count = max(map(len, columns.values()))
    for key, values in columns.items():
        if len(values) < count:
            raise InvalidRequest(
                f"{base}: {len(values)} of {count} entries have {key}, and a form does not say"
                f" which; send {base} as JSON text",
                base,
            )
    return [{key: values[index] for key, values in columns.items()} for index in range(count)]


def _unread(base: str, name: str) -> InvalidRequest:
    return InvalidRequest(f"{base}: {name} is not read here; send {base} as JSON text", base)
