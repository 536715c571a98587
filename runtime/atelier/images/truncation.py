"""Whether a PNG holds all of its rows. Pillow fills the rows with black that a short stream lacks,
and says nothing."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from atelier.errors import InvalidRequest

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Values a pixel by colour type: PNG specification, section 11.2.1."""

ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""First column and row of each pass, and the steps between: section 8.2."""


def check_whole(data: bytes, image: PILImage, field: str) -> None:
    """See that the rows of the decoded `image` were all in `data`.

    Raises:
        InvalidRequest: some are missing.
    """
    if image.format != "PNG":
        return
    last = image.crop((0, image.height - 1, image.width, image.height))
    if not image.info.get("interlace") and any(last.tobytes()):
        return  # rows that were filled in are zeros
    wanted, held = _bytes_wanted(data), 0
    for part in _inflated(data):
        held += len(part)
    if held < wanted:
        raise InvalidRequest(
            f"{field}: the picture is cut short: it holds {held} of {wanted} bytes of pixels", field
        )


def _bytes_wanted(data: bytes) -> int:
    """Bytes of all rows, each with its filter byte."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * CHANNELS[colour]
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for left, top, across, down in passes:
        columns, rows = math.ceil((width - left) / across), math.ceil((height - top) / down)
        if columns > 0 and rows > 0:
            total += rows * (1 + math.ceil(columns * bits / 8))
    return total


def _inflated(data: bytes) -> Iterator[bytes]:
    """The stream of the first picture, in pieces."""
    unpacker, at = zlib.decompressobj(), 8
    while at + 8 <= len(data) and not unpacker.eof:
        (length,), kind = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        if kind == b"IDAT":
            packed = data[at + 8 : at + 8 + length]
            while packed:
                yield unpacker.decompress(packed, 64 * 1024)
                packed = unpacker.unconsumed_tail
        at += 12 + length
