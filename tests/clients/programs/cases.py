"""The cases of one Python client: each is a function, and all run in one process, since importing
such a client takes seconds. Runs in the environment of `make clients`, so it knows no test code."""

from __future__ import annotations

import base64
import json
import os
import struct
import traceback
import zlib
from collections.abc import Callable
from typing import Any

SHAPES = os.environ.get("SHAPES_URL", "") + "/v1"
SCENES = os.environ.get("SCENES_URL", "") + "/v1"
SCENES_BASE = os.environ.get("SCENES_URL", "")
KEY = "none"

WISH = "Please draw a red circle above a blue square."
DRAW = {
    "type": "function",
    "function": {
        "name": "generate_image",
        "description": "Draw a picture.",
        "parameters": {
            "type": "object",
            "properties": {"prompt": {"type": "string"}},
            "required": ["prompt"],
            "additionalProperties": False,
        },
    },
}
THING = "A red circle. Answer as JSON with the keys shape and color."


def picture(width: int = 120, height: int = 90) -> bytes:
    """A grey PNG without a library: the clients' environment has none for pictures."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = (b"\0" + b"\x80" * (3 * width)) * height
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def size_of(png: str | bytes) -> list[int]:
    """Width and height of a PNG, given as bytes or base64."""
    data = base64.b64decode(png) if isinstance(png, str) else png
    assert data.startswith(b"\x89PNG"), data[:8]
    return list(struct.unpack(">II", data[16:24]))


def run(*cases: Callable[[], Any]) -> None:
    """Print what each case returned, or how it failed, by its name."""
    told = {}
    for case in cases:
        try:
            told[case.__name__] = {"gave": case()}
        except Exception:
            told[case.__name__] = {"failed": traceback.format_exc()}
    print(json.dumps(told))
