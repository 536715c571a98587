"""Small pictures to send, and a look at those that come back."""

from __future__ import annotations

import base64
import io

from PIL import Image

SIZE = "64x64"
"""Small enough for a step of the tiny checkpoint to take milliseconds."""

FAST = {"seed": 7, "steps": 3}


def encoded(color: tuple[int, ...], size: tuple[int, int] = (64, 64), format: str = "PNG") -> bytes:
    """A picture of one colour; four numbers make it RGBA."""
    out = io.BytesIO()
    Image.new("RGBA" if len(color) == 4 else "RGB", size, color).save(out, format)
    return out.getvalue()


def mask(transparent: tuple[int, int, int, int], size: tuple[int, int] = (64, 64)) -> bytes:
    """OpenAI's mask: opaque black, but transparent within the box (left, top, right, bottom)."""
    picture = Image.new("RGBA", size, (0, 0, 0, 255))
    picture.paste((0, 0, 0, 0), transparent)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def white_box(box: tuple[int, int, int, int], size: tuple[int, int] = (64, 64)) -> bytes:
    """The mask that the pipelines take: black, but white within the box."""
    picture = Image.new("L", size)
    picture.paste(255, box)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def striped(size: tuple[int, int] = (64, 64)) -> bytes:
    """Diagonal stripes: something that even a random encoder tells from one colour."""
    picture = Image.new("RGB", size)
    picture.putdata(
        [
            ((x + y) * 16 % 256, x * 4 % 256, y * 4 % 256)
            for y in range(size[1])
            for x in range(size[0])
        ]
    )
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def opened(data: bytes | str | None) -> Image.Image:
    """Bytes, or base64 text, as a picture."""
    assert data
    return Image.open(io.BytesIO(base64.b64decode(data) if isinstance(data, str) else data))


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()
