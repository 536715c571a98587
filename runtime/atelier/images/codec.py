"""Pictures as bytes: encoding results, decoding uploads. CPU work for a thread pool, never for the
denoising thread."""

from __future__ import annotations

import io
import logging
import math
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from atelier.bounds import MAX_INPUT_PIXELS
from atelier.errors import InvalidRequest
from atelier.images.truncation import check_whole
from atelier.images.unread import what_else

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from atelier.events import Image
    from atelier.images.request import Format

log = logging.getLogger(__name__)

ORIENTATION = 0x0112
"""EXIF's tag, with values 1 to 8: Exif 2.32, section 4.6.4."""

XMP_KEYWORD = "XML:com.adobe.xmp"
"""Of the chunk that holds a PNG's packet (XMP specification, part 3, 1.1.5)."""

MEDIA_TYPES: dict[str, str] = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


def encode(
    picture: Image, format: Format, compression: int | None = None, xmp: bytes | None = None
) -> bytes:
    """Encode raw pixels as PNG, JPEG or WebP, with an XMP packet if one is given. `compression` is
    the quality of the lossy formats, 0 to 100.

    PNG uses zlib level 1 and looks for runs alone: on photographs three to four times faster than
    the default, and since Pillow's filters leave few longer repetitions, for no more bytes.
    """
    from PIL import Image as PIL
    from PIL import PngImagePlugin

    mode = "RGBA" if picture.channels == 4 else "RGB"
    image = PIL.frombytes(mode, (picture.width, picture.height), picture.pixels)
    out = io.BytesIO()
    if format == "PNG":
        chunks = PngImagePlugin.PngInfo()
        if xmp is not None:
            chunks.add_itxt(XMP_KEYWORD, xmp.decode())
        image.save(out, "PNG", compress_level=1, compress_type=zlib.Z_RLE, pnginfo=chunks)
    else:
        packet = {} if xmp is None else {"xmp": xmp}
        image.convert("RGB" if format == "JPEG" else mode).save(
            out, format, quality=90 if compression is None else compression, **packet
        )
    return out.getvalue()


def decode(data: bytes, max_pixels: int, field: str) -> PILImage:
    """Decode an uploaded picture (PNG, JPEG, WebP, GIF or BMP); orientation is applied,
    transparency kept. One of more than `max_pixels` is scaled down to them: a photograph need not
    fit the device.

    Raises:
        InvalidRequest: not a picture, truncated, or of more than MAX_INPUT_PIXELS; the size is read
            before any pixel is.
    """
    from PIL import Image as PIL
    from PIL import UnidentifiedImageError

    try:
        image = PIL.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP", "GIF", "BMP"])
        if image.width * image.height > MAX_INPUT_PIXELS:
            raise InvalidRequest(
                f"{field}: {image.width} x {image.height} pixels; an input picture may have"
                f" {MAX_INPUT_PIXELS}, and is scaled down to MAX_PIXELS={max_pixels}",
                field,
            )
        wanted = _fitting(image.size, max_pixels)
        image.draft(None, wanted)  # JPEG can be decoded at half, a quarter, an eighth of its size
        image.load()
        check_whole(data, image, field)
        shown = eight_bits(upright(image))  # in this order: EXIF is lost with the bits
    except UnidentifiedImageError:
        raise InvalidRequest(
            f"{field}: {what_else(data)}, not a PNG, JPEG, WebP, GIF or BMP picture: convert it to"
            " one of them",
            field,
        ) from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        struct.error,
        zlib.error,
        PIL.DecompressionBombError,
    ) as error:
        raise InvalidRequest(f"{field}: the picture cannot be decoded: {error}", field) from None
    has_alpha = "A" in shown.getbands() or "transparency" in shown.info
    picture = shown.convert("RGBA" if has_alpha else "RGB")
    fitting = _fitting(picture.size, max_pixels)
    return picture if picture.size == fitting else picture.resize(fitting)


def _fitting(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """The size itself, or the largest of the same shape that has no more than `max_pixels`."""
    width, height = size
    scale = math.sqrt(max_pixels / (width * height))
    return size if scale >= 1 else (max(1, int(width * scale)), max(1, int(height * scale)))


def eight_bits(image: PILImage) -> PILImage:
    """A grey picture of 16 bits a pixel in 8: Pillow's own conversion would cut the values off."""
    from PIL import Image as PIL

    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.float32) / 257
    return PIL.fromarray(values.round().clip(0, 255).astype(np.uint8), "L")


def upright(image: PILImage) -> PILImage:
    """Turned as its EXIF orientation says. Cameras write tags that no reader understands; they are
    no reason to refuse a picture."""
    from PIL import Image as PIL

    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # whatever a broken tag makes the reader raise
        log.info("a picture's EXIF cannot be read; it is taken as it lies")
        return image
    turns = {
        2: PIL.Transpose.FLIP_LEFT_RIGHT,
        3: PIL.Transpose.ROTATE_180,
        4: PIL.Transpose.FLIP_TOP_BOTTOM,
        5: PIL.Transpose.TRANSPOSE,
        6: PIL.Transpose.ROTATE_270,
        7: PIL.Transpose.TRANSVERSE,
        8: PIL.Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def mask_from_alpha(mask: bytes, picture: bytes, max_pixels: int, field: str) -> bytes:
    """OpenAI's mask, which is transparent where `picture` is to be repainted, as one that is white
    there.

    Raises:
        InvalidRequest: no transparency in it, or another size than the picture's.
    """
    from PIL import ImageChops

    drawn, given = decode(picture, max_pixels, "image"), decode(mask, max_pixels, field)
    if given.mode != "RGBA":
        raise InvalidRequest(
            f"{field}: it has no alpha channel; make transparent what is to be repainted", field
        )
    if given.size != drawn.size:
        sizes = f"{given.width}x{given.height}, the picture {drawn.width}x{drawn.height}"
        raise InvalidRequest(f"{field}: it must be as large as the picture; it is {sizes}", field)
    out = io.BytesIO()
    ImageChops.invert(given.getchannel("A")).save(out, "PNG", compress_level=1)
    return out.getvalue()
