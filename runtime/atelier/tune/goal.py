"""What a search optimizes, and the bounds a trial must keep."""

from __future__ import annotations

import re

from atelier.bench.figures import Distribution, RunFigures
from atelier.bench.slo import duration
from atelier.errors import SettingsError

RATES = (
    "output_tokens_per_s",
    "requests_per_s",
    "pictures_per_s",
    "megapixels_per_s",
    "goodput_per_s",
)
LATENCIES = ("ttft", "itl", "tpot", "e2e", "preview")
SHARES = ("mean", "p50", "p90", "p95", "p99")
MEASURES = (*RATES, *(f"{name}.{share}" for name in LATENCIES for share in SHARES))
BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
OTHER_BOUNDS = ("memory", "gpu_memory", "agreement", "psnr")
AT_LEAST = ("agreement", "psnr")


def check_goal(name: str) -> str:
    """The goal's name, if it is one.

    Raises:
        ValueError: lists what there is.
    """
    if name not in MEASURES:
        raise ValueError(f"{name!r} is no goal: choose one of {', '.join(MEASURES)}")
    return name


def more_is_better(goal: str) -> bool:
    return goal in RATES


def value_of(goal: str, found: RunFigures) -> float | None:
    """The figure a goal names; None if the run has none of it."""
    name, _, share = goal.partition(".")
    figure: Distribution | float | None = getattr(found, name)
    if isinstance(figure, Distribution):
        return float(getattr(figure, share))
    return figure


def parse_bound(name: str, value: object) -> float:
    """A bound as a number: seconds, bytes, a share, decibels or a rate.

    Raises:
        ValueError: an unknown name, or a value in the wrong unit.
    """
    if name in ("memory", "gpu_memory"):
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB)", str(value))
        if not found:
            raise ValueError(f"{name}={value!r}: write a size such as 20GiB")
        return float(found[1]) * BYTES[found[2]]
    if name in OTHER_BOUNDS or name in RATES:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name}={value!r}: write a number")
        return float(value)
    if name in MEASURES:
        try:
            return duration(str(value))
        except SettingsError as error:
            raise ValueError(f"{name}: {error}") from None
    raise ValueError(f"{name!r} is no bound: choose from {', '.join((*OTHER_BOUNDS, *MEASURES))}")


def excess(name: str, value: float, bound: float) -> float:
    """How far a value is beyond its bound, as a share of it; at most 0: it is kept."""
    beyond = bound - value if name in AT_LEAST or name in RATES else value - bound
    return beyond / abs(bound) if bound else beyond
