"""The parameters of the tools: types, limits, and words that an assistant understands; and their
translation into the fields of a request."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from atelier.bounds import MAX_CONTROLS

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
Times = Annotated[
    Literal[2, 4] | None,
    Field(description="How many times larger an upscaler makes what was drawn: 2 or 4."),
]
Upscaler = Annotated[
    str | None, Field(description="Which of describe_model's upscalers; leave out if one fits.")
]


class GuidePicture(BaseModel):
    """A picture to draw by: by its look."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="A name of describe_model.")
    image: Reference
    weight: float = Field(1.0, ge=0, le=10, description="How much it counts; 0: not at all.")

    def fields(self, picture: bytes) -> dict[str, Any]:
        """As a request has it."""
        said = self.model_dump(exclude_unset=True)
        return said | {"image": base64.b64encode(picture).decode()}


class ControlPicture(GuidePicture):
    """A picture to draw by: by where things lie."""

    preprocess: Literal["canny", "blur", "tile"] | None = Field(
        None,
        description="What is made of the picture first: canny finds its edges. Leave out where the"
        " picture is already what the control reads.",
    )
    start: float = Field(0.0, ge=0, lt=1, description="Share of the steps before it begins.")
    end: float = Field(1.0, gt=0, le=1, description="Share of the steps at which it ends.")


Controls = Annotated[
    list[ControlPicture] | None,
    Field(
        max_length=MAX_CONTROLS,
        description="Pictures that say where things lie, for the controls of describe_model.",
    ),
]
ImagePrompts = Annotated[
    list[GuidePicture] | None,
    Field(
        max_length=MAX_CONTROLS,
        description="Pictures that say what it looks like, for describe_model's image_prompts.",
    ),
]


def drawing_fields(
    prompt: str,
    negative_prompt: str | None,
    model: str | None,
    size: str | None,
    steps: int | None,
    guidance_scale: float | None,
    seed: int | None,
    count: int,
    adapters: dict[str, float] | None,
    file_format: str,
    **further: Any,
) -> dict[str, Any]:
    """The arguments of a tool in OpenAI's names, `further` ones as they are; only what was said,
    for endpoints refuse what they do not know."""
    named = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "model": model,
        "size": size,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "n": count if count > 1 else None,
        "lora": adapters,
        "output_format": file_format if file_format != "png" else None,
    }
    return {name: value for name, value in (named | further).items() if value is not None}
