"""The outlines of the shapes as level functions: negative inside, positive outside, in units of the
half extent.

Plain arithmetic throughout, so that the same lines run on numpy arrays (checker) and torch tensors
(drawing). Every shape lies in the box [-1, 1] x [-1, 1], y pointing down; near its outline the
level is close to the distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Array = Any  # a numpy array or a torch tensor; both carry the operators used here


def _larger(a: Array, b: Array) -> Array:
    return (a + b + abs(a - b)) * 0.5


def _smaller(a: Array, b: Array) -> Array:
    return (a + b - abs(a - b)) * 0.5


def _length(x: Array, y: Array) -> Array:
    return (x * x + y * y) ** 0.5


def circle(x: Array, y: Array) -> Array:
    return _length(x, y) - 1.0


def square(x: Array, y: Array) -> Array:
    return _larger(abs(x), abs(y)) - 0.88


def triangle(x: Array, y: Array) -> Array:
    """Apex (0, -0.92), base from (-1, 0.84) to (1, 0.84)."""
    slope = math.hypot(1.0, 1.76)
    return _larger(y - 0.84, (1.76 * abs(x) - y - 0.92) / slope)


def diamond(x: Array, y: Array) -> Array:
    return (abs(x) + abs(y) - 1.0) / math.sqrt(2.0)


def star(x: Array, y: Array) -> Array:
    """A pentagram: the points that at most one of its five edges' lines leaves outside."""
    inner = math.cos(2.0 * math.pi / 5.0)
    y = y - 0.05
    levels = []
    for k in range(5):
        angle = math.pi / 2.0 + 2.0 * math.pi * k / 5.0
        levels.append((x * math.cos(angle) + y * math.sin(angle)) / 1.05 - inner)
    first, second = _larger(levels[0], levels[1]), _smaller(levels[0], levels[1])
    for level in levels[2:]:
        second = _larger(second, _smaller(first, level))
        first = _larger(first, level)
    return second * 1.05


def heart(x: Array, y: Array) -> Array:
    """A square on its tip and a disc on each of its upper edges."""
    half = 1.0 / 1.2071
    x, y = abs(x), y - 0.085
    tip = (x + abs(y) - half) / math.sqrt(2.0)
    disc = _length(x - half / 2.0, y + half / 2.0) - half / math.sqrt(2.0)
    return _smaller(tip, disc)


def cross(x: Array, y: Array) -> Array:
    across = _larger(abs(x) - 0.98, abs(y) - 0.34)
    upright = _larger(abs(x) - 0.34, abs(y) - 0.98)
    return _smaller(across, upright)


FORMS: dict[str, Callable[[Array, Array], Array]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "diamond": diamond,
    "star": star,
    "heart": heart,
    "cross": cross,
}
