"""`highres` as a request writes it."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema


class HighRes(BaseModel):
    """A second pass at a larger size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: float = Field(2.0, gt=1, le=4, description="Of width and height.")
    strength: float = Field(
        0.5, gt=0, le=1, description="Share of the steps that the second pass runs."
    )


def object_from_text(value: Any) -> Any:
    """Tensors and forms have only text; an object in it is JSON."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not a JSON object: {error}") from None


def _of_few_entries(value: Any) -> Any:
    """Each of many entries would be a fault of its own, which takes time to tell."""
    if isinstance(value, dict) and len(value) > len(HighRes.model_fields):
        raise ValueError(f"{len(value)} entries; it has {', '.join(HighRes.model_fields)}")
    return value


HighResField = Annotated[
    HighRes | None,
    BeforeValidator(_of_few_entries),
    BeforeValidator(object_from_text),
    WithJsonSchema({"anyOf": [HighRes.model_json_schema(), {"type": "null"}]}),
]
"""Its schema is written out: bodies are parts of a document, in which a reference leads nowhere."""
