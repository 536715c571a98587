"""What a worker sends to the front: in order, and whatever cannot travel as a refusal in words."""

from __future__ import annotations

import multiprocessing
from typing import Any

from atelier.events import Step
from atelier.workers import messages as m
from atelier.workers.worker import Outbox


def received(connection: Any, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        assert connection.poll(10), "nothing comes"
        found += connection.recv()
    return found


def test_what_cannot_be_pickled_is_refused_and_the_rest_arrives() -> None:
    here, there = multiprocessing.Pipe()
    outbox = Outbox(there)
    outbox.put(m.Happened(1, Step(1, 2)))
    outbox.put(m.Answered(2, lambda: None))
    outbox.put(m.Happened(1, Step(2, 2)))
    first, refused, last = received(here, 3)
    assert (first, last) == (m.Happened(1, Step(1, 2)), m.Happened(1, Step(2, 2)))
    assert isinstance(refused, m.Refused)
    assert refused.number == 2
    assert "Answered" in refused.error.message
