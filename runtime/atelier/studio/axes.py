"""The axes of a contact sheet: what a row or a column stands for, and the values that people write
for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from atelier.errors import InvalidRequest
from atelier.studio.board import Tile
from atelier.studio.parameters import PictureParameters

MOST_TILES = 64


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def _adapters(text: str) -> dict[str, float]:
    """`none`, or `name=weight` entries joined by `+`."""
    if text.lower() == "none":
        return {}
    found = {}
    for entry in text.split("+"):
        name, _, weight = entry.strip().partition("=")
        found[name.strip()] = float(weight or 1)
    return found


@dataclass(frozen=True)
class AxisKind:
    """What can vary: the field, how a value is read, and an example."""

    field: str
    read: Callable[[str], Any]
    example: str


KINDS: Mapping[str, AxisKind] = {
    "seed": AxisKind("seed", _count, "1, 2, 3, 4"),
    "steps": AxisKind("num_inference_steps", _count, "8, 16, 28"),
    "guidance": AxisKind("guidance_scale", float, "1, 4, 7.5"),
    "scheduler": AxisKind("scheduler", str, "EulerDiscreteScheduler, DDIMScheduler"),
    "adapters": AxisKind("lora", _adapters, "none, detail=0.8, detail=0.5+ink=1"),
}
NOTHING = "nothing"


@dataclass(frozen=True)
class SheetAxis:
    """One axis: a label, and for each value its words and the parameters that it changes."""

    label: str
    values: tuple[tuple[str, dict[str, Any]], ...]

    @classmethod
    def parse(cls, kind: str, text: str) -> SheetAxis:
        """Values separated by commas.

        Raises:
            InvalidRequest: there is none, or one cannot be read.
        """
        if kind == NOTHING:
            return cls("", (("", {}),))
        how = KINDS[kind]
        words = [word.strip() for word in text.split(",") if word.strip()]
        if not words:
            raise InvalidRequest(f"{kind}: give values, such as {how.example}")
        values = []
        for word in words:
            try:
                values.append((word, {how.field: how.read(word)}))
            except ValueError:
                raise InvalidRequest(
                    f"{kind}: {word!r} cannot be read; write values such as {how.example}"
                ) from None
        return cls(kind, tuple(values))


def tiles(base: PictureParameters, rows: SheetAxis, columns: SheetAxis) -> list[Tile]:
    """A tile for every pair, row by row.

    Raises:
        InvalidRequest: too many, or both axes are the same.
    """
    if rows.label and rows.label == columns.label:
        raise InvalidRequest(f"both axes are {rows.label}; choose another for one of them")
    count = len(rows.values) * len(columns.values)
    if count > MOST_TILES:
        raise InvalidRequest(f"{count} pictures; a sheet has at most {MOST_TILES}")
    return [
        Tile(PictureParameters.model_validate(base.model_dump() | across | down))
        for (_, down), (_, across) in product(rows.values, columns.values)
    ]
