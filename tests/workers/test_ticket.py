"""What a request in the front tells its listeners, whichever workers had it."""

from __future__ import annotations

import asyncio

from atelier.events import Event, Image, Queued, Started, Warned
from atelier.images.request import ImageRequest
from atelier.workers.ticket import Ticket


async def test_what_was_told_before_a_workers_death_is_not_told_again() -> None:
    told: list[Event] = []
    admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    ticket = Ticket(1, ImageRequest(prompt="a star"), 60, 1, (told.append,), admitted)
    first = Image(0, 7, 8, 8, 3, b"")
    drawn = [Queued(0, 0), Warned("smaller"), Warned("darker"), Started(7), first]
    ticket.admit(0, 0)
    for _ in range(2):
        for event in drawn:
            ticket.hear(event)
        ticket.start_over()
    assert told == drawn
