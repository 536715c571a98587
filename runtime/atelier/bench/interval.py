"""Percentiles, an interval for a mean by the studentized bootstrap, and the signed-rank test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
FEWEST = 8
"""Values below which neither an interval nor a test could tell anything at the level wanted here:
of eight differences all of one sign, the signed-rank test has p = 2 / 2^8 = 0.008."""
EXACT = 50
"""Up to so many values the signed-rank test counts all outcomes; beyond, it takes the normal
distribution."""


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
    mean = float(np.mean(values)) if values else 0.0
    if len(values) < FEWEST:
        return Interval(mean, -math.inf, math.inf)
    seen = np.asarray(values)
    error = float(seen.std(ddof=1)) / math.sqrt(len(seen))
    if error == 0:
        return Interval(mean, mean, mean)
    drawn = np.random.default_rng(seed).choice(seen, (RESAMPLES, len(seen)))
    errors = drawn.std(axis=1, ddof=1) / math.sqrt(len(seen))
    told = errors > 0  # all drawn alike: no deviation to speak of
    deviations = (drawn.mean(axis=1)[told] - mean) / errors[told]
    outside = 100 * (1 - level) / 2
    upper, lower = np.percentile(deviations, [100 - outside, outside])
    return Interval(mean, mean - float(upper) * error, mean - float(lower) * error)


def signed_rank(values: Sequence[float]) -> float:
    """The two-sided p of Wilcoxon's signed-rank test that values lie around zero. It holds its
    level whatever their distribution, if that is symmetric, as the log ratio of two alike is."""
    there = np.asarray([value for value in values if value != 0])
    if not len(there):
        return 1.0
    size = len(there)
    ranks = np.empty(size)
    ranks[np.argsort(np.abs(there))] = np.arange(1, size + 1)
    total = size * (size + 1) / 2
    least = min(float(ranks[there > 0].sum()), float(ranks[there < 0].sum()))
    if size > EXACT:
        spread = math.sqrt(size * (size + 1) * (2 * size + 1) / 24)
        return min(1.0, math.erfc((total / 2 - least) / spread / math.sqrt(2)))
    ways = np.zeros(int(total) + 1)
    ways[0] = 1
    for rank in range(1, size + 1):
        ways[rank:] += ways[:-rank].copy()
    return min(1.0, 2 * float(ways[: int(least) + 1].sum()) / 2.0**size)
