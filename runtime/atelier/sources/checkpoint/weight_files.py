"""Which weight files a folder holds: variants, shards and their index, safetensors beside pickles.

The names are those of diffusers and transformers: `model.safetensors`,
`diffusion_pytorch_model.fp16.safetensors`, `model-00001-of-00003.safetensors` with
`model.safetensors.index.json`. Reading the files is `headers.py`'s work.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atelier.errors import CheckpointError
from atelier.sources.checkpoint.headers import Header, read_header

STEMS = "diffusion_pytorch_model|pytorch_model|model"
WEIGHTS = re.compile(
    rf"(?:{STEMS})(?:\.(?P<variant>[^.]+?))?"
    r"(?:-\d{5}-of-(?P<shards>\d{5}))?(?:\.(?P<old>[^.]+))?"
    r"\.(?P<kind>safetensors|bin)"
)
INDEX = re.compile(
    rf"(?:{STEMS})\.(?P<kind>safetensors|bin)(?:\.(?P<old>[^.]+))?"
    r"\.index(?:\.(?P<variant>[^.]+))?\.json"
)


@dataclass(frozen=True)
class WeightSet:
    """The files of one variant ("" is the plain one) in one format. `problems` are faults of the
    listing."""

    variant: str
    pickle: bool
    files: tuple[Path, ...]
    index: Path | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weights:
    """What one component's files hold together: bytes, elements by type, weights of matrices, and
    what is wrong."""

    files: tuple[Path, ...]
    bytes: int
    dtypes: dict[str, int]
    linear: int
    problems: tuple[str, ...]


def weight_sets(folder: Path) -> list[WeightSet]:
    """Every complete or incomplete set of weights in `folder`, safetensors first, the plain variant
    first."""
    files: dict[tuple[bool, str], list[Path]] = {}
    indexes: dict[tuple[bool, str], Path] = {}
    for path in sorted(folder.iterdir()):
        if match := INDEX.fullmatch(path.name):
            indexes[_key(match)] = path
            files.setdefault(_key(match), [])
        elif match := WEIGHTS.fullmatch(path.name):
            files.setdefault(_key(match), []).append(path)
    return [_weight_set(key, files[key], indexes.get(key)) for key in sorted(files)]


def read_weights(chosen: WeightSet) -> Weights:
    """Read the headers of a set. Pickles have none that could be read safely: their elements are
    counted from the file size, as float16 if the variant says so, else as float32."""
    problems = list(chosen.problems)
    if chosen.pickle:
        size = sum(path.stat().st_size for path in chosen.files)
        problems += [
            f"{path} is empty (0 bytes): fetch it again"
            for path in chosen.files
            if not path.stat().st_size
        ]
        half = "16" in chosen.variant
        elements = size // (2 if half else 4)
        dtypes = {"float16" if half else "float32": elements}
        return Weights(chosen.files, size, dtypes, elements, tuple(problems))
    headers: list[Header] = []
    for path in chosen.files:
        try:
            headers.append(read_header(path))
        except CheckpointError as error:
            problems.append(error.message)
    if chosen.index and len(headers) == len(chosen.files) and not problems:
        problems += _strays(chosen.index, headers)
    dtypes_sum: Counter[str] = Counter()
    for header in headers:
        dtypes_sum.update(header.dtypes)
    total, linear = (
        sum(header.bytes for header in headers),
        sum(header.linear for header in headers),
    )
    return Weights(chosen.files, total, dict(dtypes_sum), linear, tuple(problems))


def pick(sets: Sequence[WeightSet], variant: str, allow_pickle: bool) -> WeightSet | None:
    """The set to load for `variant`: its own files, else the plain ones; safetensors before
    pickles."""
    usable = [one for one in sets if allow_pickle or not one.pickle]
    for wanted in (variant, ""):
        for one in usable:
            if one.variant == wanted:
                return one
    return None


def _key(match: re.Match[str]) -> tuple[bool, str]:
    return match["kind"] == "bin", match["variant"] or match["old"] or ""


def _weight_set(key: tuple[bool, str], files: list[Path], index: Path | None) -> WeightSet:
    pickle, variant = key
    whole = [path for path in files if not _shards(path)]
    if whole:
        return WeightSet(variant, pickle, tuple(whole[:1]))
    if index is None:
        text = f"{files[0].parent}: the index of the shards {files[0].name}, ... is missing"
        return WeightSet(variant, pickle, tuple(files), problems=(text,))
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, AttributeError, TypeError, OSError, RecursionError) as error:
        return WeightSet(
            variant, pickle, tuple(files), index, (f"{index} is not a shard index: {error!r}",)
        )
    if outside:
        return WeightSet(
            variant, pickle, (), index, (f"{index} points outside its folder: {outside[0]!r}",)
        )
    there = [name for name in names if (index.parent / name).exists()]
    problems = tuple(
        f"{index.parent / name} is listed in {index.name} but missing"
        for name in names
        if name not in there
    )
    return WeightSet(variant, pickle, tuple(index.parent / name for name in there), index, problems)


def _shards(path: Path) -> str | None:
    match = WEIGHTS.fullmatch(path.name)
    return match["shards"] if match else None


def _strays(index: Path, headers: list[Header]) -> list[str]:
    """Tensors that the index places in a shard which does not hold them."""
    held = {header.path.name: header.tensors for header in headers}
    wanted: dict[str, str] = json.loads(index.read_text())["weight_map"]
    lost = [name for name, shard in wanted.items() if name not in held[shard]]
    if not lost:
        return []
    return [
        f"{index}: {len(lost)} tensors are not in the shard named for them, first {lost[0]!r} in"
        f" {wanted[lost[0]]}"
    ]
