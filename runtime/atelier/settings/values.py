"""Types of settings that are more than a number or a word: how a variable's text is read, and what
is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, PositiveInt, SecretStr
from pydantic_settings import NoDecode

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


Switch = Literal["auto", "true", "false"]
"""Three-valued: `auto` lets the memory plan decide."""

Names = Annotated[list[str], NoDecode, BeforeValidator(_split)]
"""A comma-separated list."""

Secrets = Annotated[list[SecretStr], NoDecode, BeforeValidator(_split)]
Lengths = Annotated[list[PositiveInt], NoDecode, BeforeValidator(_split)]
PictureSizes = Annotated[list[str], NoDecode, BeforeValidator(_split), AfterValidator(_sizes)]
WeightedNames = Annotated[list[str], NoDecode, BeforeValidator(_split), AfterValidator(_weighted)]
DeviceName = Annotated[str, AfterValidator(_known_device)]
Folder = Annotated[Path, AfterValidator(Path.expanduser)]

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
