"""Percentiles, and where values typically lie by Wilcoxon's signed ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

FEWEST = 8
"""Values below which no interval could tell anything at the level wanted here: that eight
differences have all one sign has p = 2 / 2^8 = 0.008."""
EXACT = 200
"""Up to so many values all outcomes of signed ranks are counted; beyond, they are taken for
normal."""
BISECTIONS = 60
"""Of the values' range, to the last bits of a double."""


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in order, with linear interpolation between neighbours, as numpy has it."""
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True)
class Interval:
    """An estimate, and between what it may lie."""

    middle: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high


def typical(values: Sequence[float], level: float) -> Interval:
    """Where values lie by Hodges and Lehmann, the median of the means of all pairs, and the places
    that Wilcoxon's signed-rank test does not refuse (Hollander, Wolfe and Chicken, Nonparametric
    Statistical Methods, 3.2 and 3.3).

    It holds its level for independent values of any symmetric distribution, as the log ratio of two
    alike is. A few that are far off, which would make an interval for the mean useless, hardly
    change it.

    Args:
        values: at least one.
        level: such as 0.95.

    Returns:
        An endless one for so few values that it could hold its level in no other way.
    """
    ordered = np.sort(np.asarray(values, float))
    pairs = len(ordered) * (len(ordered) + 1) // 2
    middle = (_pair_mean(ordered, (pairs + 1) // 2) + _pair_mean(ordered, pairs // 2 + 1)) / 2
    outside = critical_rank_sum(len(ordered), level)
    if outside < 0:
        return Interval(middle, -math.inf, math.inf)
    low, high = _pair_mean(ordered, outside + 1), _pair_mean(ordered, pairs - outside)
    return Interval(middle, low, high)


def critical_rank_sum(size: int, level: float) -> int:
    """The largest sum of the ranks of one sign that the two-sided signed-rank test refuses for
    this many values; -1 if there is none."""
    outside = (1 - level) / 2
    total = size * (size + 1) // 2
    if size > EXACT:
        spread = math.sqrt(size * (size + 1) * (2 * size + 1) / 24)
        return math.floor(total / 2 + NormalDist().inv_cdf(outside) * spread)
    ways = np.zeros(total + 1)
    ways[0] = 1
    for rank in range(1, size + 1):
        ways[rank:] += ways[:-rank].copy()
    return int(np.searchsorted(np.cumsum(ways), outside * 2.0**size, side="right")) - 1


def _pair_mean(ordered: np.ndarray, place: int) -> float:
    """The mean at this place, from 1, in the order of the means of all pairs, each value with
    itself included. Found by bisection: thousands of values have millions of pairs."""
    below, bound = float(ordered[0]), float(ordered[-1])
    if place == 1:
        return below
    for _ in range(BISECTIONS):
        tried = (below + bound) / 2
        both_ways = np.searchsorted(ordered, 2 * tried - ordered, side="right").sum()
        with_itself = np.searchsorted(ordered, tried, side="right")
        if (both_ways + with_itself) // 2 >= place:
            bound = tried
        else:
            below = tried
    # The bound is a hair above it, which would matter where it is 0: rounds that were equal.
    partner = np.searchsorted(ordered, 2 * bound - ordered, side="right") - 1
    return float(((ordered + ordered[partner]) / 2)[partner >= 0].max())
