"""The parameters of a picture: what the form says, what the request sends, what the file keeps."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, PngImagePlugin, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atelier.errors import InvalidRequest

CHUNK = "atelier"
"""The PNG text entry that holds the parameters, as JSON."""

MAX_PIXELS = 64 * 2**20
TOO_LARGE = Image.DecompressionBombError


class PictureParameters(BaseModel):
    """What draws a picture again. None: the model's own. Of an edit, its picture and mask are not
    kept, and no pictures that it was drawn by."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str = Field(default="", max_length=500)
    prompt: str = Field(default="", max_length=20_000)
    negative_prompt: str | None = Field(default=None, max_length=20_000)
    num_inference_steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = Field(default=None, ge=0, le=100)
    width: int | None = Field(default=None, ge=8)
    height: int | None = Field(default=None, ge=8)
    upscale: int | None = Field(default=None, ge=2, le=4)
    upscaler: str | None = Field(default=None, max_length=100)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    scheduler: str | None = Field(default=None, max_length=200)
    lora: dict[str, float] | None = None
    step_cache: str | None = Field(default=None, max_length=20)
    strength: float | None = Field(default=None, gt=0, le=1)

    def fields(self) -> dict[str, Any]:
        """The fields of a picture request."""
        return self.model_dump(exclude={"model"}, exclude_none=True)

    def json_text(self) -> str:
        return self.model_dump_json(exclude_none=True)

    def caption(self) -> str:
        """One line for people."""
        size = f"{self.width}x{self.height}" if self.width and self.height else None
        parts = [
            f"seed {self.seed}" if self.seed is not None else None,
            size,
            f"{self.upscale} times larger" if self.upscale else None,
            f"{self.num_inference_steps} steps" if self.num_inference_steps else None,
            f"guidance {self.guidance_scale:g}" if self.guidance_scale is not None else None,
            f"strength {self.strength:g}" if self.strength is not None else None,
            self.scheduler,
            "+".join(f"{name}={weight:g}" for name, weight in (self.lora or {}).items()) or None,
            f"step cache {self.step_cache}" if self.step_cache else None,
        ]
        return ", ".join(part for part in parts if part)


def signed(png: bytes, parameters: PictureParameters) -> bytes:
    """The same picture with its parameters in the file."""
    with Image.open(io.BytesIO(png)) as picture:
        picture.load()
        entries = PngImagePlugin.PngInfo()
        entries.add_itxt(CHUNK, parameters.json_text())
        out = io.BytesIO()
        picture.save(out, "PNG", pnginfo=entries, compress_level=1)
    return out.getvalue()


def reduced(png: bytes, side: int = 320) -> bytes:
    """A small PNG of a picture, no side above `side` pixels."""
    with Image.open(io.BytesIO(png)) as picture:
        picture.thumbnail((side, side))
        out = io.BytesIO()
        picture.convert("RGB").save(out, "PNG", compress_level=1)
    return out.getvalue()


def read_parameters(data: bytes) -> PictureParameters:
    """The parameters that `signed` left in a file.

    Raises:
        InvalidRequest: it is no PNG, or holds none.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise InvalidRequest(f"the picture has more than {MAX_PIXELS} pixels")
            picture.load()  # text entries may follow the pixels
            text = picture.info.get(CHUNK)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, TOO_LARGE) as error:
        raise InvalidRequest(f"this is no PNG picture: {error}") from None
    if text is None:
        raise InvalidRequest("this PNG holds no parameters: it was not saved by the studio")
    try:
        return PictureParameters.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = ".".join(map(str, fault["loc"])) or CHUNK
        raise InvalidRequest(f"the parameters in this PNG: {name}: {fault['msg']}") from None
