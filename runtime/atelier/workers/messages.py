"""What front and worker say to each other: plain data, pickled over a socket pair of their own.

The socket pair is made before the worker is forked and has no name, so nobody else can speak on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from atelier.errors import AtelierError
from atelier.events import Event
from atelier.images.request import ImageRequest
from atelier.text.request import TextRequest


@dataclass(frozen=True)
class DrawPicture:
    """To the worker: draw this. `number` names the request in all that follows."""

    number: int
    request: ImageRequest


@dataclass(frozen=True)
class Check:
    """To the worker: would this be drawn? Answered by `Admitted` or `Refused`."""

    number: int
    request: ImageRequest


@dataclass(frozen=True)
class Generate:
    """To the worker: answer this."""

    number: int
    request: TextRequest


@dataclass(frozen=True)
class Ask:
    """To the worker: call this method of its model, and answer with `Answered` or `Refused`."""

    number: int
    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Answered:
    """To the front: what the method returned."""

    number: int
    value: Any


@dataclass(frozen=True)
class Cancel:
    """To the worker: drop this request before its next step."""

    number: int


@dataclass(frozen=True)
class Withdraw:
    """To the worker: give this request back if no work has been done on it yet."""

    number: int


@dataclass(frozen=True)
class Stop:
    """To the worker: end. What still runs fails."""


@dataclass(frozen=True)
class Admitted:
    """To the front: the request fits the model; its events follow, if it is to be run. `extra` is
    what the front needs to read them."""

    number: int
    extra: Any = None


@dataclass(frozen=True)
class Refused:
    """To the front: the request was not taken."""

    number: int
    error: AtelierError


@dataclass(frozen=True)
class Withdrawn:
    """To the front: the request is given back; no event of it follows."""

    number: int


@dataclass(frozen=True)
class Happened:
    """To the front: an event of a request."""

    number: int
    event: Event


@dataclass(frozen=True)
class Observed:
    """To the front: a call of the engine's observer, by method name."""

    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Loading:
    """To the front: what the start is doing now."""

    progress: str


@dataclass(frozen=True)
class ModelLoaded:
    """To the front: requests can be served. `traits` are what protocols ask of a model; `devices`
    is how many devices this machine offers to workers."""

    traits: dict[str, Any]
    device: str
    devices: int


@dataclass(frozen=True)
class Unable:
    """To the front: the start failed for a reason that a second start will not change."""

    error: AtelierError


@dataclass(frozen=True)
class Beat:
    """To the front, every second: a sign of life. `busy_s` is how long the device has been at the
    call that runs now, `longest_s` the longest one so far; `memory` is (used, free) bytes,
    `gauges` what an engine counts."""

    busy_s: float
    longest_s: float
    memory: tuple[int, int] = (0, 0)
    gauges: dict[str, float] = field(default_factory=dict)
