"""Which waiting request goes to which worker: pure decisions, made anew at every change."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

from atelier.workers.handle import WorkerHandle
from atelier.workers.ticket import Ticket

AGEING_S = 10.0
"""Waiting this long makes a request as urgent as one of half its work."""

STICKY = 0.9
"""The load of a worker that has the adapters already counts as this much of it."""


def urgency(ticket: Ticket) -> float:
    """Less is sooner: the work that is left, less of it the longer the request has waited."""
    waited = time.monotonic() - ticket.since
    return ticket.remaining / 2 ** (waited / AGEING_S)


def choose(ticket: Ticket, workers: Sequence[WorkerHandle], window: int) -> WorkerHandle | None:
    """The worker to send a request to; None, if it is better to wait.

    A full worker still takes what is much shorter than all that it has: its scheduler lets that
    pass at the next step.

    Args:
        window: requests that a worker is given at once.
    """

    def has_room(worker: WorkerHandle) -> bool:
        if len(worker.tickets) < window:
            return True
        shortest = min(other.remaining for other in worker.tickets.values())
        return len(worker.tickets) < 2 * window and 2 * ticket.work < shortest

    def load(worker: WorkerHandle) -> float:
        return worker.work * (STICKY if worker.adapters == ticket.request.lora else 1.0)

    return min(filter(has_room, workers), key=load, default=None)


def to_give_back(workers: Sequence[WorkerHandle]) -> tuple[WorkerHandle, Ticket] | None:
    """A request that has not begun, where another worker has nothing to do, and who has it."""
    idle = [worker for worker in workers if not worker.tickets]
    busy = [one for one in workers if len(one.tickets) > 1 and one.withdrawing is None]
    if not idle or not busy:
        return None
    victim = max(busy, key=lambda worker: worker.work)
    held = cast(list[Ticket], list(victim.tickets.values()))
    waiting = [one for one in held if not one.started and one.admitted.done()]
    return (victim, waiting[-1]) if waiting else None
