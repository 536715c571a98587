"""The fields and pictures of an OpenAI images body, whether it is JSON or a form."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile

from atelier.bounds import MAX_FORM_FIELDS, MAX_INPUT_PICTURES, MAX_PICTURE_VALUES
from atelier.errors import InvalidRequest, shown
from atelier.images.unread import MAGIC
from atelier.protocols.http.bodies import json_object
from atelier.protocols.http.pools import reading
from atelier.protocols.http.remote import picture_bytes, picture_text
from atelier.protocols.openai.form_fields import nested
from atelier.settings import Settings

IMAGE_NAMES = ("image", "images")
INDEX = re.compile(r"\[\d*\]$")
"""`image[]` and `image[0]` are other spellings of `image`."""

MAX_FILES = MAX_INPUT_PICTURES + 1
"""And a mask."""

NOTHING = ("null", "undefined")
"""What JavaScript makes of a value that there is not, as the text of a field."""

JSON_START = re.compile(rb"(\xef\xbb\xbf)?\s*\{")

FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


@dataclass
class Upload:
    """Scalar fields as sent, and encoded pictures."""

    fields: dict[str, Any]
    pictures: list[bytes] = field(default_factory=list)
    mask: bytes | None = None


async def read(request: Request, settings: Settings) -> Upload:
    """Read the body, whatever its form.

    Raises:
        InvalidRequest: not JSON, not an object, or a picture that cannot be read.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    # `curl -d` calls whatever it sends a form
    plain = kind == FORMS[1] and JSON_START.match(await request.body()) is not None
    if kind in FORMS and not plain:
        fields, pictures, masks = await _form(request, kind, settings)
    else:
        fields = json_object(await request.body(), MAX_PICTURE_VALUES)
        fields = {INDEX.sub("", name): value for name, value in fields.items()}
        pictures = [value for name in IMAGE_NAMES for value in _many(fields.pop(name, None))]
        masks = _many(fields.pop("mask", None))
    if len(pictures) >= MAX_FILES:
        raise InvalidRequest(
            f"image: {len(pictures)} pictures; at most {MAX_FILES - 1} are taken", "image"
        )
    if len(masks) > 1:
        raise InvalidRequest("mask: one mask is enough for all pictures", "mask")
    decoded = await reading(_decode_all, pictures, "image", settings)
    mask = await reading(_decode_all, masks, "mask", settings)
    return Upload(fields, decoded, mask[0] if mask else None)


async def _form(
    request: Request, kind: str, settings: Settings
) -> tuple[dict[str, Any], list[Any], list[Any]]:
    items: list[tuple[str, str]] = []
    pictures: list[Any] = []
    masks: list[Any] = []
    async with request.form(
        max_files=MAX_FILES, max_fields=MAX_FORM_FIELDS, max_part_size=settings.max_body_bytes
    ) as form:
        for name, value in form.multi_items():
            content = await value.read() if isinstance(value, UploadFile) else value
            plain = INDEX.sub("", name)
            if isinstance(value, UploadFile) and value.filename and not content:
                raise InvalidRequest(f"{name}: the file {shown(value.filename)} is empty", name)
            if not content or (content in NOTHING and plain != "prompt"):
                continue
            if plain in (*IMAGE_NAMES, "mask"):
                (masks if plain == "mask" else pictures).append(_picture(content, kind))
            elif isinstance(content, bytes):
                raise InvalidRequest(
                    f"{name}: this field is not a file; pictures are called image, image[] or"
                    " images, a mask is called mask",
                    name,
                )
            else:
                items.append((name, content))
    return nested(items), pictures, masks


def _picture(content: str | bytes, kind: str) -> str | bytes:
    """A picture of a form: the bytes of a part that has no file name, or base64 whose plus signs
    were not percent-encoded."""
    if isinstance(content, bytes):
        return content
    if kind == FORMS[1]:
        return content.replace(" ", "+")
    try:
        raw = content.encode("latin-1")  # how a part is read that is no UTF-8
    except UnicodeEncodeError:
        return content
    return raw if raw.startswith(MAGIC) else content


def _many(value: Any) -> list[Any]:
    """The pictures that there are: null, and what is empty, is none."""
    many = value if isinstance(value, list) else [value]
    return [one for one in many if (any(one.values()) if isinstance(one, dict) else one)]


def _decode_all(values: list[Any], where: str, settings: Settings) -> list[bytes]:
    """Each picture from a file, from base64 text, or from OpenAI's `{"image_url": "data:..."}`."""
    decoded = []
    for value in values:
        text = picture_text(value)
        if isinstance(text, bytes):
            decoded.append(text)
        elif isinstance(text, str):
            decoded.append(picture_bytes(text, where, settings))
        else:
            raise InvalidRequest(
                f"{where}: {shown(value)}: a picture is an upload, base64 text or an object with"
                " image_url",
                where,
            )
    return decoded
