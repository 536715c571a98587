"""Types of settings that are more than a number or a word: how a variable's text is read, and what
is refused."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, PositiveInt, SecretStr
from pydantic_settings import NoDecode

MOST_PREFIX_BYTES = 900
"""A key has at most 1,024, with the name behind the prefix (S3 user guide)."""

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT])(i?)B?")

SWITCH_WORDS = dict.fromkeys(("1", "yes", "on", "y", "t"), "true") | dict.fromkeys(
    ("0", "no", "off", "n", "f"), "false"
)

OLD_MODELS = {"demo/shapes": "builtin/shapes", "demo/scenes": "builtin/scenes"}
"""What the built-in models were called in the first release; manifests may still say so."""


def _split(value: Any) -> Any:
    """Commas or line breaks, as a block of YAML has them, or a JSON list of texts."""
    if not isinstance(value, str):
        return value
    parts: Any = re.split(r"[,\n]", value)
    if value.lstrip().startswith("["):
        with suppress(ValueError):
            parts = json.loads(value)
    return [part.strip() for part in map(str, parts) if part.strip()]


def bare(value: str) -> str:
    """Without white space around it, nor the quotes that `docker --env-file` takes for a part of a
    value."""
    text = value.strip()
    quoted = (
        len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and text[0] not in text[1:-1]
    )
    return text[1:-1].strip() if quoted else text


def _switch(value: Any) -> Any:
    """Also in the words that a setting which is on or off takes."""
    if isinstance(value, bool):
        return str(value).lower()
    return SWITCH_WORDS.get(value, value) if isinstance(value, str) else value


def _bytes(value: Any) -> Any:
    """A number, or one with a unit of Kubernetes: 64Mi, 64MiB or 64M."""
    match = SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    power = "KMGT".index(match[2].upper()) + 1
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def _origins(value: list[str]) -> list[str]:
    """As browsers send them: in small letters, without a slash at the end."""
    origins = [one.rstrip("/").lower() for one in value]
    for origin in origins:
        if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+", origin):
            raise ValueError(
                f"allowed: * or an origin such as https://app.example.com, not {origin!r}"
            )
    return origins


def _hosts(value: list[str]) -> list[str]:
    """Names alone: of a URL, or with a port, the name in it counts."""
    hosts = [urlsplit(one if "://" in one else f"//{one}").hostname or "" for one in value]
    for host, written in zip(hosts, value, strict=True):
        if not re.fullmatch(r"[a-z0-9._:-]+", host):
            raise ValueError(f"allowed: names of hosts, one by one, not {written!r}")
    return hosts


def _base(value: str) -> str:
    if value and not re.match(r"https?://[^/\s]", value):
        raise ValueError(f"allowed: a URL such as https://host, not {value!r}")
    return value


def _known_device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|xpu(:\d+)?|cuda(:\d+)?", value):
        raise ValueError("allowed: auto, cpu, cuda, cuda:N, mps, xpu, xpu:N")
    return value


def _sizes(value: list[str]) -> list[str]:
    for size in value:
        if not re.fullmatch(r"[1-9]\d{1,4}x[1-9]\d{1,4}", size):
            raise ValueError(f"allowed: WIDTHxHEIGHT in pixels, not {size!r}")
    return value


def _weighted(value: list[str]) -> list[str]:
    for entry in value:
        if not re.fullmatch(r"[^=]+(=-?\d*\.?\d+)?", entry):
            raise ValueError(f"allowed: name or name=number, not {entry!r}")
    return value


def _no_first_block(value: Any) -> Any:
    if value == "first-block":
        raise ValueError("allowed: off, low, medium, high; low replaces first-block")
    return value


def object_prefix(value: str) -> str:
    """An address in object storage as it is compared: without a slash at its end, and with no part
    that a store could read as another place.

    Raises:
        ValueError: it is no address, or has such a part.
    """
    bare = value.rstrip("/")
    bucket, _, prefix = bare.removeprefix("s3://").partition("/")
    parts = prefix.split("/") if prefix else []
    if not (bare.startswith("s3://") and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+", bucket)):
        raise ValueError(f"allowed: s3://bucket/prefix, not {value[:80]!r}")
    if {"", ".", ".."} & set(parts) or "\\" in prefix or not prefix.isprintable():
        raise ValueError(f"a prefix has no empty, . or .. parts, and prints: {value[:80]!r}")
    if len(prefix.encode()) > MOST_PREFIX_BYTES:
        raise ValueError(f"a prefix has at most {MOST_PREFIX_BYTES} bytes")
    return bare


def _prefixes(value: list[str]) -> list[str]:
    return [object_prefix(one) for one in value]


def _prefix_or_none(value: str) -> str:
    return object_prefix(value) if value else value


Switch = Annotated[Literal["auto", "true", "false"], BeforeValidator(_switch)]
"""Three-valued: `auto` lets the memory plan decide."""

ByteCount = Annotated[int, BeforeValidator(_bytes)]
Origins = Annotated[list[str], NoDecode, BeforeValidator(_split), AfterValidator(_origins)]
Hosts = Annotated[list[str], NoDecode, BeforeValidator(_split), AfterValidator(_hosts)]
WebBase = Annotated[str, AfterValidator(_base)]

Names = Annotated[list[str], NoDecode, BeforeValidator(_split)]
"""A list, separated by commas or line breaks."""

Secrets = Annotated[list[SecretStr], NoDecode, BeforeValidator(_split)]
Lengths = Annotated[list[PositiveInt], NoDecode, BeforeValidator(_split)]
PictureSizes = Annotated[list[str], NoDecode, BeforeValidator(_split), AfterValidator(_sizes)]
WeightedNames = Annotated[list[str], NoDecode, BeforeValidator(_split), AfterValidator(_weighted)]
ObjectPrefix = Annotated[str, AfterValidator(_prefix_or_none)]
ObjectPrefixes = Annotated[list[str], NoDecode, BeforeValidator(_split), AfterValidator(_prefixes)]
DeviceName = Annotated[str, AfterValidator(_known_device)]
Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]

StepCache = Annotated[Literal["off", "low", "medium", "high"], BeforeValidator(_no_first_block)]

AttentionBackend = Literal[
    "auto",
    "torch-flash",
    "torch-cudnn",
    "torch-efficient",
    "torch-math",
    "flash-attn",
    "flash-attn-3",
    "sage",
    "xformers",
]
