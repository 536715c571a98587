"""What the tools answer: typed results, and pictures as content of bounded size."""

from __future__ import annotations

import base64
import io
from datetime import UTC, datetime

from mcp.types import ImageContent
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, Field

from atelier.errors import EndpointFailed

KINDS = {"PNG": "png", "JPEG": "jpeg", "WEBP": "webp"}
"""What endpoints draw, as Pillow and as media types name it."""

SMALLEST_SIDE = 16
QUALITY = 85


class PictureAnswer(BaseModel):
    """One picture that was drawn, or is kept."""

    name: str | None = Field(description="Its name for get_image and edit_image; null: not kept.")
    url: str | None = Field(description="Where anybody who has this URL can see it.")
    uri: str | None = Field(description="The same picture as a resource of this server.")
    media_type: str
    width: int
    height: int
    size_bytes: int
    seed: int | None = Field(description="Draws it again with the same arguments.")
    expires_at: datetime | None = Field(description="When it goes; earlier if the store is full.")
    shown: str = Field(description="whole or reduced: how it is in this answer's content.")


class DrawingAnswer(BaseModel):
    """What generate_image and edit_image answer."""

    pictures: list[PictureAnswer]
    warnings: list[str] = Field(description="What was taken without effect or is not kept.")


class ListedModel(BaseModel):
    """A model of the endpoint."""

    name: str
    owned_by: str
    ready: bool | None = Field(description="null: this endpoint does not tell.")


class ModelsAnswer(BaseModel):
    """What list_models answers."""

    endpoint: str
    models: list[ListedModel]


class ModelAnswer(BaseModel):
    """What describe_model answers; null where the endpoint does not tell."""

    name: str
    ready: bool | None
    pipeline: str | None
    default_size: str | None = Field(description="WIDTHxHEIGHT if no size is asked for.")
    size_multiple: int | None = Field(description="Width and height must be multiples.")
    max_pixels: int | None = Field(description="Largest width times height.")
    default_steps: int | None
    adapters: list[str] | None = Field(description="Names for the argument adapters.")
    controls: list[str] | None = Field(description="Names for entries of the argument control.")
    image_prompts: list[str] | None = Field(description="Names for entries of image_prompt.")
    upscalers: dict[str, int] | None = Field(
        description="How many times larger each makes a picture at most; empty: none is there."
    )
    arguments: list[str] | None = Field(description="All that its pipeline takes.")


class MeasuredPicture:
    """Encoded bytes whose header was read."""

    def __init__(self, data: bytes) -> None:
        """
        Raises:
            EndpointFailed: they are no PNG, JPEG or WebP picture.
        """
        try:
            with Image.open(io.BytesIO(data), formats=list(KINDS)) as image:
                self.kind = KINDS[str(image.format)]
                self.width, self.height = image.size
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise EndpointFailed(f"the endpoint sent no picture: {error}") from None
        self.data = data

    @property
    def media_type(self) -> str:
        return f"image/{self.kind}"

    def content(self, most_bytes: int) -> tuple[ImageContent, str]:
        """The picture as content of at most so many bytes before base64, and `whole` or
        `reduced`. Decodes and encodes what is larger; for a worker thread."""
        if len(self.data) <= most_bytes:
            return _content(self.data, self.media_type), "whole"
        return _content(_reduced(self.data, most_bytes), "image/jpeg"), "reduced"


def timestamp(seconds: float) -> datetime:
    """Seconds since the epoch as a time with its zone, to the second."""
    return datetime.fromtimestamp(int(seconds), UTC)


def _content(data: bytes, media_type: str) -> ImageContent:
    return ImageContent(type="image", data=base64.b64encode(data).decode(), mime_type=media_type)


def _reduced(data: bytes, most_bytes: int) -> bytes:
    """A JPEG of at most so many bytes: sides shrink by a quarter until it fits."""
    with Image.open(io.BytesIO(data), formats=list(KINDS)) as image:
        flat = image.convert("RGBA")
    white = Image.new("RGBA", flat.size, "white")
    shown = Image.alpha_composite(white, flat).convert("RGB")
    while True:
        out = io.BytesIO()
        shown.save(out, "JPEG", quality=QUALITY)
        if out.tell() <= most_bytes or min(shown.size) <= SMALLEST_SIDE:
            return out.getvalue()
        shown = shown.resize(
            (max(1, shown.width * 3 // 4), max(1, shown.height * 3 // 4)), Image.Resampling.LANCZOS
        )
