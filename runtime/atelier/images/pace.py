"""How fast each shape runs, by the number of rows in a call, and from that the knee: the number of
rows beyond which more of them in one call no longer draw more pictures a second.

Nothing here knows a device. Every call that was run adds to the record; the warm-up's are the
first. Row counts are looked at by powers of two, since half as many rows is the question that
matters, and because requests bring one row or two. A size that was never drawn begins at the knee
of the one nearest to it, at equal pixels a call: each row count that is tried costs a recording.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Hashable
from typing import Any

Lane = tuple[Hashable, str]
"""What a call's time depends on, but for its rows: the kind of request, and the stage."""

GAIN = 1.05  # twice the rows must draw at least this many times the rows a second
ENOUGH = 3  # calls until a row count is believed: the first may have compiled or allocated
KEPT = 9  # calls whose median counts
SIZES = 16  # measured last, by which others are guessed: clients may ask for thousands
RETRY = 1000  # calls of a lane, after which larger row counts are tried afresh
GUESS = 1e-7  # seconds for a pixel and row of a step, before anything was measured


class Level:
    """Calls of about the same number of rows, in rows a second: `rate` is the last ones' median,
    which is what to expect; `best` a high one, since neighbours on the machine only slow a call,
    and comparing is about the call."""

    def __init__(self) -> None:
        self.rate = self.best = 0.0
        self._rates: deque[float] = deque(maxlen=KEPT)

    def saw(self, rate: float) -> None:
        self._rates.append(rate)
        self.rate = statistics.median(self._rates)
        self.best = sorted(self._rates)[-1 - len(self._rates) // 4]

    @property
    def told(self) -> dict[str, float]:
        return {"rate": self.rate, "best": self.best, "calls": len(self._rates)}

    @property
    def believed(self) -> bool:
        return len(self._rates) >= ENOUGH


class Pace:
    """Rows a second of every lane, by powers of two of the rows in a call."""

    def __init__(self, most_rows: int) -> None:
        self._most_rows = most_rows
        self._levels: dict[Lane, dict[int, Level]] = {}
        self._sizes: dict[Lane, int] = {}
        self._calls: dict[Lane, int] = {}
        self._per_pixel: deque[float] = deque(maxlen=KEPT)
        self._each_pixel = GUESS

    def saw(self, lane: Lane, rows: int, seconds: float, pixels: int = 0) -> None:
        """A call of this many rows took `seconds`; `pixels` of one picture let kinds that were
        never run be guessed."""
        levels = self._levels.setdefault(lane, {})
        level = levels.setdefault(_level(rows), Level())
        level.saw(rows / max(seconds, 1e-9))
        if pixels and lane[1] == "denoise":
            if level.believed:
                self._sizes.pop(lane, None)
                self._sizes[lane] = pixels
                if len(self._sizes) > SIZES:
                    del self._sizes[next(iter(self._sizes))]
            self._per_pixel.append(seconds / rows / pixels)
            self._each_pixel = statistics.median(self._per_pixel)
        self._calls[lane] = self._calls.get(lane, 0) + 1
        if self._calls[lane] % RETRY == 0:
            for above in [one for one in levels if 2**one > self.knee(lane, 1)]:
                del levels[above]

    def knee(self, lane: Lane, own: int, pixels: int = 0) -> int:
        """Rows that a call may have. `own` is what one request brings, the least that makes sense;
        `pixels` are those of one picture, where other sizes tell something of this one.

        From the fewest rows that were measured upwards: as long as more rows draw more a second,
        more it is. A count that was not measured yet is tried, which costs a few calls of at most
        twice the time.
        """
        level, further = self._climbed(lane, _level(own))
        if level is None:
            level = max(_level(own), self._guess(lane, pixels))
        elif further:
            level += 1
        return max(own, min(self._most_rows, 2 ** (level + 1) - 1))

    def _climbed(self, lane: Lane, lowest: int) -> tuple[int | None, bool]:
        """The level up to which more rows were seen to draw more a second, from the first measured
        one at or above `lowest`, if there is any; and whether the next is still to be tried."""
        levels = self._levels.get(lane, {})
        level = None
        for above in sorted(each for each in levels if each >= lowest and levels[each].believed):
            if level is not None and levels[above].best < GAIN * levels[level].best:
                return level, False
            level = above
        return level, level is not None and 2 ** (level + 1) <= self._most_rows

    def _guess(self, lane: Lane, pixels: int) -> int:
        """The level at which the call of a size that was not measured has as many pixels as that of
        the nearest size at its knee; 0 if no size was."""
        if not pixels or lane[1] != "denoise" or not self._sizes:
            return 0
        nearest = min(self._sizes, key=lambda one: abs(math.log(self._sizes[one] / pixels)))
        level = self._climbed(nearest, 0)[0] or 0
        own = level + round(math.log2(self._sizes[nearest] / pixels))
        return min(max(0, own), _level(self._most_rows))

    def seconds(self, lane: Lane, rows: int, pixels: int) -> float:
        """What a call of this many rows takes: as measured for this many or the nearest number, or
        guessed by the pixels of other sizes. Stages other than the denoiser that were never run
        count as nothing."""
        levels = self._levels.get(lane, {})
        if not levels:
            if lane[1] != "denoise":
                return 0.0
            return self._each_pixel * pixels * rows
        nearest = min(levels, key=lambda level: (abs(level - _level(rows)), level))
        return rows / levels[nearest].rate

    def table(self) -> list[dict[str, Any]]:
        """What was learnt, a line for each stage and level: `rows` from which on it counts, rows a
        second as expected and at best, and of how many calls."""
        return [
            {"stage": lane[1], "rows": 2**level, **found.told}
            for lane, levels in self._levels.items()
            for level, found in sorted(levels.items())
        ]


def _level(rows: int) -> int:
    """1 for 2 or 3 rows, 2 for 4 to 7, and so on."""
    return max(1, rows).bit_length() - 1
