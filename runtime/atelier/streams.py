"""The bridge from an engine thread to a handler: events go in from any thread and come out with
`async for`, unless another carrier takes them elsewhere."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from atelier.events import Event, Failed, Finished, Token


class EventStream:
    """The events of one request, in order, for one reader in the event loop that made this object.

    Leaving the loop early (an exception, a cancelled handler, a `break` followed by `cancel()`)
    cancels the request. Tokens of one choice that wait together come out as one: a reader that
    falls behind catches up with fewer writes.
    """

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        self.carrier: Carrier = _Loop(asyncio.get_running_loop())
        self._waiting: deque[Event] = deque()
        self._some = asyncio.Event()
        self._on_cancel = on_cancel
        self._ended = False

    def put(self, event: Event) -> None:
        """Add an event; called from the engine's thread."""
        self.put_all([(self, event)])

    def put_from_loop(self, event: Event) -> None:
        """Add an event; called in the event loop, which need not be woken for it."""
        _put_group([(self, event)])

    @staticmethod
    def put_all(pairs: list[tuple[EventStream, Event]]) -> None:
        """Add events to many streams, waking each event loop once; for engines that emit an event a
        row and step."""
        groups: dict[Carrier, list[tuple[EventStream, Event]]] = {}
        for stream, event in pairs:
            groups.setdefault(stream.carrier, []).append((stream, event))
        for carrier, group in groups.items():
            carrier(group)

    def cancel(self) -> None:
        """Drop the request before its next step, if it still runs."""
        if not self._ended:
            self._ended = True
            self._on_cancel()

    async def __aiter__(self) -> AsyncIterator[Event]:
        try:
            while not self._ended:
                if not self._waiting:
                    self._some.clear()
                    await self._some.wait()
                event = self._next()
                self._ended = isinstance(event, Finished | Failed)
                yield event
        finally:
            self.cancel()

    def _next(self) -> Event:
        event = self._waiting.popleft()
        while isinstance(event, Token) and self._waiting:
            other = self._waiting[0]
            if not isinstance(other, Token) or other.choice != event.choice:
                break
            self._waiting.popleft()
            event = Token(
                event.choice,
                event.text + other.text,
                event.ids + other.ids,
                event.likelihoods + other.likelihoods,
            )
        return event


Carrier = Callable[[list[tuple[EventStream, Event]]], None]
"""Takes events of many streams on; called from the engine's thread. Streams of one carrier are
served together."""


MakeStream = Callable[[Callable[[], None]], EventStream]
"""Makes a request's stream from what cancels it."""


@dataclass(frozen=True)
class _Loop:
    """To the readers in an event loop; if it is closed, nobody listens any more."""

    loop: asyncio.AbstractEventLoop

    def __call__(self, group: list[tuple[EventStream, Event]]) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(_put_group, group)


def _put_group(group: list[tuple[EventStream, Event]]) -> None:
    for stream, event in group:
        stream._waiting.append(event)
        stream._some.set()
