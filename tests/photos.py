"""Photos as cameras and tools leave them: EXIF that says which way is up, beside odd tags."""

from __future__ import annotations

import io
import struct

from PIL import Image

BROKEN_TAGS = [
    (0x011A, 2, b"seventy-two\0"),  # XResolution as text
    (0x0100, 5, struct.pack(">II", 4, 1)),  # width as a rational number
    (0x0100, 11, struct.pack(">f", 4.0)),  # as a float
    (0x0100, 9, struct.pack(">i", -1)),  # as -1
    (0x0111, 2, b"here\0"),  # StripOffsets as text
]


def photo(kind: int, tag: int, value: bytes) -> bytes:
    """A JPEG, red above blue as it lies, that EXIF says to turn by 90 degrees, with one odd tag."""
    count = len(value) if kind == 2 else 1
    offset = 8 + 2 + 2 * 12 + 4
    stored = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(">I", offset)
    entries = sorted(
        [
            (0x0112, struct.pack(">HHI", 0x0112, 3, 1) + struct.pack(">HH", 6, 0)),
            (tag, struct.pack(">HHI", tag, kind, count) + stored),
        ]
    )
    tiff = b"MM\0*" + struct.pack(">I", 8) + struct.pack(">H", len(entries))
    tiff += b"".join(entry for _, entry in entries) + struct.pack(">I", 0)
    tiff += value if len(value) > 4 else b""
    lying = Image.new("RGB", (32, 64), "red")
    lying.paste("blue", (0, 32, 32, 64))
    out = io.BytesIO()
    lying.save(out, "JPEG", exif=b"Exif\0\0" + tiff)
    return out.getvalue()
