"""The one request type for pictures. Every protocol translates into it; a new field is added here
and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from atelier.bounds import MAX_ENTRIES, MAX_FORM_FIELDS, MAX_INPUT_PICTURES, MAX_PICTURE_TEXT
from atelier.errors import InvalidRequest, shown
from atelier.images.argument_types import from_text
from atelier.images.control_request import ControlList, ImagePromptList
from atelier.images.destination import Output, check_destination
from atelier.images.highres import HighResField, object_from_text
from atelier.settings import Settings

Format = Literal["PNG", "JPEG", "WEBP"]

StepCacheBound = Literal["off", "low", "medium", "high"] | Annotated[float, Field(ge=0, lt=1)]

Times = Annotated[Literal[2, 4], BeforeValidator(lambda value: int(value)
                                                if value in ("2", "4") else value)]  # fmt: skip
"""Forms send numbers as text."""

Weights = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]],
    BeforeValidator(object_from_text),
]

PROMPTS = re.compile(r"(negative_)?prompt(_\d)?")
"""Fields whose empty text says something."""

MAX_SEED = 2**63 - 1
SCHEDULES = ("sigmas", "timesteps")
"""Lists with an entry a step, which stand for num_inference_steps."""


def format_word(value: Any) -> Any:
    """A format's name as `Format` has it: any case, `jpg`, a media type."""
    if not isinstance(value, str):
        return value
    upper = value.strip().upper().removeprefix("IMAGE/").removeprefix(".")
    return "JPEG" if upper == "JPG" else upper


def without_empties(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say something: forms and libraries send null and empty text for what their
    user left out."""
    return {
        name: value
        for name, value in fields.items()
        if value is not None and (value != "" or PROMPTS.fullmatch(name))
    }


def _drawn(value: Any) -> Any:
    """Many clients say -1 where they mean that any seed will do."""
    return None if value in (-1, "-1") and not isinstance(value, bool) else value


class ImageRequest(BaseModel):
    """What one caller asks for: one prompt, `num_images_per_prompt` pictures.

    `None` means that the pipeline's own default applies. Fields beyond those below are kept in
    `model_extra` and are passed to the pipeline by name if its signature has them.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    prompt: str = Field(max_length=MAX_PICTURE_TEXT)
    negative_prompt: str | None = Field(None, max_length=MAX_PICTURE_TEXT)
    prompt_syntax: Literal["plain", "weighted"] | None = Field(
        None,
        description="weighted reads (word:1.3) and (a, b)0.8, and prompts of any length.",
    )
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=0, le=100)
    width: int | None = Field(None, ge=8, description="Pixels.")
    height: int | None = Field(None, ge=8, description="Pixels.")
    seed: Annotated[int | None, BeforeValidator(_drawn)] = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="Drawn at random if missing or -1; always returned.",
    )
    num_images_per_prompt: int = Field(1, ge=1)
    scheduler: str | None = Field(
        None, max_length=100, description="diffusers scheduler class, for this request only."
    )
    clip_skip: int | None = Field(None, ge=1, le=11)
    max_sequence_length: int | None = Field(None, ge=1, le=4096, description="Text tokens.")
    image: list[bytes] | None = Field(
        None,
        min_length=1,
        max_length=MAX_INPUT_PICTURES,
        description="Encoded input pictures.",
    )
    mask_image: bytes | None = Field(None, description="Encoded mask: white is repainted.")
    strength: float | None = Field(
        None, gt=0, le=1, description="Share of the steps that image-to-image runs."
    )
    lora: Weights | None = Field(
        None,
        max_length=MAX_ENTRIES,
        description="Adapter name to weight; missing: DEFAULT_LORA.",
    )
    control: ControlList | None = Field(
        None, description="Pictures that ControlNets or T2I-Adapters draw by."
    )
    image_prompt: ImagePromptList | None = Field(
        None, description="Pictures that IP-Adapters draw by."
    )
    highres: HighResField = Field(
        None, description="Draw the picture once more, larger, from what was drawn."
    )
    task: Literal["draw", "upscale"] = Field(
        "draw", description="upscale enlarges the picture in image and draws nothing."
    )
    upscale: Times | None = Field(
        None, description="How many times larger a network of UPSCALERS makes the picture."
    )
    upscaler: str | None = Field(
        None, max_length=100, description="Which of several; missing: the one that fits."
    )
    step_cache: StepCacheBound | None = Field(
        None,
        description=(
            "Answer denoiser steps from the last ones while the estimated error is below this"
            " bound: off, low, medium, high or a number; missing: STEP_CACHE."
        ),
    )
    previews: int = Field(
        0,
        ge=0,
        le=8,
        description="Unfinished pictures wanted on the way, where the protocol shows them.",
    )
    format: Annotated[Format, BeforeValidator(format_word)] = "PNG"
    compression: int | None = Field(
        None, ge=0, le=100, description="Quality of JPEG and WebP, 100 best."
    )
    output: Output | None = Field(
        None,
        description=(
            'Where pictures go: {"s3": "s3://bucket/prefix"}, which the answer has URLs of, or'
            " inline; missing: OUTPUT_URL."
        ),
    )
    timeout: float | None = Field(
        None, gt=0, description="Seconds until the request is dropped; REQUEST_TIMEOUT caps it."
    )

    @property
    def extra(self) -> dict[str, Any]:
        """Arguments meant for the pipeline itself."""
        return dict(self.model_extra or {})

    @property
    def has_pictures(self) -> bool:
        """Whether pictures have to be decoded before it can be drawn."""
        return bool(self.image or self.control or self.image_prompt)

    @classmethod
    def parse(cls, fields: dict[str, Any], settings: Settings, where: str = "") -> ImageRequest:
        """Check `fields` against this class and the server's limits. Null is absent, and so is
        empty text that is no prompt.

        Args:
            where: prefix of field names in messages, such as `instances[2].`.

        Raises:
            InvalidRequest: names the field, the value and what is allowed.
        """
        fields = without_empties(fields)
        if fields.get("task") == "upscale":  # nothing is drawn: no prompt is needed
            fields = {"prompt": ""} | fields
        lists = {name: _numbers(fields[name]) for name in SCHEDULES if name in fields}
        try:
            request = cls.model_validate(fields | lists)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            name = where + ".".join(str(part) for part in fault["loc"])
            raise InvalidRequest(f"{name}: {_sentence(fault)}", field=name) from None
        request._check_limits(settings, where)
        return request

    def _check_limits(self, settings: Settings, where: str) -> None:
        for name, value in self.extra.items():
            _check_extra(f"{where}{name}", name, value, settings)
        check_destination(self.output, settings, f"{where}output")
        if (self.num_inference_steps or 0) > settings.max_steps:
            name = f"{where}num_inference_steps"
            raise InvalidRequest(
                f"{name}: {self.num_inference_steps} is above MAX_STEPS={settings.max_steps}", name
            )
        if self.num_images_per_prompt > settings.max_images_per_request:
            name = f"{where}num_images_per_prompt"
            limit = settings.max_images_per_request
            raise InvalidRequest(
                f"{name}: {self.num_images_per_prompt} is above MAX_IMAGES_PER_REQUEST={limit}",
                name,
            )
        if self.mask_image is not None and self.image is None:
            raise InvalidRequest(
                f"{where}mask_image needs {where}image: the picture to repaint",
                f"{where}mask_image",
            )
        pixels = (self.width or 8) * (self.height or 8)
        if pixels > settings.max_pixels and settings.size_fallback == "refuse":
            raise InvalidRequest(
                f"{where}width: {self.width} x {self.height} pixels are above"
                f" MAX_PIXELS={settings.max_pixels}",
                f"{where}width",
            )


def _numbers(value: Any) -> Any:
    """A list of numbers that a form has as text, whole or entry by entry; anything else as it
    is."""
    if isinstance(value, str) and len(value) <= MAX_PICTURE_TEXT:
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    if isinstance(value, list) and len(value) <= MAX_FORM_FIELDS:
        return [from_text(one, ("int", "float")) for one in value]
    return value


def _check_extra(where: str, name: str, value: Any, settings: Settings) -> None:
    """Bound a pipeline's own argument before anything is done with it."""
    if "prompt" in name and not isinstance(value, str):
        raise InvalidRequest(f"{where}: {shown(value)} is not text", where)
    if isinstance(value, str) and len(value) > MAX_PICTURE_TEXT:
        raise InvalidRequest(f"{where}: {len(value)} characters; at most {MAX_PICTURE_TEXT}", where)
    if name in SCHEDULES:
        numbers = isinstance(value, list) and all(type(one) in (int, float) for one in value)
        if not numbers or not value:
            raise InvalidRequest(f"{where}: {shown(value)} is not a list of numbers", where)
        if len(value) > settings.max_steps:
            raise InvalidRequest(
                f"{where}: {len(value)} steps are above MAX_STEPS={settings.max_steps}", where
            )
    elif isinstance(value, list | dict) and len(value) > MAX_ENTRIES:
        raise InvalidRequest(f"{where}: {len(value)} entries; at most {MAX_ENTRIES}", where)


def _sentence(fault: Any) -> str:
    if fault["type"] == "missing":
        return "is missing"
    return f"{shown(fault['input'])} is not valid: {fault['msg']}"
