"""Events of an embedded language model on their way to the front: what a step brings goes there at
once, from the engine's thread.

A turn of the worker's event loop for each step would take the interpreter's lock from the engine
while it computes the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from atelier.events import Event, Failed, Finished
from atelier.streams import EventStream
from atelier.workers import messages as m


class Relay:
    """Carries the events of all requests of one worker. `put` sends messages to the front."""

    def __init__(self, put: Callable[..., None]) -> None:
        self._put = put
        self._streams: dict[int, RelayedStream] = {}
        self._order = threading.Lock()

    def add(self, stream: RelayedStream) -> None:
        """A request that is about to be admitted."""
        self._streams[stream.number] = stream

    def open(self, number: int) -> None:
        """The front was told of its admission: send what has happened, and what will."""
        with self._order:
            stream = self._streams[number]
            held, stream.held = stream.held or [], None
            self._send([(stream, event) for event in held])

    def cancel(self, number: int) -> bool:
        """Drop a request before its next step; whether it is here."""
        stream = self._streams.get(number)
        if stream is not None:
            stream.cancel()
        return stream is not None

    def drop(self, number: int) -> None:
        """The request was refused after all: nothing of it goes to the front."""
        if stream := self._streams.pop(number, None):
            stream.cancel()

    def __call__(self, group: list[tuple[EventStream, Event]]) -> None:
        """See `streams.Carrier`."""
        with self._order:
            happened = []
            for stream, event in group:
                assert isinstance(stream, RelayedStream)
                if stream.held is None:
                    happened.append((stream, event))
                else:
                    stream.held.append(event)
            self._send(happened)

    def _send(self, happened: list[tuple[RelayedStream, Event]]) -> None:
        if happened:
            self._put(*(m.Happened(stream.number, event) for stream, event in happened))
        for stream, event in happened:
            if isinstance(event, Finished | Failed):
                self._streams.pop(stream.number, None)


class RelayedStream(EventStream):
    """One request's events; nobody reads them here. `held` are those from before the front knows
    that the request was admitted."""

    def __init__(self, relay: Relay, number: int, on_cancel: Callable[[], None]) -> None:
        super().__init__(on_cancel)
        self.carrier = relay
        self.number = number
        self.held: list[Event] | None = []
        relay.add(self)
