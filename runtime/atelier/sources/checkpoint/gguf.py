"""GGUF files, the form of llama.cpp: which of a folder's or a repository's are a model.

A model is one file, or parts named `NAME-00001-of-00003.gguf`. Projectors of pictures
(`mmproj-*.gguf`) and matrices of importance are none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-\d{5}\.gguf", re.IGNORECASE)
NO_MODEL = re.compile(r"(.*[-_.])?(mmproj|imatrix)([-_.].*)?", re.IGNORECASE)
MAGIC = b"GGUF"


def models_of(files: Iterable[str]) -> dict[str, list[str]]:
    """Models by name, each with its files in order; `files` are paths below a folder."""
    found: dict[str, list[str]] = {}
    for file in sorted(files):
        name = file.rpartition("/")[2]
        if not name.lower().endswith(".gguf") or name.startswith(".") or NO_MODEL.fullmatch(name):
            continue
        part = PART.fullmatch(file)
        found.setdefault(part["name"] if part else file[: -len(".gguf")], []).append(file)
    return found


def chosen(files: Iterable[str], variant: str) -> list[str]:
    """The files of the one model, or of the one whose name holds `variant` (`Q4_K_M`, say); none if
    there is none.

    Raises:
        ValueError: there are several, or none of that variant; the message names them and VARIANT.
    """
    models = models_of(files)
    fitting = [name for name in models if variant.lower() in name.lower()]
    if len(fitting) == 1:
        return models[fitting[0]]
    if not models:
        return []
    several = ", ".join(sorted(fitting or models))
    if fitting:
        raise ValueError(
            f"there are several GGUF models: set VARIANT to a part of one of {several}"
        )
    raise ValueError(f"VARIANT={variant} is in the name of no GGUF model; there are {several}")


def fault_in(file: Path) -> str:
    """What is wrong with a file, or empty."""
    try:
        with file.open("rb") as opened:
            return "" if opened.read(len(MAGIC)) == MAGIC else f"{file} is no GGUF file"
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}"
