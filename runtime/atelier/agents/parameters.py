"""The parameters of the tools: types, limits, and words that an assistant understands."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Prompt = Annotated[
    str,
    Field(
        min_length=1,
        max_length=20_000,
        description="What the picture shows: subject, setting, composition, light, style.",
    ),
]
Model = Annotated[
    str | None, Field(description="A name from list_models; leave out for the endpoint's own.")
]
Negative = Annotated[str | None, Field(description="What the picture should not show.")]
Size = Annotated[
    str | None,
    Field(
        pattern=r"^[0-9]{1,5}x[0-9]{1,5}$",
        description="WIDTHxHEIGHT in pixels, such as 1024x1024; leave out for the model's own.",
    ),
]
Steps = Annotated[
    int | None, Field(ge=1, description="Denoising steps: more is slower and often finer.")
]
Guidance = Annotated[
    float | None, Field(ge=0, le=100, description="How strictly the prompt is followed.")
]
Seed = Annotated[
    int | None,
    Field(
        ge=0,
        le=2**63 - 1,
        description="The same seed with the same arguments draws the same picture.",
    ),
]
Count = Annotated[int, Field(ge=1, le=8, description="Pictures to draw; they differ in seed.")]
Adapters = Annotated[
    dict[str, float] | None,
    Field(description="Style or subject adapters (LoRA) of describe_model, name to weight."),
]
FileFormat = Annotated[Literal["png", "jpeg", "webp"], Field(description="Of the kept picture.")]
Reference = Annotated[
    str,
    Field(
        min_length=1,
        description="A picture's name, resource URI or URL from an earlier answer, or base64.",
    ),
]
Mask = Annotated[
    str | None,
    Field(description="PNG as large as the picture, transparent where it may change; as image."),
]
Strength = Annotated[
    float | None,
    Field(gt=0, le=1, description="How far the result may leave the picture, without a mask."),
]
