"""The body of `POST /v1/images/upscale`, which OpenAI does not have: in its terms otherwise."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from atelier.errors import InvalidRequest
from atelier.images.destination import INLINE, Output
from atelier.images.request import ImageRequest, Times
from atelier.images.service import PictureService
from atelier.protocols.http.models import check_name
from atelier.protocols.openai.image_bodies import ImagesCall
from atelier.protocols.openai.image_words import AnswerForm, FormatName
from atelier.settings import Settings


class UpscaleBody(BaseModel):
    """Without the picture. `null` is the same as leaving a field out."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="The served model's name.")
    upscale: Times = Field(2, description="Times larger: 2 or 4.")
    upscaler: str | None = Field(None, max_length=100, description="Which of several.")
    output_format: FormatName | None = None
    output_compression: int | None = Field(None, ge=0, le=100, description="Of jpeg and webp.")
    response_format: AnswerForm | None = None
    output: Output | None = Field(None, description="Where the picture goes, as when drawing.")
    timeout: float | None = Field(None, gt=0, description="Seconds.")
    user: str | None = Field(None, description="Written to the log.")
    safety_identifier: str | None = Field(None, description="The same as user.")


def upscale_call(
    body: UpscaleBody,
    pictures: list[bytes],
    mask: bytes | None,
    model: PictureService,
    settings: Settings,
) -> ImagesCall:
    """What the body asks for, in this server's terms.

    Raises:
        ModelUnknown, NotReady: the body means another model, or this one is still loading.
        InvalidRequest: not one picture, or a value is not allowed.
    """
    if len(pictures) != 1 or mask:
        raise InvalidRequest("image: to be enlarged, exactly one is taken, and no mask", "image")
    if body.model is not None:
        check_name(model, body.model)
    model.check_ready()
    kind = body.output_format or "png"
    if body.output_compression is not None and kind == "png":
        raise InvalidRequest(
            "output_compression: png loses nothing; ask for output_format jpeg or webp",
            "output_compression",
        )
    fields = {
        "task": "upscale",
        "prompt": "",
        "image": pictures,
        "upscale": body.upscale,
        "upscaler": body.upscaler,
        "format": kind,
        "compression": body.output_compression,
        "output": INLINE if body.response_format == "b64_json" else body.output,
        "timeout": body.timeout,
    }
    request = ImageRequest.parse(fields, settings)
    as_url = body.response_format == "url"
    return ImagesCall(request, as_url, False, "auto", "auto", kind)
