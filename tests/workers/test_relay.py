"""Events of a language model on their way from the engine's thread to the front."""

from __future__ import annotations

import asyncio
from typing import Any

from atelier.errors import Cancelled
from atelier.events import Failed, Finished, Queued, Token
from atelier.settings import Settings
from atelier.streams import EventStream
from atelier.text.request import make_request
from atelier.workers import messages as m
from atelier.workers.relay import Relay, RelayedStream
from atelier.workers.text_work import TextWork


class Wire:
    """What was sent to the front, and which requests the engine was told to drop."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.writes = 0
        self.cancelled: list[int] = []
        self.relay = Relay(self._put)

    def _put(self, *messages: Any) -> None:
        self.sent.extend(messages)
        self.writes += 1

    def stream(self, number: int) -> RelayedStream:
        async def make() -> RelayedStream:
            return RelayedStream(self.relay, number, lambda: self.cancelled.append(number))

        return asyncio.run(make())


def test_nothing_goes_before_the_admission_and_all_of_it_in_order() -> None:
    wire = Wire()
    stream = wire.stream(7)
    stream.put(Queued(0, 0.0))
    stream.put(Token(0, "a"))
    assert wire.sent == []
    wire.relay.open(7)
    stream.put(Token(0, "b"))
    events = [Queued(0, 0.0), Token(0, "a"), Token(0, "b")]
    assert wire.sent == [m.Happened(7, event) for event in events]


def test_a_step_is_one_write_for_all_requests() -> None:
    wire = Wire()
    streams = [wire.stream(number) for number in (1, 2, 3)]
    for number in (1, 2, 3):
        wire.relay.open(number)
    before = wire.writes
    EventStream.put_all([(stream, Token(0, "x")) for stream in streams])
    assert wire.writes == before + 1
    assert [one.number for one in wire.sent] == [1, 2, 3]


def test_what_has_ended_cannot_be_cancelled_any_more() -> None:
    for last in (Finished({}), Failed(Cancelled("the client went away"))):
        wire = Wire()
        stream = wire.stream(1)
        wire.relay.open(1)
        stream.put(last)
        wire.relay.cancel(1)
        assert wire.cancelled == []
        assert wire.sent == [m.Happened(1, last)]


def test_an_end_before_the_admission_is_told_after_it() -> None:
    wire = Wire()
    stream = wire.stream(1)
    stream.put(Finished({}))
    wire.relay.open(1)
    assert wire.sent == [m.Happened(1, Finished({}))]


def test_what_is_refused_after_all_is_dropped_in_silence() -> None:
    wire = Wire()
    stream = wire.stream(1)
    stream.put(Token(0, "x"))
    wire.relay.drop(1)
    stream.put(Failed(Cancelled("dropped")))
    wire.relay.drop(2)  # was never submitted
    assert wire.cancelled == [1]
    assert wire.sent == []


def test_a_running_request_is_cancelled_once() -> None:
    wire = Wire()
    wire.stream(1)
    wire.relay.open(1)
    wire.relay.cancel(1)
    wire.relay.cancel(1)
    assert wire.cancelled == [1]


def test_what_is_cancelled_while_its_prompt_is_read_never_begins() -> None:
    sent: list[Any] = []
    begun: list[Any] = []

    async def cancel_early() -> None:
        work = TextWork(Settings(task="text"), lambda *messages: sent.extend(messages))
        reading = asyncio.Event()

        async def submit(request: Any, streams: Any) -> None:
            reading.set()
            await asyncio.sleep(0.1)
            begun.append(request)

        work._model.submit = submit  # type: ignore[assignment,method-assign]
        work.take(m.Generate(1, make_request(prompt="endless")))
        await reading.wait()
        work.take(m.Cancel(1))
        await asyncio.sleep(0.3)

    asyncio.run(cancel_early())
    assert begun == [] and sent == []
