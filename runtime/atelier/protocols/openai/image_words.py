"""Values of the images routes that are one of a few words, or a size, in the spellings that clients
have for them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from atelier.images.request import format_word

QUALITY: dict[str, float] = {
    "low": 0.5,
    "auto": 1.0,
    "standard": 1.0,
    "medium": 1.0,
    "high": 1.5,
    "hd": 1.5,
    "xhigh": 2.0,
    "max": 3.0,
}
"""Steps for each `quality`, as a multiple of the pipeline's default number of steps; never above
MAX_STEPS."""

SIZE_SIGN = re.compile(r"\s*[x\xd7*]\s*")


def _word(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _format_name(value: Any) -> Any:
    return _word(format_word(value))


def _size(value: Any) -> Any:
    """`512 X 512`, a multiplication sign and `512*512` are other ways to write it."""
    return SIZE_SIGN.sub("x", _word(value)) if isinstance(value, str) else value


SizeText = Annotated[str, BeforeValidator(_size)]
Quality = Annotated[
    Literal["low", "auto", "standard", "medium", "high", "hd", "xhigh", "max"],
    BeforeValidator(_word),
]
AnswerForm = Annotated[Literal["b64_json", "url"], BeforeValidator(_word)]
FormatName = Annotated[Literal["png", "jpeg", "webp"], BeforeValidator(_format_name)]
Background = Annotated[Literal["auto", "opaque", "transparent"], BeforeValidator(_word)]
