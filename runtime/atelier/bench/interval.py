"""Percentiles, and an interval for a mean by the studentized bootstrap."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 2000
FEWEST = 5
"""Values below which an interval would pretend to know."""


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in order, with linear interpolation between neighbours, as numpy has it."""
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie."""

    mean: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high


def mean_interval(values: Sequence[float], level: float, seed: int = 0) -> Interval:
    """An interval for the mean of independent values, by the bootstrap-t method (Efron and
    Tibshirani, An Introduction to the Bootstrap, 12.5), which keeps its level where the plain
    percentile bootstrap of few values is too narrow.

    Args:
        level: such as 0.95.

    Returns:
        An endless one for fewer than FEWEST values.
    """
    mean = statistics.fmean(values) if values else 0.0
    if len(values) < FEWEST:
        return Interval(mean, float("-inf"), float("inf"))
    error = _standard_error(values, mean)
    if error == 0:
        return Interval(mean, mean, mean)
    chance = random.Random(seed)
    deviations = []
    for _ in range(RESAMPLES):
        drawn = chance.choices(values, k=len(values))
        centre = statistics.fmean(drawn)
        spread = _standard_error(drawn, centre)
        if spread > 0:  # all drawn alike: no deviation to speak of
            deviations.append((centre - mean) / spread)
    deviations.sort()
    outside = 100 * (1 - level) / 2
    upper, lower = percentile(deviations, 100 - outside), percentile(deviations, outside)
    return Interval(mean, mean - upper * error, mean - lower * error)


def _standard_error(values: Sequence[float], mean: float) -> float:
    squares = sum((value - mean) ** 2 for value in values)
    return float((squares / (len(values) - 1) / len(values)) ** 0.5)
