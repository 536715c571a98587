"""Who runs next, and with whom: the policy of the engine, without a device.

- A batch is filled to the knee (`pace.py`) and no further: beyond it requests would only slow each
  other, so they wait.
- The request with the least work left leads, and those of its shape join. A request that has begun
  and is passed by a shorter one keeps its place at its last step. Waiting counts for a request, so
  that none starves; requests of other shapes take their turn by the same rule.
- What has begun holds tensors, so no more begins than fits `bytes`.
- Adapters stay as they are unless a request that needs others is ahead by more than a switch costs.

The engine reports what it sees (`ran`, `fail`, `switched`, `finished`), and asks for `next_batch`.
Estimates come from playing the same policy forward, and everything that tells a client how long it
will take gets them here: `add` for the request that comes, `free_place_s` for one that is refused.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from atelier.images.pace import Lane, Pace

AGEING = 0.03  # seconds of remaining work that a second of waiting makes up for
CAP_S = 60.0  # how long a group that ran out of memory stays smaller: others may be the cause
SOME = 16  # requests before that is done
ARRIVALS = 128  # requests by whose coming the load is judged
LEARNT = 32  # ended requests over which an estimate is corrected
MOST_LOAD = 0.9  # load that an estimate reckons with at most


@dataclass(eq=False, kw_only=True)
class Schedulable:
    """What the scheduler knows of a request.

    `kind` is what its step time depends on and is known before it begins: pipeline and size.
    `rows` are those of the call it is parked at; before it begins, those expected of the denoiser.
    `key` says which parked calls may run as one; None before it begins. `most_rows` bounds the
    group of this call alone. `alone` keeps a call from being grouped;
    `unproven` wants it grouped with one other, whatever that gains, so that they can be compared.
    `undisturbed`
    are the seconds until its first step and its end, as expected when it came if nobody else does;
    those who pass were expected to add `passing` times as much.
    """

    kind: Hashable = ""
    pixels: int = 0
    steps_left: int = 20
    rows: int = 1
    bytes: int = 0
    adapters: Hashable = ()
    exclusive: bool = False
    arrived: float = 0.0
    key: Hashable = None
    stage: str = ""
    most_rows: float = math.inf
    alone: bool = False
    unproven: bool = False
    undisturbed: tuple[float, float] = (0.0, 0.0)
    passing: float = 0.0


W = TypeVar("W", bound=Schedulable)


@dataclass(frozen=True)
class Outlook:
    """What a request can be told: how many go before it, seconds until its first step and until
    its end."""

    position: int
    start_s: float
    end_s: float


@dataclass(eq=False)
class _Correction:
    """How much of the expected lengthening comes true, from requests that have been through it."""

    late: float = 0.0
    expected: float = 0.0

    def saw(self, took: float, undisturbed: float, passing: float) -> None:
        self.late += (took - undisturbed - self.late) / LEARNT
        self.expected += (undisturbed * passing - self.expected) / LEARNT

    @property
    def trust(self) -> float:
        return min(1.0, max(0.0, self.late / self.expected)) if self.expected > 0 else 0.5


class Scheduler(Generic[W]):
    """Requests that wait, requests that have begun, and the choice of what runs next.

    `rows` bounds a call, `space` the bytes that begun requests hold; one runs whatever it holds.
    """

    def __init__(self, rows: int, space: float = math.inf) -> None:
        self.waiting: list[W] = []
        self.running: list[W] = []
        self.pace = Pace(rows)
        self._rows = rows
        self._space = space
        self._caps: dict[Hashable, tuple[int, float]] = {}
        self._active: Hashable = ()
        self._switch_s = 0.0
        self._recent: deque[tuple[float, float]] = deque(maxlen=ARRIVALS)
        self._corrections = _Correction(), _Correction()
        self._economy = 1.0  # seconds of a batch over those of its requests one by one

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def add(self, work: W) -> Outlook:
        """Take in a request that has not begun, and say what it has to expect."""
        self.waiting.append(work)
        starts, ends = self._play_forward()
        work.undisturbed = starts[id(work)], ends[id(work)]
        work.passing = self._passing(work)
        self._recent.append((work.arrived, self.remaining(work)))
        ahead = sum(self._priority(other) < self._priority(work) for other in self._all())
        start, end = (
            seconds * (1 + correction.trust * work.passing)
            for seconds, correction in zip(work.undisturbed, self._corrections, strict=True)
        )
        return Outlook(ahead, start, end)

    def next_batch(self, now: float) -> list[W]:
        """The requests whose parked calls run next as one call; or one that is to begin, which
        counts as running from here on. Empty if there is nothing to do."""
        order = self._order()
        if not order:
            return []
        leader = order[0]
        for work in self._cohort(leader, order):
            if work.key is None:
                self.waiting.remove(work)
                self.running.append(work)
                return [work]
            if leader.stage == "denoise" and work.stage == "encode":
                return self._group(work, order, now)
        return self._group(leader, order, now)

    def ran(self, lane: Lane, rows: Sequence[int], seconds: float, pixels: int) -> None:
        """A batch took this long on the device: `lane` is its kind and stage, `rows` those of each
        request, `pixels` those of one picture."""
        self.pace.saw(lane, sum(rows), seconds, pixels)
        one_by_one = sum(self.pace.seconds(lane, own, pixels) for own in rows)
        self._economy += (min(1.0, seconds / one_by_one) - self._economy) / ARRIVALS

    def fail(self, batch: Sequence[W], now: float, memory: bool) -> None:
        """A batch of several failed and is to be run in smaller ones: halves if memory ran out,
        else each member's call alone, and nobody else's."""
        if memory:
            rows = max(1, sum(work.rows for work in batch) // 2)
            self._caps[batch[0].key] = rows, now + CAP_S
        else:
            for work in batch:
                work.alone = True

    def switched(self, adapters: Hashable, seconds: float) -> None:
        """The shared modules were given these adapters."""
        self._active, self._switch_s = adapters, seconds

    def finished(self, work: W, now: float) -> None:
        """A request has left, however it ended."""
        (self.running if work in self.running else self.waiting).remove(work)
        if work.steps_left <= 0:
            self._corrections[1].saw(now - work.arrived, work.undisturbed[1], work.passing)

    def started(self, work: W, now: float) -> None:
        """A request's first step is about to run."""
        self._corrections[0].saw(now - work.arrived, work.undisturbed[0], work.passing)

    def free_place_s(self) -> float:
        """Seconds until the next request ends."""
        return min(self._play_forward()[1].values(), default=0.0)

    def remaining(self, work: W) -> float:
        """Seconds of work that the request would still need by itself."""
        step = self.pace.seconds((work.kind, "denoise"), work.rows, work.pixels)
        return work.steps_left * step + self._besides(work)

    def _besides(self, work: W) -> float:
        """Seconds of what it still needs before and after its steps."""
        stages = ("encode", "decode") if work.stage in ("", "encode") else ("decode",)
        return sum(self.pace.seconds((work.kind, stage), work.rows, 0) for stage in stages)

    def _play_forward(self) -> tuple[dict[int, float], dict[int, float]]:
        """Seconds until each request's first step and until its end, by `id`, if nobody else
        comes: the policy, played from one end to the next."""
        starts: dict[int, float] = {}
        ends: dict[int, float] = {}
        steps = {id(work): max(1, work.steps_left) for work in self._all()}
        order, clock = sorted(self._all(), key=self._priority), 0.0
        while order:
            leader = order[0]
            batch = [leader, *self._joining(leader, order[1:])]
            starts = {id(work): clock for work in batch} | starts
            rows, lane = sum(work.rows for work in batch), (leader.kind, "denoise")
            count = min(steps[id(work)] for work in batch)
            clock += count * self.pace.seconds(lane, rows, leader.pixels)
            for work in batch:
                steps[id(work)] -= count
                if not steps[id(work)]:
                    clock += self._besides(work)
                    ends[id(work)] = clock
                    order.remove(work)
        return starts, ends

    def _passing(self, work: W) -> float:
        """By how many times those who pass lengthen what this request has before it.

        The load of shorter requests has been a share of the device's time lately, and will be. By
        the busy period of shortest-first queues, t seconds then take t / (1 - load). That is too
        much by what ageing and the end of a rush give back: see `_Correction`.
        """
        if len(self._recent) < SOME:
            return 0.0
        own = self.remaining(work)
        span = max(1e-9, work.arrived - self._recent[0][0])
        shorter = sum(size for _, size in self._recent if size < own)
        load = min(MOST_LOAD, shorter * self._economy / span)
        return load / (1 - load)

    def _all(self) -> list[W]:
        return [*self.running, *self.waiting]

    def _priority(self, work: W) -> float:
        """The least goes first. That a second of waiting counts is the same as that each second
        of arriving later does."""
        switch = self._switch_s if work.adapters != self._active else 0.0
        return self.remaining(work) + switch + AGEING * work.arrived

    def _order(self) -> list[W]:
        """What may run, by priority: all that has begun, and as much of what waits as fits."""
        room = self._space - sum(work.bytes for work in self.running)
        fitting: list[W] = []
        for work in sorted(self.waiting, key=self._priority):
            if work.bytes > room and (self.running or fitting):
                break
            fitting.append(work)
            room -= work.bytes
        return sorted([*self.running, *fitting], key=self._priority)

    def _cohort(self, leader: W, order: Sequence[W]) -> Iterable[W]:
        """The leader and those that would share its steps, as far as the knee allows."""
        return [leader, *self._joining(leader, [work for work in order if work is not leader])]

    def _joining(self, leader: W, others: Sequence[W]) -> list[W]:
        if leader.exclusive or leader.stage == "decode":
            return []
        most = self.pace.knee((leader.kind, "denoise"), leader.rows, leader.pixels)
        rows = leader.rows
        joining: list[W] = []
        for work in others:
            kin = (work.kind, work.adapters) == (leader.kind, leader.adapters)
            joins = rows + work.rows <= most or (leader.unproven and not joining)
            if kin and joins and not work.exclusive and work.stage != "decode":
                joining.append(work)
                rows += work.rows
        return joining

    def _group(self, leader: W, order: Sequence[W], now: float) -> list[W]:
        """Parked calls that run as one with the leader's."""
        knee = self.pace.knee((leader.kind, leader.stage), leader.rows, leader.pixels)
        most = min(self._cap(leader.key, now), leader.most_rows)
        group, rows = [leader], leader.rows
        for work in [] if leader.alone or leader.exclusive else order:
            same = work.key == leader.key and not (work.alone or work.exclusive)
            pays = rows + work.rows <= knee or (leader.unproven and len(group) == 1)
            if same and work is not leader and pays and rows + work.rows <= most:
                group.append(work)
                rows += work.rows
        return group

    def _cap(self, key: Hashable, now: float) -> int:
        rows, until = self._caps.get(key, (self._rows, math.inf))
        if now > until:
            del self._caps[key]
            return self._rows
        return rows
