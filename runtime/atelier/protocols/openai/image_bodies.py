"""Bodies of the OpenAI images routes: their fields, checked, and their translation into an
ImageRequest.

Fields beyond those below go to the ImageRequest by name, and from there to the pipeline, which
refuses what it does not know.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from atelier.errors import InvalidRequest, shown
from atelier.images import codec
from atelier.images.control_request import RawControls, RawImagePrompts
from atelier.images.destination import INLINE, Output, destination
from atelier.images.highres import HighResField, object_from_text
from atelier.images.request import (
    MAX_SEED,
    ImageRequest,
    StepCacheBound,
    Times,
    without_empties,
)
from atelier.images.service import PictureService
from atelier.protocols.control_pictures import with_control_pictures
from atelier.protocols.http.models import check_name
from atelier.protocols.openai.idle_fields import without_effect
from atelier.protocols.openai.image_words import (
    QUALITY,
    AnswerForm,
    Background,
    FormatName,
    Quality,
    SizeText,
)
from atelier.settings import Settings

RENAMED = {
    "num_images_per_prompt": "n",
    "format": "output_format",
    "compression": "output_compression",
    "mask_image": "mask",
    "previews": "partial_images",
}
"""Fields of an ImageRequest that have another name here."""

REFUSED = {
    "frame_count": "answers are still pictures; leave it out",
    "frame_duration_ms": "answers are still pictures; leave it out",
    "svg": "answers are png, jpeg or webp; leave it out",
    "markup": "there is no such overlay here; draw into the picture itself, or send a mask",
}
"""Fields of OpenAI's that would change the answer but are not offered, with the remedy."""

WITHOUT_EFFECT = ("moderation", "input_fidelity", "style", "complexity")
"""Fields of OpenAI's that clients send and nothing here does; the answer says so."""


class ImagesBody(BaseModel):
    """What all three routes take. `null` is the same as leaving a field out."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field("", max_length=20_000)
    model: str | None = Field(None, description="The served model's name.")
    n: int | None = Field(None, ge=1, description="Number of pictures; picture i has seed + i.")
    size: SizeText | None = Field(
        None, pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$", description="WIDTHxHEIGHT, or auto."
    )
    quality: Quality | None = Field(
        None, description="Steps, as a multiple of the model's default."
    )
    response_format: AnswerForm | None = Field(None, description="Default: b64_json.")
    output_format: FormatName | None = Field(None, description="Default: png.")
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality of jpeg and webp."
    )
    background: Background | None = None
    user: str | None = Field(None, description="Written into the log, otherwise ignored.")
    safety_identifier: str | None = Field(None, description="The same as user.")
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    partial_images: int | None = Field(
        None, ge=0, le=3, description="Previews sent while streaming."
    )
    seed: int | None = Field(None, ge=-1, le=MAX_SEED, description="-1: drawn at random.")
    moderation: str | None = Field(None, max_length=1000, description="No effect here.")
    input_fidelity: str | None = Field(None, max_length=1000, description="No effect here.")
    style: str | None = Field(None, max_length=1000, description="No effect here.")
    complexity: str | None = Field(None, max_length=1000, description="No effect here.")
    num_inference_steps: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1, description="The same as num_inference_steps.")
    guidance_scale: float | None = Field(None, ge=0, le=100)
    guidance: float | None = Field(None, ge=0, le=100, description="The same as guidance_scale.")
    negative_prompt: str | None = None
    width: int | None = Field(None, ge=8, description="Instead of size.")
    height: int | None = Field(None, ge=8, description="Instead of size.")
    lora: dict[str, float] | None = Field(None, description="Adapter name to weight.")
    control: RawControls = Field(None, description="Pictures that ControlNets draw by.")
    image_prompt: RawImagePrompts = Field(None, description="Pictures that IP-Adapters draw by.")
    highres: HighResField = Field(None, description="A second pass at a larger size.")
    upscale: Times | None = Field(None, description="Times larger: 2 or 4.")
    upscaler: str | None = Field(None, max_length=100, description="Which of several.")
    step_cache: StepCacheBound | None = Field(
        None, description="Error bound of skipped steps: off, low, medium, high or a number."
    )
    output: Output | None = Field(
        None, description="Object storage that pictures go to, or inline; missing: OUTPUT_URL."
    )
    timeout: float | None = Field(None, gt=0, description="Seconds until the request is dropped.")

    @field_validator("lora", mode="before")
    @classmethod
    def _from_form(cls, value: Any) -> Any:
        return object_from_text(value)


class GenerationBody(ImagesBody):
    """`POST /v1/images/generations`."""

    prompt: str = Field(max_length=20_000)


class EditBody(ImagesBody):
    """`POST /v1/images/edits`, without the pictures."""

    prompt: str = Field(max_length=20_000)


class VariationBody(ImagesBody):
    """`POST /v1/images/variations`, without the picture. A prompt may say what to vary; OpenAI has
    none here."""


Body = TypeVar("Body", bound=BaseModel)


def check(cls: type[Body], fields: dict[str, Any]) -> Body:
    """`fields` as a body of class `cls`; null is absent, and so is empty text that is no prompt.

    Raises:
        InvalidRequest: names the field, the value and what is allowed.
    """
    fields = without_empties(fields)
    for name, here in RENAMED.items():
        if name in fields:
            raise InvalidRequest(
                f"{name}: this field is called {here} in the OpenAI protocol", name
            )
    for name, remedy in REFUSED.items():
        if name in fields:
            raise InvalidRequest(f"{name} is not offered here: {remedy}", name)
    try:
        return cls.model_validate(fields)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = ".".join(map(str, fault["loc"]))
        what = (
            "is missing"
            if fault["type"] == "missing"
            else f"{shown(fault['input'])} is not valid: {fault['msg']}"
        )
        raise InvalidRequest(f"{name}: {what}", name) from None


@dataclass(frozen=True)
class ImagesCall:
    """A checked call: the request for the engine, and what only the answer needs."""

    request: ImageRequest
    as_url: bool
    stream: bool
    quality: str
    background: str
    output_format: str
    warnings: tuple[str, ...] = ()


def translate(
    body: ImagesBody,
    pictures: list[bytes],
    mask: bytes | None,
    model: PictureService,
    settings: Settings,
) -> ImagesCall:
    """What the body asks for, in this server's terms. Decodes pictures; for a worker thread.

    Raises:
        ModelUnknown, NotReady: the body means another model, or this one is still loading.
        InvalidRequest: a value is not allowed, contradicts another one, or is beyond what the model
            can do.
    """
    if body.model is not None:
        check_name(model, body.model)
    model.check_ready()
    fields: dict[str, Any] = {
        key: value for key, value in (body.model_extra or {}).items() if value is not None
    }
    fields |= {"prompt": body.prompt, "negative_prompt": body.negative_prompt, "seed": body.seed}
    fields |= {"lora": body.lora, "step_cache": body.step_cache, "highres": body.highres}
    fields |= {"upscale": body.upscale, "upscaler": body.upscaler}
    fields |= {"timeout": body.timeout, "num_images_per_prompt": body.n or 1}
    fields |= _size(body)
    fields["num_inference_steps"] = _one_of(body, "num_inference_steps", "steps") or _steps(
        body.quality, model, settings
    )
    fields["guidance_scale"] = _one_of(body, "guidance_scale", "guidance")
    fields |= {"format": body.output_format or "png", "compression": _compression(body)}
    fields["previews"] = (body.partial_images or 0) if body.stream else 0
    _check_background(body, model)
    fields["output"] = _output(body)
    stored = destination(fields["output"], settings) is not None
    if body.stream and body.response_format == "url" and not stored:
        raise InvalidRequest(
            "response_format: a stream carries its pictures; leave it out or send b64_json",
            "response_format",
        )
    beside = {"control": body.control, "image_prompt": body.image_prompt}
    fields |= with_control_pictures(beside, "", settings)
    if pictures:
        fields["image"] = pictures
    if mask is not None:
        fields["mask_image"] = codec.mask_from_alpha(mask, pictures[0], settings.max_pixels, "mask")
    return ImagesCall(
        request=ImageRequest.parse(fields, settings),
        as_url=body.response_format == "url",
        stream=bool(body.stream),
        quality=body.quality or "auto",
        background=body.background or "auto",
        output_format=body.output_format or "png",
        warnings=tuple(
            without_effect(name) for name in WITHOUT_EFFECT if getattr(body, name) is not None
        ),
    )


def _output(body: ImagesBody) -> Any:
    """Whoever asks for the pictures as text gets them, whatever OUTPUT_URL says."""
    if body.response_format != "b64_json":
        return body.output
    if body.output not in (None, INLINE):
        raise InvalidRequest(
            "output: response_format asks for the pictures themselves; leave one of them out",
            "output",
        )
    return INLINE


def _one_of(body: ImagesBody, name: str, alias: str) -> Any:
    value, other = getattr(body, name), getattr(body, alias)
    if value is not None and other is not None:
        raise InvalidRequest(f"{alias}: it is another name of {name}; send one of them", alias)
    return other if value is None else value


def _size(body: ImagesBody) -> dict[str, int | None]:
    """Width and height from `size`, or from their own fields; None leaves them to the model."""
    if body.size in (None, "auto"):
        return {"width": body.width, "height": body.height}
    if body.width is not None or body.height is not None:
        raise InvalidRequest(
            f"size: it is {body.size}, and width or height is there too; send one of them", "size"
        )
    width, height = map(int, re.findall(r"[0-9]+", body.size or ""))
    return {"width": width, "height": height}


def _steps(quality: str | None, model: PictureService, settings: Settings) -> int | None:
    """Steps for a quality; None leaves them to the pipeline."""
    share = QUALITY[quality or "auto"]
    if share == 1:
        return None
    default = model.default_steps
    if default is None:
        raise InvalidRequest(
            f"quality: {shown(quality)}: this model has no number of steps to change", "quality"
        )
    return min(settings.max_steps, max(1, math.ceil(default * share)))


def _compression(body: ImagesBody) -> int | None:
    if (
        body.output_compression is not None
        and body.output_compression < 100
        and body.output_format in (None, "png")
    ):
        raise InvalidRequest(
            "output_compression: png loses nothing; ask for output_format jpeg or webp",
            "output_compression",
        )
    return body.output_compression


def _check_background(body: ImagesBody, model: PictureService) -> None:
    if body.background == "transparent" and not model.gives_alpha:
        raise InvalidRequest(
            "background: this model draws no transparency; send auto or opaque", "background"
        )
    if body.background == "transparent" and body.output_format == "jpeg":
        raise InvalidRequest(
            "background: jpeg has no transparency; ask for output_format png or webp", "background"
        )
    if body.background == "opaque" and model.gives_alpha and body.output_format != "jpeg":
        raise InvalidRequest(
            "background: this model draws transparency; for opaque ask for output_format jpeg",
            "background",
        )
