"""Types of settings that are more than a number or a word: how a variable's text is read, and what
is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, PositiveInt, SecretStr
from pydantic_settings import NoDecode

MOST_PREFIX_BYTES = 900
"""A key has at most 1,024, with the name behind the prefix (S3 user guide)."""

OLD_MODELS = {"demo/shapes": "builtin/shapes", "demo/scenes": "builtin/scenes"}
"""What the built-in models were called in the first release; manifests may still say so."""


def _split(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


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


Switch = Literal["auto", "true", "false"]
"""Three-valued: `auto` lets the memory plan decide."""

Names = Annotated[list[str], NoDecode, BeforeValidator(_split)]
"""A comma-separated list."""

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
