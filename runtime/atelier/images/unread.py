"""What bytes are that are no picture of a kind which is read here, told from how they begin, so
that an error can name it."""

from __future__ import annotations

import re

MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM")
"""How the pictures begin that are read here."""

BRANDS = {
    b"avif": "AVIF", b"avis": "AVIF",
    b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"hevx": "HEIC", b"heim": "HEIC",
    b"heis": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF",
}  # fmt: skip
"""Of the file type box that HEIF and its kin begin with (ISO/IEC 14496-12, section 4.3)."""

STARTS = (
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "TIFF, or a camera's raw file"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
    (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ", "JPEG 2000"),
    (rb"8BPS", "a Photoshop document"),
    (rb"\0\0\x01\0", "an icon"),
    (rb"%PDF", "a PDF document"),
    (rb"PK\x03\x04", "a zip archive"),
    (rb"\x1f\x8b", "compressed with gzip"),
    (rb"(\xef\xbb\xbf)?\s*(<[?!][^>]*>\s*){0,4}<svg", "SVG"),
    (rb"(\xef\xbb\xbf)?\s*<", "a web page or other markup"),
    (rb"\s*[{\[]", "JSON"),
    (rb"P[1-7]\s", "a portable pixmap"),
    (rb"(?i)data:image/", "a data URL where the picture's bytes should be"),
    (rb"iVBORw0KGgo|/9j/|UklGR|R0lGOD", "base64 text where the picture's bytes should be"),
)


def what_else(data: bytes) -> str:
    """What the bytes seem to be, in words that go on from `it is`."""
    if not data:
        return "it is empty"
    if data.startswith(MAGIC):
        return "its header is cut short or damaged"
    if data[4:8] == b"ftyp":
        return f"it is {BRANDS.get(data[8:12], 'a video')}"
    start = data[:400]
    for pattern, name in STARTS:
        if re.match(pattern, start, re.DOTALL):
            return f"it is {name}"
    return f"it begins with {start[:12]!r}"
