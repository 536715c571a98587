"""Upscalers of UPSCALERS, looked at by their headers: which network a file holds, how much it
enlarges, and what it takes of a device.

Read are the networks of ESRGAN (arXiv:1809.00219) in both names that its weights go by, of
Real-ESRGAN (arXiv:2107.10833), and its compact one, SRVGGNet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from atelier.errors import CheckpointError
from atelier.sources.checkpoint.headers import StoredTensor, read_header
from atelier.sources.checkpoint.listing import is_safetensors, safetensors_in

VARIABLE = "UPSCALERS"

PREFIX = re.compile(r"^(params_ema|params|module|generator)\.")
"""What training programs put before every name."""

FLOAT32_BYTES = 4
TILE = 192
"""Pixels along an edge of what the network is given at once, `OVERLAP` of them on each side."""

TILES = 2
"""Of one call."""

OVERLAP = 32
ARRAYS = 4
"""Arrays of a tile at full size and of the network's width that are alive at the peak: the one
before a convolution, the one behind it, its workspace, and the tile before."""

MARGIN = 1.25


@dataclass(frozen=True)
class UpscalerFile:
    """A network: `width` and `growth` are channels, `shuffle` how much it folds a picture first."""

    name: str
    path: Path
    kind: Literal["rrdb", "compact"]
    scale: int
    blocks: int
    width: int
    growth: int = 0
    shuffle: int = 1
    parameters: int = 0

    @property
    def bytes(self) -> int:
        """What it takes of a device at most, in float32, with tiles at work."""
        side = TILE * (self.scale if self.kind == "rrdb" else 1)
        work = (
            MARGIN * TILES * ARRAYS * side * side * (self.width + 4 * self.growth // self.scale**2)
        )
        return FLOAT32_BYTES * (self.parameters + int(work))


def inspect_upscaler(name: str, path: Path) -> UpscalerFile:
    """Read the header of a file, or of the only one in a folder.

    Raises:
        CheckpointError: it is none that is read here; the message says what it is.
    """
    files = [path] if path.is_file() else safetensors_in(path)
    if len(files) != 1 or not is_safetensors(files[0]):
        told = ", ".join(one.name for one in files) or "none"
        raise CheckpointError(
            f"{VARIABLE}: {name} must be one .safetensors file, or a folder with one; {path} has"
            f" {told}: pickles (.pth) are not read, convert them"
        )
    header = read_header(files[0])
    tensors = {plain_name(one): value for one, value in header.tensors.items()}
    found = _rrdb(tensors) or _compact(tensors)
    if found is None:
        first = next(iter(tensors), "nothing")
        raise CheckpointError(
            f"{VARIABLE}: {name}: {files[0].name} is no network that is read here (ESRGAN,"
            f" Real-ESRGAN, compact SRVGGNet); its first tensor is {first!r}"
        )
    parameters = sum(header.dtypes.values())
    kind, scale, blocks, width, growth, shuffle = found
    return UpscalerFile(name, files[0], kind, scale, blocks, width, growth, shuffle, parameters)


Found = tuple[Literal["rrdb", "compact"], int, int, int, int, int]


def plain_name(tensor: str) -> str:
    """A tensor's name in the names of Real-ESRGAN's code, whichever it goes by."""
    return PREFIX.sub("", tensor)


def in_new_names(tensors: Mapping[str, StoredTensor] | Mapping[str, object]) -> dict[str, str]:
    """ESRGAN's first names to those of Real-ESRGAN's code; names that are new already stay."""
    tops = sorted(
        {int(match[1]) for one in tensors if (match := re.match(r"model\.(\d+)\.weight$", one))}
    )
    if not tops or "model.1.sub.0.RDB1.conv1.0.weight" not in tensors:
        return {one: one for one in tensors}
    ends = [*(f"conv_up{index + 1}" for index in range(len(tops) - 3)), "conv_hr", "conv_last"]
    named = dict(zip(tops, ["conv_first", *ends], strict=True))
    found = {}
    for one in tensors:
        match = re.match(r"model\.(\d+)\.(weight|bias)$", one)
        inner = re.match(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(\w+)$", one)
        trunk = re.match(r"model\.1\.sub\.\d+\.(weight|bias)$", one)
        if match:
            found[one] = f"{named[int(match[1])]}.{match[2]}"
        elif inner:
            found[one] = f"body.{inner[1]}.rdb{inner[2]}.conv{inner[3]}.{inner[4]}"
        else:
            found[one] = f"conv_body.{trunk[1]}" if trunk else one
    return found


def _rrdb(tensors: Mapping[str, StoredTensor]) -> Found | None:
    shapes = {new: tensors[old].shape for old, new in in_new_names(tensors).items()}
    first, inner = shapes.get("conv_first.weight"), shapes.get("body.0.rdb1.conv1.weight")
    if not first or not inner or "conv_last.weight" not in shapes:
        return None
    blocks = 1 + max(int(one.split(".")[1]) for one in shapes if one.startswith("body."))
    shuffle = math.isqrt(first[1] // 3)
    ups = sum(one.startswith("conv_up") and one.endswith("weight") for one in shapes)
    scale = 2**ups // shuffle
    return ("rrdb", scale, blocks, first[0], inner[0], shuffle) if scale else None


def _compact(tensors: Mapping[str, StoredTensor]) -> Found | None:
    numbers = [
        int(match[1]) for one in tensors if (match := re.fullmatch(r"body\.(\d+)\.weight", one))
    ]
    if not numbers or "body.1.weight" not in tensors:
        return None
    first, last = (tensors[f"body.{index}.weight"].shape for index in (0, max(numbers)))
    scale = math.isqrt(last[0] // 3)
    sound = len(first) == 4 and len(last) == 4 and first[1] == 3 and last[0] == 3 * scale**2
    return ("compact", scale, max(numbers) // 2 - 1, first[0], 0, 1) if sound else None
