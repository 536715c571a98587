"""Where a request wants its pictures: in the answer, or in object storage below a prefix that the
settings allow."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from atelier.errors import InvalidRequest, shown
from atelier.settings import Settings
from atelier.settings.values import object_prefix

INLINE: Literal["inline"] = "inline"
MOST_CHARACTERS = 1000


class ObjectTarget(BaseModel):
    """`{"s3": "s3://bucket/prefix"}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    s3: Annotated[str, AfterValidator(object_prefix)] = Field(
        max_length=MOST_CHARACTERS, description="s3://bucket/prefix, within ALLOWED_OUTPUTS."
    )


def _from_text(value: Any) -> Any:
    """Forms and v2 parameters have only text; an object in it is JSON."""
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not a JSON object: {error}") from None


# Written out: the OpenAPI document has no place for definitions inside a body's schema.
SCHEMA = {
    "anyOf": [
        {"type": "string", "enum": [INLINE]},
        {
            "type": "object",
            "required": ["s3"],
            "properties": {
                "s3": {"type": "string", "pattern": "^s3://", "maxLength": MOST_CHARACTERS}
            },
            "additionalProperties": False,
        },
    ]
}

Output = Annotated[
    Literal["inline"] | ObjectTarget, BeforeValidator(_from_text), WithJsonSchema(SCHEMA)
]


def destination(output: Literal["inline"] | ObjectTarget | None, settings: Settings) -> str | None:
    """The prefix to store pictures below; None if the answer holds them."""
    if isinstance(output, ObjectTarget):
        return output.s3
    return None if output == INLINE else settings.output_url or None


def check_destination(
    output: Literal["inline"] | ObjectTarget | None, settings: Settings, where: str
) -> None:
    """See that a request names no destination but those that the settings allow.

    Raises:
        InvalidRequest: it does.
    """
    if not isinstance(output, ObjectTarget):
        return
    allowed = [*settings.allowed_outputs, *([settings.output_url] if settings.output_url else [])]
    if not any(output.s3 == one or output.s3.startswith(f"{one}/") for one in allowed):
        remedy = (
            "name a place below one that ALLOWED_OUTPUTS lists, or leave it out"
            if allowed
            else "this server stores pictures nowhere (ALLOWED_OUTPUTS is empty); leave it out"
        )
        raise InvalidRequest(f"{where}: {shown(output.s3)} is not allowed here: {remedy}", where)
