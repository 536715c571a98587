"""The load at which a server is full, found by stepping the load up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from pydantic import BaseModel

from atelier.bench.figures import RunFigures
from atelier.bench.load import OfferedLoad

GAIN = 1.1
"""Twice the load has to bring this much more; less is saturation."""
KEPT_UP = 0.9
"""Of the offered rate that an open loop's server must complete."""
GOOD = 0.9
"""Of the requests that must be within the bounds of --slo, if there are any."""
STEPS = 12


class Saturation(BaseModel):
    """`load` is the largest that was still served well; `reason` says what ended the search."""

    load: str
    throughput: float
    unit: str
    reason: str


Level = Callable[[OfferedLoad], Awaitable[RunFigures]]


def throughput(figures: RunFigures) -> tuple[float, str]:
    """What a level got done, and its unit."""
    if figures.megapixels_per_s:
        return figures.megapixels_per_s, "megapixels/s"
    return figures.output_tokens_per_s or 0.0, "output tokens/s"


async def search(level: Level, load: OfferedLoad) -> Saturation:
    """Double the users, or the rate, until the server is full.

    Args:
        level: measures one load and keeps what it finds.
    """
    best: tuple[OfferedLoad, float, str] | None = None
    for _ in range(STEPS):
        found = await level(load)
        done, unit = throughput(found)
        reason = _full(load, found, best[1] if best else 0.0, done)
        if reason:
            held, most, unit = best or (load, done, unit)
            return Saturation(load=held.title, throughput=most, unit=unit, reason=reason)
        best = load, done, unit
        load = _doubled(load)
    assert best
    return Saturation(
        load=best[0].title,
        throughput=best[1],
        unit=best[2],
        reason=f"{STEPS} steps were not enough",
    )


def _full(load: OfferedLoad, found: RunFigures, before: float, done: float) -> str:
    failed = sum(found.errors.values())
    if failed:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in found.errors.items())
        return f"at {load.title} {failed} of {found.requests} requests failed: {kinds}"
    if found.good_share is not None and found.good_share < GOOD:
        return f"at {load.title} {found.good_share:.0%} of requests kept the bounds"
    if load.rate is not None:
        if found.requests_per_s < KEPT_UP * load.rate:
            return f"at {load.title} {found.requests_per_s:.2f}/s were completed"
    elif before and done < GAIN * before:
        return f"{load.title} brought {done / before:.2f} times as much as half of them"
    return ""


def _doubled(load: OfferedLoad) -> OfferedLoad:
    if load.rate is not None:
        return load.model_copy(update={"rate": load.rate * 2, "requests": load.requests * 2})
    users = (load.users or 1) * 2
    return load.model_copy(update={"users": users, "requests": max(load.requests, 4 * users)})
