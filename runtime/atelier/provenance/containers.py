"""Where PNG, JPEG and WebP files keep their marks: an XMP packet, and a C2PA manifest. Read from
the bytes alone, without a picture library."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"

XMP_IN_PNG = b"XML:com.adobe.xmp\0"
XMP_IN_JPEG = b"http://ns.adobe.com/xap/1.0/\0"
MOST_XMP_BYTES = 2**20
"""Of a compressed packet, unpacked."""


@dataclass(frozen=True)
class FoundMarks:
    """What a file holds. `xmp` is the packet; `c2pa` says that a manifest is there, not that it
    holds."""

    media_type: str
    xmp: bytes | None
    c2pa: bool


def find_marks(data: bytes) -> FoundMarks:
    """The marks in an encoded picture.

    Raises:
        ValueError: it is no PNG, JPEG or WebP, or is cut off or damaged where marks would be.
    """
    try:
        if data.startswith(PNG_MAGIC):
            return _in_png(data)
        if data.startswith(JPEG_MAGIC):
            return _in_jpeg(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _in_webp(data)
    except (struct.error, IndexError, zlib.error):
        raise ValueError("the file is damaged or cut off") from None
    raise ValueError("not a PNG, JPEG or WebP picture")


def _in_png(data: bytes) -> FoundMarks:
    xmp, c2pa, place = None, False, len(PNG_MAGIC)
    kind = b""
    while kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", data, place)
        body = data[place + 8 : place + 8 + size]
        if kind == b"iTXt" and body.startswith(XMP_IN_PNG):
            xmp = _international_text(body[len(XMP_IN_PNG) :])
        c2pa |= kind == b"caBX"
        place += 12 + size
    return FoundMarks("image/png", xmp, c2pa)


def _international_text(rest: bytes) -> bytes:
    """The text of an iTXt chunk behind its keyword: two bytes of compression, two terminated
    strings, the text (PNG specification, 11.3.3.4)."""
    compressed = rest[0] == 1
    text = rest[2:].split(b"\0", 2)[2]
    return zlib.decompressobj().decompress(text, MOST_XMP_BYTES) if compressed else text


def _in_jpeg(data: bytes) -> FoundMarks:
    xmp, c2pa = None, False
    for marker, body in _segments(data):
        if marker == 0xE1 and body.startswith(XMP_IN_JPEG):
            xmp = body[len(XMP_IN_JPEG) :]
        # JUMBF in APP11 (ISO 19566-5, annex D): "JP", two numbers, and the box
        c2pa |= marker == 0xEB and body[:2] == b"JP" and b"c2pa" in body[:64]
    return FoundMarks("image/jpeg", xmp, c2pa)


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of every segment before the pixels."""
    place = 2
    while True:
        fill, marker = struct.unpack_from("BB", data, place)
        if fill != 0xFF:
            raise struct.error
        if marker == 0xFF:  # fill bytes may stand before a marker
            place += 1
            continue
        if marker in (0xDA, 0xD9):
            return
        (size,) = struct.unpack_from(">H", data, place + 2)
        yield marker, data[place + 4 : place + 2 + size]
        place += 2 + size


def _in_webp(data: bytes) -> FoundMarks:
    xmp, c2pa, place = None, False, 12
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    if end > len(data):
        raise struct.error
    while place + 8 <= end:
        kind, size = struct.unpack_from("<4sI", data, place)
        if kind == b"XMP ":
            xmp = data[place + 8 : place + 8 + size]
        c2pa |= kind == b"C2PA"
        place += 8 + size + size % 2
    return FoundMarks("image/webp", xmp, c2pa)
