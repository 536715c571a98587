"""How much one request may be, in numbers that no setting changes, and the reader that holds JSON
to them. `docs/limits.md` lists them, beside the settings that bound a request."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import orjson

from atelier.errors import InvalidRequest

MAX_VALUES = 300_000
MAX_PICTURE_VALUES = 120_000
MAX_DEPTH = 128
MAX_ROWS = 2048
MAX_HEADER_BYTES = 64 * 1024
HEADER_SECONDS = 20.0
SILENT_BODY_SECONDS = 30.0
LINGER_SECONDS = 1.0
BODIES_AT_ONCE = 4
MAX_FORM_FIELDS = 200
MAX_GZIP_MEMBERS = 1024
MAX_PICTURE_TEXT = 20_000
MAX_ENTRIES = 100
MAX_WEIGHTED_TOKENS = {"CLIP": 600, "T5": 1000}
MAX_INPUT_PICTURES = 16
MAX_CONTROLS = 4
MAX_INPUT_PIXELS = 50_000_000
MAX_MESSAGES = 4096
MAX_TOOLS = 512
MAX_SCHEMA_BYTES = 256 * 1024
MAX_STOP_CHARACTERS = 1000
TEMPLATE_SECONDS = 5.0

# LINGER_SECONDS: a connection that is closed before all that came was read is reset, and a client
# loses what it has not read yet, so one that is refused stays open for a moment.

CHUNK = 64 * 1024
"""Bytes of a body whose values are counted at a time: what the count takes in memory."""


@dataclass(frozen=True)
class Bound:
    """One line of the table: what is bounded, by how much, what that protects, and the answer to
    more."""

    what: str
    most: str
    protects: str
    answer: str


BOUNDS = (
    Bound(
        "Header block of a request",
        f"{MAX_HEADER_BYTES // 1024} KiB",
        "The event loop: long headers cost quadratic time.",
        "431, connection closed",
    ),
    Bound(
        "Time until the headers are complete",
        f"{HEADER_SECONDS:g} s",
        "Connections held open by clients that send a byte now and then.",
        "408, connection closed",
    ),
    Bound(
        "Silence within a body",
        f"{SILENT_BODY_SECONDS:g} s; the whole body within REQUEST_TIMEOUT",
        "The same.",
        "408, connection closed",
    ),
    Bound(
        "Bodies being received or worked on, together",
        f"{BODIES_AT_ONCE} times MAX_BODY_BYTES",
        "Memory of the front.",
        "429 with Retry-After",
    ),
    Bound(
        "Values of a JSON body",
        f"{MAX_VALUES:,}; on routes of pictures {MAX_PICTURE_VALUES:,}",
        "Memory and time: two million letters are 10 MB to send and 200 MB to hold. Counted on"
        " the bytes, before anything is parsed.",
        "400",
    ),
    Bound("Depth of a JSON body", str(MAX_DEPTH), "What walks it recursively.", "400"),
    Bound(
        "Prompts of one request to a language model",
        f"{MAX_ROWS:,}",
        "The queue; MAX_QUEUE_SIZE bounds what is admitted.",
        "400",
    ),
    Bound(
        "Members of a body packed with gzip",
        f"{MAX_GZIP_MEMBERS:,}",
        "Time: each costs a copy of what is behind it.",
        "400",
    ),
    Bound("Fields of a form", str(MAX_FORM_FIELDS), "Memory and time.", "400"),
    Bound(
        "Characters of a prompt for pictures, in any of its fields",
        f"{MAX_PICTURE_TEXT:,}",
        "Time of the tokenizer.",
        "400",
    ),
    Bound(
        "Tokens of a weighted prompt",
        ", ".join(f"{most:,} of {kind}" for kind, most in MAX_WEIGHTED_TOKENS.items()),
        "Time of the device: the denoiser attends to all of them at every step.",
        "400",
    ),
    Bound(
        "Entries of a list or an object that a pipeline takes",
        str(MAX_ENTRIES),
        "Arguments of pipelines, which no one else bounds.",
        "400",
    ),
    Bound("Input pictures of one prompt", str(MAX_INPUT_PICTURES), "Decoding.", "400"),
    Bound("Controls of one prompt; image prompts", str(MAX_CONTROLS), "Decoding, memory.", "400"),
    Bound(
        "Pixels of an input picture",
        f"{MAX_INPUT_PIXELS:,}",
        "Memory. One of more than MAX_PIXELS is scaled down.",
        "400",
    ),
    Bound("Messages of a conversation", f"{MAX_MESSAGES:,}", "The chat template.", "400"),
    Bound("Tools offered", str(MAX_TOOLS), "The chat template and grammars.", "400"),
    Bound(
        "A JSON schema, written out",
        f"{MAX_SCHEMA_BYTES // 1024} KiB",
        "The time that a grammar takes to compile.",
        "400",
    ),
    Bound("Characters of a stop string", f"{MAX_STOP_CHARACTERS:,}", "Time of a token.", "400"),
    Bound(
        "Time of a chat template",
        f"{TEMPLATE_SECONDS:g} s",
        "The worker: templates come with checkpoints and may loop.",
        "400",
    ),
)


def read_json(raw: bytes | str, most: int = MAX_VALUES) -> Any:
    """The value of a JSON text.

    Args:
        most: values that it may hold.

    Raises:
        InvalidRequest: it is not JSON, or larger or deeper than is taken.
    """
    raw = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else _as_utf8(raw)
    check_values(raw, most)
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {_not_utf8(raw) or error}") from None
    _check_depth(value)
    return value


def _as_utf8(raw: bytes) -> bytes:
    """Without a byte-order mark, and not in UTF-16: tools of Windows write both."""
    encoding = json.detect_encoding(raw)
    if encoding == "utf-8":
        return raw
    try:
        return raw.decode(encoding).encode()
    except UnicodeError as error:
        raise InvalidRequest(f"the body looks like {encoding} and is not: {error}") from None


def _not_utf8(raw: bytes) -> str:
    """Where the text is in another encoding, if it is."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start} is {raw[error.start]:#04x}, which is not UTF-8: send it in that"
    return ""


def check_values(raw: bytes, most: int = MAX_VALUES) -> None:
    """See that a JSON text has no more than `most` values, without parsing it.

    Raises:
        InvalidRequest: it has more.
    """
    if _has_many(raw, most) and _commas(raw, most) >= most:
        raise InvalidRequest(f"the body has more than {most:,} values; send it in parts")


def _has_many(raw: bytes, most: int) -> bool:
    """Whether there are so many commas, inside of strings or not. No more is looked at than that
    takes: while the interpreter counts, no other thread runs."""
    count = 0
    for start in range(0, len(raw), CHUNK):
        count += raw.count(b",", start, start + CHUNK)
        if count >= most:
            return True
    return False


def _commas(raw: bytes, enough: int) -> int:
    """Commas outside of strings, counted until there are `enough`."""
    count, inside, rest = 0, False, b""
    for start in range(0, len(raw), CHUNK):
        chunk = (rest + raw[start : start + CHUNK]).replace(b"\\\\", b"")
        rest = b"\\" if chunk.endswith(b"\\") else b""
        between = chunk.removesuffix(b"\\").replace(b'\\"', b"").split(b'"')
        count += b"".join(between[inside::2]).count(b",")
        inside ^= not len(between) % 2
        if count >= enough:
            break
    return count


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise InvalidRequest(f"the body is nested more than {MAX_DEPTH} deep")
