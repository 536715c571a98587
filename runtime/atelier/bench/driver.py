"""Runs requests as a load says: a number of users, or begun at given moments; never more requests
nor longer than its bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

import aiohttp

from atelier.bench.asking import converse
from atelier.bench.bodies import Talk, conversations
from atelier.bench.load import OfferedLoad
from atelier.bench.record import Record
from atelier.bench.target import Target, TargetError

Tell = Callable[[list[Record]], None]
"""Called with the records of each conversation as it ends, for progress."""
One = Callable[[Talk], Awaitable[None]]
CHECKED = 32
"""Answers of a run whose text is counted in the server's tokenizer afterwards."""


def silent(records: list[Record]) -> None:
    """Tell nobody."""


def conversations_of(load: OfferedLoad) -> int:
    """How many conversations make the load's number of requests."""
    return -(-load.requests // load.turns)


async def run(
    target: Target,
    talks: Sequence[Talk],
    load: OfferedLoad,
    arm: str = "a",
    start: float | None = None,
    tell: Tell = silent,
) -> list[Record]:
    """Ask all of them, or as many as can be begun within `load.seconds`.

    Args:
        start: `time.perf_counter()` from which records count; default: now.
    """
    begun = time.perf_counter()
    start = begun if start is None else start
    ends = begun + load.seconds
    records: list[Record] = []

    async def one(talk: Talk) -> None:
        heard = await converse(target, talk, start, arm)
        records.extend(heard)
        tell(heard)

    if load.users is not None:
        queue = iter(talks)
        await asyncio.gather(*(_user(queue, one, ends) for _ in range(load.users)))
    else:
        await _at_moments(talks, one, begun, ends)
    return sorted(records, key=lambda record: record.begun)


async def _user(queue: Iterator[Talk], one: One, ends: float) -> None:
    for talk in queue:
        if time.perf_counter() >= ends:
            return
        await one(talk)


async def _at_moments(talks: Sequence[Talk], one: One, begun: float, ends: float) -> None:
    async with asyncio.TaskGroup() as running:
        for talk in talks:
            due = begun + (talk.at or 0.0)
            if due >= ends:
                break
            await asyncio.sleep(due - time.perf_counter())
            running.create_task(_done(one(talk)))


async def _done(work: Awaitable[None]) -> None:
    """A task is made of a coroutine, not of anything that can be awaited."""
    await work


async def measure(target: Target, load: OfferedLoad, tell: Tell = silent) -> list[Record]:
    """One level: requests are written, some warm the server up uncounted, the rest is measured,
    and token counts are checked.

    Raises:
        TargetError: every request of the warm-up failed; nothing worth measuring follows.
    """
    count = conversations_of(load)
    talks = await conversations(load, target, count)
    await warm(target, load)
    records = await run(target, talks, load, tell=tell)
    await check_tokens(target, load, records)
    return records


async def warm(target: Target, load: OfferedLoad) -> None:
    """The load's warm-up: requests of its own, at its concurrency.

    Raises:
        TargetError: all of them failed; says how.
    """
    if not load.warmup:
        return
    users = min(load.users or load.warmup, load.warmup)
    bare = {"users": users, "rate": None, "trace": None, "burst": 1}
    before = load.model_copy(update=bare | {"seed": load.seed + 1_000_003, "turns": 1})
    talks = await conversations(before, target, load.warmup, "warm")
    records = await run(target, talks, before)
    if records and not any(record.ok for record in records):
        first = records[0]
        raise TargetError(
            f"{target.url}: all {len(records)} requests of the warm-up failed, the first with"
            f" {first.error}: {first.message}"
        )


async def check_tokens(target: Target, load: OfferedLoad, records: Sequence[Record]) -> None:
    """Count the text of some answers in the server's tokenizer, spread over the run."""
    if target.tokenizer != "/tokenize" or load.scenario == "tools":
        return  # a tool call is streamed without the marks that the model wrote around it
    told = [record for record in records if record.ok and record.text and not record.malformed]
    for record in told[:: max(1, len(told) // CHECKED)]:
        try:
            record.counted_tokens = await target.count_output(record.text)
        except (TargetError, aiohttp.ClientError, TimeoutError):
            return  # the run stands without the check; the result says how many were checked
