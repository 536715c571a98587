"""The pictures inside `control` and `image_prompt`, which every protocol sends as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from atelier.bounds import MAX_CONTROLS
from atelier.errors import InvalidRequest, shown
from atelier.protocols.http.remote import picture_bytes, picture_text
from atelier.settings import Settings

CONTROL_FIELDS = ("control", "image_prompt")


def with_control_pictures(
    fields: Mapping[str, Any], where: str, settings: Settings
) -> dict[str, Any]:
    """The fields with the pictures of control entries as bytes; the rest as it is. Blocks, where a
    picture is fetched.

    Args:
        where: prefix of field names in messages, such as `instances[2].`.

    Raises:
        InvalidRequest: an entry is no object, or its picture is none.
    """
    read = {
        name: _entries(f"{where}{name}", fields[name], settings)
        for name in CONTROL_FIELDS
        if fields.get(name) not in (None, "")
    }
    return {**fields, **read}


def _entries(where: str, value: Any, settings: Settings) -> list[dict[str, Any]]:
    """Forms and v2 have only text; what is in it is JSON. One entry needs no list."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"{where}: {shown(value)} is not JSON: {error}", where) from None
    entries = value if isinstance(value, list) else [value]
    if len(entries) > MAX_CONTROLS:
        raise InvalidRequest(f"{where}: {len(entries)} entries; at most {MAX_CONTROLS}", where)
    return [_entry(f"{where}.{place}", entry, settings) for place, entry in enumerate(entries)]


def _entry(where: str, entry: Any, settings: Settings) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise InvalidRequest(
            f'{where}: {shown(entry)} is not an object such as {{"name": ..., "image": ...}}', where
        )
    if "image" not in entry:
        return entry
    picture = picture_text(entry["image"])
    if not isinstance(picture, str):
        raise InvalidRequest(
            f"{where}.image: {shown(picture)} is not a picture as base64 text", f"{where}.image"
        )
    return entry | {"image": picture_bytes(picture, f"{where}.image", settings)}
