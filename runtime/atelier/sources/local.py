"""Weights that are on this machine already: a folder, a mounted volume, a single file, or a
built-in model."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from atelier.errors import SourceError
from atelier.sources.landing import check_space, land

BUILT_IN = ("builtin/shapes", "builtin/scenes", "builtin/shapes/edges", "builtin/shapes/x2")


def built_in(name: str) -> Path | None:
    """The folder of a built-in model in this package; None if `name` is no built-in model.

    Raises:
        SourceError: this installation lacks the model's folder.
    """
    if name not in BUILT_IN:
        return None
    package = importlib.util.find_spec("atelier.builtin")
    for folder in (package.submodule_search_locations or ()) if package else ():
        found = Path(folder) / name.partition("/")[2]
        if found.is_dir():
            return found
    raise SourceError(f"MODEL_ID={name}: the built-in model is not part of this installation")


def copy(path: Path, into: Path) -> Path:
    """Copy a folder or a file into the folder `into`, whole or not at all; returns the copy of
    `path`."""
    path = path.resolve()
    if path.is_file():
        files = {path.name: path}
    else:
        files = {
            str(one.relative_to(path)): one for one in sorted(path.rglob("*")) if one.is_file()
        }
    versions = {
        name: f"{one.stat().st_size}-{one.stat().st_mtime_ns}" for name, one in files.items()
    }

    def fill(staging: Path) -> None:
        check_space(staging, sum(one.stat().st_size for one in files.values()), str(path))
        for name, one in files.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(one, staging / name)

    land(into, str(path), versions, fill)
    return into / path.name if path.is_file() else into
