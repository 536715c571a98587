"""What a picture can show: coloured things, the relations between them, a background, and the
held-out split.

Leaves words to `prompts`, places and pixels to `draw`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

# sRGB, 0..255. Far enough apart that the nearest one is never in doubt in a drawn picture.
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 220, 20),
    "green": (30, 160, 50),
    "cyan": (40, 210, 220),
    "blue": (30, 60, 210),
    "purple": (130, 40, 170),
    "pink": (255, 130, 190),
    "black": (15, 15, 15),
    "white": (250, 250, 250),
}
COLOURS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross")
SIZES = ("small", "large")
RELATIONS = ("above", "below", "left of", "right of")
OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class Thing:
    """One object. None means that the prompt leaves it open."""

    colour: str | None
    shape: str | None
    size: str | None = None


@dataclass(frozen=True)
class Relation:
    """`things[subject]` is `name` `things[object]`."""

    subject: int
    name: str
    object: int


@dataclass(frozen=True)
class Scene:
    """One to three things on a background. Relation k ties thing k + 1 to an earlier one."""

    things: tuple[Thing, ...]
    relations: tuple[Relation, ...] = ()
    background: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.things) <= 3:
            raise ValueError(f"a scene has 1 to 3 things, not {len(self.things)}")
        for thing in self.things:
            _known("colour", thing.colour, COLOURS)
            _known("shape", thing.shape, SHAPES)
            _known("size", thing.size, SIZES)
        for relation in self.relations:
            _known("relation", relation.name, RELATIONS)
            if not {relation.subject, relation.object} <= set(range(len(self.things))):
                raise ValueError(
                    f"{relation} names a thing that is not among the {len(self.things)} of the"
                    " scene"
                )
        _known("background", self.background, COLOURS)


def _known(field: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise ValueError(f"{field} {value!r} is not one of {', '.join(allowed)}")


def combinations(scene: Scene) -> Iterator[str]:
    """What the split counts as one combination: thing on background, or thing in relation to thing.

    "A below B" and "B above A" are the same combination. Sizes do not count, nor does the
    background of several things.
    """
    if len(scene.things) == 1:
        thing = scene.things[0]
        yield f"{thing.colour} {thing.shape} on {scene.background}"
    for relation in scene.relations:
        subject, name, other = (
            scene.things[relation.subject],
            relation.name,
            scene.things[relation.object],
        )
        if name in ("below", "right of"):
            subject, name, other = other, OPPOSITE[name], subject
        yield f"{subject.colour} {subject.shape} {name} {other.colour} {other.shape}"


def is_held_out(scene: Scene) -> bool:
    """True if a combination of the fully specified `scene` is among the tenth that training never
    sees."""
    return any(_held_out(combination) for combination in combinations(scene))


@lru_cache(maxsize=1 << 20)
def _held_out(combination: str) -> bool:
    digest = hashlib.blake2b(combination.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


def random_scene(
    rng: random.Random, count: int | None = None, held_out: bool | None = None
) -> Scene:
    """A fully specified scene of `count` things (drawn if None), of one side of the split (either
    if None)."""
    while True:
        scene = _any_scene(rng, count or rng.choice((1, 2, 2, 3, 3)))
        if held_out is None or is_held_out(scene) == held_out:
            return scene


def _any_scene(rng: random.Random, count: int) -> Scene:
    background = rng.choice(COLOURS)
    things: list[Thing] = []
    while len(things) < count:
        colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
        # Two alike would make the prompt ambiguous; one in the background's colour could not be
        # seen.
        if colour == background or any((t.colour, t.shape) == (colour, shape) for t in things):
            continue
        size = rng.choice((None, None, *SIZES))
        if size == "large" and count == 3 and any(t.size == "large" for t in things):
            size = None  # two large ones and a third do not fit side by side
        things.append(Thing(colour, shape, size))
    relations: list[Relation] = []
    if count > 1:
        relations.append(Relation(0, rng.choice(RELATIONS), 1))
    if count == 3:
        chained = rng.random() < 0.5
        # Two things on one side of the third would crowd it: "A above B and above C", "A above B
        # below C".
        crowding = OPPOSITE[relations[0].name] if chained else relations[0].name
        names = tuple(name for name in RELATIONS if name != crowding)
        relations.append(Relation(int(chained), rng.choice(names), 2))
    return Scene(tuple(things), tuple(relations), background)
