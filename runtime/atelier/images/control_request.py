"""Pictures that a request draws by: `control` says where things lie, `image_prompt` what they look
like."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, WithJsonSchema, field_validator

from atelier.bounds import MAX_CONTROLS

MOST_WEIGHT = 10

Preprocess = Literal["canny", "blur", "tile"]


class Control(BaseModel):
    """One entry of `control`: a picture for the ControlNet or T2I-Adapter of that name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(max_length=200, description="As in CONTROLNETS.")
    image: bytes = Field(min_length=1, description="Encoded picture of what the control reads.")
    weight: float = Field(1.0, ge=0, le=MOST_WEIGHT, allow_inf_nan=False)
    start: float = Field(0.0, ge=0, lt=1, description="Share of the steps before it begins.")
    end: float = Field(1.0, gt=0, le=1, description="Share of the steps at which it ends.")
    preprocess: Preprocess | None = Field(
        None, description="What is made of the picture first: edges, a blur, or coarse tiles."
    )

    @field_validator("end")
    @classmethod
    def _behind_start(cls, end: float, info: ValidationInfo) -> float:
        start: Any = info.data.get("start", 0.0)
        if end <= start:
            raise ValueError(f"it must be above start, which is {start:g}")
        return end


class ImagePrompt(BaseModel):
    """One entry of `image_prompt`: a picture for the IP-Adapter of that name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(max_length=200, description="As in IP_ADAPTERS.")
    image: bytes = Field(min_length=1, description="Encoded picture.")
    weight: float = Field(1.0, ge=0, le=MOST_WEIGHT, allow_inf_nan=False)


def _schema(**further: Any) -> dict[str, Any]:
    """Written out: the OpenAPI document has no place for definitions inside a body's schema."""
    entry = {
        "name": {"type": "string"},
        "image": {"type": "string", "description": "Base64 text or a data URL."},
        "weight": {"type": "number", "minimum": 0, "maximum": MOST_WEIGHT},
    }
    item = {"type": "object", "required": ["name", "image"], "properties": entry | further}
    return {
        "type": "array",
        "maxItems": MAX_CONTROLS,
        "items": item | {"additionalProperties": False},
    }


CONTROL_SCHEMA = _schema(
    start={"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    end={"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    preprocess={"type": "string", "enum": list(get_args(Preprocess))},
)
IMAGE_PROMPT_SCHEMA = _schema()

ControlList = Annotated[
    list[Control], Field(max_length=MAX_CONTROLS), WithJsonSchema(CONTROL_SCHEMA)
]
ImagePromptList = Annotated[
    list[ImagePrompt], Field(max_length=MAX_CONTROLS), WithJsonSchema(IMAGE_PROMPT_SCHEMA)
]
RawControls = Annotated[Any, WithJsonSchema(CONTROL_SCHEMA)]
RawImagePrompts = Annotated[Any, WithJsonSchema(IMAGE_PROMPT_SCHEMA)]
"""The same as protocols have them before the pictures are decoded."""
