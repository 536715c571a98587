"""Questions to a worker: bounded, and free again however each ended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from atelier.errors import AtelierError, Busy, DeadlineExceeded, InvalidRequest, NotReady
from atelier.workers import messages as m
from atelier.workers.inquiries import Inquiries


def made(limit: int = 2, seconds: float = 5) -> tuple[Inquiries, list[m.Ask]]:
    sent: list[m.Ask] = []
    return Inquiries(sent.append, limit, seconds), sent


async def asked(inquiries: Inquiries, number: int) -> asyncio.Task[Any]:
    task = asyncio.create_task(inquiries.ask(number, "tokenize", "a"))
    await asyncio.sleep(0)
    return task


async def test_each_question_gets_its_own_answer() -> None:
    inquiries, sent = made()
    first, second = await asked(inquiries, 1), await asked(inquiries, 2)
    assert [one.number for one in sent] == [1, 2]
    assert inquiries.hear(m.Answered(2, "two")) and inquiries.hear(m.Answered(1, "one"))
    assert (await first, await second) == ("one", "two")
    assert not inquiries.hear(m.Answered(3, "nobody asked"))


async def test_one_too_many_is_refused_until_another_has_ended() -> None:
    inquiries, _ = made()
    first, second = await asked(inquiries, 1), await asked(inquiries, 2)
    with pytest.raises(Busy, match="MAX_QUEUE_SIZE=2"):
        await inquiries.ask(3, "tokenize", "a")
    inquiries.hear(m.Refused(1, InvalidRequest("no")))
    with pytest.raises(InvalidRequest):
        await first
    third = await asked(inquiries, 3)
    for task in (second, third):
        task.cancel()


@pytest.mark.parametrize("end", ["cancelled", "late"])
async def test_what_nobody_waits_for_is_counted_while_the_worker_is_at_it(end: str) -> None:
    inquiries, _ = made(limit=1, seconds=0.02)
    task = await asked(inquiries, 1)
    if end == "cancelled":
        task.cancel()
    with pytest.raises(asyncio.CancelledError if end == "cancelled" else DeadlineExceeded):
        await task
    with pytest.raises(Busy):
        await inquiries.ask(2, "tokenize", "a")
    assert inquiries.hear(m.Answered(1, "late"))
    again = await asked(inquiries, 3)
    inquiries.hear(m.Answered(3, "well"))
    assert await again == "well"


async def test_a_worker_that_dies_ends_them_all() -> None:
    inquiries, _ = made()
    tasks = [await asked(inquiries, 1), await asked(inquiries, 2)]
    inquiries.fail(NotReady("it ended"))
    for task in tasks:
        with pytest.raises(AtelierError, match="it ended"):
            await task
    await asked(inquiries, 3)
