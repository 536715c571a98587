"""One picture without a server: load, draw with a progress bar, write the file. Serves `atelier
generate`."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from rich.progress import Progress

from atelier.errors import InvalidRequest
from atelier.events import Failed, Image, Step, Warned
from atelier.images.encoder import PictureEncoder
from atelier.images.model import ImageModel
from atelier.images.request import ImageRequest
from atelier.settings import Settings

log = logging.getLogger(__name__)

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def draw_to_file(settings: Settings, fields: dict[str, Any], output: Path) -> int:
    """Draw what `fields` ask for into `output` and return the seed.

    Raises:
        AtelierError: the file's ending, a field, or the model is at fault; nothing is written then.
    """
    if output.suffix.lower() not in FORMATS:
        raise InvalidRequest(f"{output}: the ending must be one of {', '.join(FORMATS)}", "output")
    if not output.absolute().parent.is_dir():
        raise InvalidRequest(
            f"{output}: the folder {output.absolute().parent} does not exist", "output"
        )
    request = ImageRequest.parse(fields | {"format": FORMATS[output.suffix.lower()]}, settings)
    encoder = PictureEncoder(settings)
    model = ImageModel(settings)
    with Progress() as bar:
        task = bar.add_task("loading", total=None)
        model.load()
        picture = asyncio.run(_draw(model, request, lambda step: bar.update(
            task, description="drawing", completed=step.index, total=step.total)))  # fmt: skip
    model.close()
    _write(output, encoder.encode(picture, request))
    return picture.seed


def _write(output: Path, data: bytes) -> None:
    """The whole file or none: a full disk leaves what was there before."""
    unfinished = output.with_name(f".{output.name}.part")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(output)
    except OSError as error:
        raise InvalidRequest(f"{output}: cannot be written: {error.strerror}", "output") from None
    finally:
        unfinished.unlink(missing_ok=True)


async def _draw(model: ImageModel, request: ImageRequest, on_step: Any) -> Image:
    picture: Image | None = None
    async for event in await model.submit(request):
        if isinstance(event, Step):
            on_step(event)
        elif isinstance(event, Image):
            picture = event
        elif isinstance(event, Warned):
            log.warning("%s", event.message)
        elif isinstance(event, Failed):
            raise event.error
    assert picture is not None
    return picture
