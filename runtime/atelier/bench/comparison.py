"""Two servers, or two results: ratios with intervals, and whether a difference can be seen."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import BaseModel

from atelier.bench.bodies import Talk, conversations
from atelier.bench.driver import Tell, check_tokens, conversations_of, run, silent, warm
from atelier.bench.interval import FEWEST, typical
from atelier.bench.load import OfferedLoad
from atelier.bench.record import Record
from atelier.bench.target import Target

LEVEL = 0.95
"""Confidence that holds for all metrics of a comparison together."""

Of = Callable[[Record], float | None]
PER_REQUEST: dict[str, Of] = {
    "ttft": lambda record: record.ttft,
    "tpot": lambda record: record.tpot,
    "preview": lambda record: record.first_preview,
    "e2e": lambda record: record.seconds,
}


class Effect(BaseModel):
    """What changes from A to B in one metric. Times are in seconds, rates per second; `a` and `b`
    are medians of rounds, `ratio` is what B / A of a round typically is, `difference` B - A. Both
    intervals hold at LEVEL for all metrics of a comparison together."""

    metric: str
    a: float
    b: float
    ratio: float
    ratio_low: float
    ratio_high: float
    difference: float
    difference_low: float
    difference_high: float
    rounds: int
    verdict: Literal["no difference seen", "b is better", "a is better", "too few rounds"]


class Comparison(BaseModel):
    """All metrics of two arms under one load."""

    load: str
    interleaved: bool
    effects: list[Effect]

    @property
    def different(self) -> bool:
        return any(effect.verdict in ("a is better", "b is better") for effect in self.effects)


Pair = tuple[float, float]


def compare(pairs: dict[str, list[Pair]], load: str, interleaved: bool) -> Comparison:
    """Judge each metric on pairs of values of A and B that were measured side by side.

    A difference is seen if the interval of the ratio excludes 1, which is what the signed-rank test
    says of its logarithm: a busy machine's stalls in some rounds neither make nor hide one.
    Intervals are as wide as to keep LEVEL over all metrics (Bonferroni).
    """
    told = {metric: values for metric, values in pairs.items() if values}
    level = 1 - (1 - LEVEL) / max(1, len(told))
    effects = [_effect(metric, values, level) for metric, values in told.items()]
    return Comparison(load=load, interleaved=interleaved, effects=effects)


def _effect(metric: str, pairs: Sequence[Pair], level: float) -> Effect:
    logs = typical([math.log(b / a) for a, b in pairs], level)
    gaps = typical([b - a for a, b in pairs], level)
    less_is_better = not metric.endswith("_per_s")
    verdict: Literal["no difference seen", "b is better", "a is better", "too few rounds"]
    if len(pairs) < FEWEST:
        verdict = "too few rounds"
    elif not logs.excludes(0):
        verdict = "no difference seen"
    else:
        verdict = "b is better" if (logs.middle < 0) == less_is_better else "a is better"
    return Effect(
        metric=metric,
        a=statistics.median(a for a, _ in pairs),
        b=statistics.median(b for _, b in pairs),
        ratio=math.exp(logs.middle),
        ratio_low=math.exp(logs.low),
        ratio_high=math.exp(min(logs.high, 700)),
        difference=gaps.middle,
        difference_low=gaps.low,
        difference_high=gaps.high,
        rounds=len(pairs),
        verdict=verdict,
    )


def block_of(load: OfferedLoad) -> int:
    """Conversations that one arm is asked before the other has its turn: one for one user, enough
    to keep every user busy for two, or some seconds of an open loop."""
    if load.users is not None:
        return 1 if load.users == 1 else 2 * load.users
    return max(8, 2 * load.burst, round(2 * (load.rate or 4)))


async def interleave(
    a: Target, b: Target, load: OfferedLoad, tell: Tell = silent
) -> tuple[list[Record], Comparison]:
    """Ask both servers the same requests, block by block, in an order that chance decides and that
    is balanced, so that what else the machine does falls on both alike."""
    count = conversations_of(load)
    talks = {
        "a": await conversations(load, a, count, "first"),
        "b": await conversations(load, b, count, "other"),
    }
    targets = {"a": a, "b": b}
    for target in targets.values():
        await warm(target, load)
    size = block_of(load)
    starts = list(range(0, len(talks["a"]), size))
    orders = [("a", "b"), ("b", "a")] * (len(starts) // 2 + 1)
    orders = orders[: len(starts)]
    random.Random(load.seed).shuffle(orders)
    start = time.perf_counter()
    records: list[Record] = []
    for number, (begin, order) in enumerate(zip(starts, orders, strict=True)):
        if time.perf_counter() - start >= load.seconds:
            break
        for arm in order:
            block = _from_zero(talks[arm][begin : begin + size])
            heard = await run(targets[arm], block, load, arm, start, tell)
            for record in heard:
                record.round = number
            records += heard
    for arm, target in targets.items():
        await check_tokens(target, load, [record for record in records if record.arm == arm])
    return records, compare(paired(records), load.title, interleaved=True)


def _from_zero(block: list[Talk]) -> list[Talk]:
    """A block of an open loop with its first moment now."""
    first = block[0].at
    if first is not None:
        for talk in block:
            talk.at = (talk.at or first) - first
    return block


def paired(records: Sequence[Record]) -> dict[str, list[Pair]]:
    """For each metric the mean of A and of B in every round where both have one, and the rate at
    which the round was worked off."""
    rounds = sorted({record.round for record in records})
    found: dict[str, list[Pair]] = {name: [] for name in (*PER_REQUEST, "tokens_per_s")}
    found["megapixels_per_s"] = []
    for number in rounds:
        arms = [
            [one for one in records if one.round == number and one.arm == arm and one.ok]
            for arm in ("a", "b")
        ]
        for name, of in PER_REQUEST.items():
            _add(found[name], *(_mean([of(record) for record in arm]) for arm in arms))
        _add(
            found["tokens_per_s"], *(_rate(arm, lambda one: one.output_tokens or 0) for arm in arms)
        )
        _add(found["megapixels_per_s"], *(_rate(arm, lambda one: one.pixels / 1e6) for arm in arms))
    return found


def _add(pairs: list[Pair], a: float | None, b: float | None) -> None:
    if a and b:
        pairs.append((a, b))


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None


def _rate(records: Sequence[Record], amount: Callable[[Record], float]) -> float | None:
    if not records:
        return None
    seconds = max(one.ended for one in records) - min(one.begun for one in records)
    return sum(map(amount, records)) / seconds if seconds > 0 else None


def from_results(a: Sequence[Record], b: Sequence[Record], load: str) -> Comparison:
    """Two runs that were made apart: requests are paired by their place, where both have it. What
    the machine did meanwhile is in the difference too."""
    other = {(one.index, one.turn): one for one in b if one.ok}
    pairs: dict[str, list[Pair]] = {name: [] for name in PER_REQUEST}
    for record in a:
        twin = other.get((record.index, record.turn))
        if record.ok and twin:
            for name, of in PER_REQUEST.items():
                _add(pairs[name], of(record), of(twin))
    return compare(pairs, load, interleaved=False)
