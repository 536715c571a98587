"""The pictures of one click on Draw: drawn side by side, each a job of its own, with what is known
of each at any moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from atelier.studio.client import Drawn, DrawState, EndpointClient, EndpointError, Sketch
from atelier.studio.parameters import PictureParameters, reduced, signed

AT_ONCE = 8
"""Pictures of one click that the endpoint has at a time: enough for its batches, and the queue
stays open for others."""

PREVIEWS = 8
"""Unfinished pictures asked for on the way of each."""

SECONDS_BETWEEN = 0.15
"""Least time between two looks at the board: a browser paints no faster than a person sees."""


@dataclass
class Tile:
    """One picture and where it stands. `extra` are fields of the request that are not kept with the
    picture: those of an edit's pictures. `thumb` stands for a finished picture while others are
    drawn."""

    parameters: PictureParameters
    extra: dict[str, Any] = field(default_factory=dict)
    state: DrawState | None = None
    sketch: bytes = b""
    png: bytes = b""
    thumb: bytes = b""
    problem: str = ""

    @property
    def ended(self) -> bool:
        return bool(self.png or self.problem)


class Board:
    """The tiles of one click. For one reader."""

    def __init__(self, tiles: Sequence[Tile], endpoint: EndpointClient, key: str) -> None:
        self.tiles = list(tiles)
        self.cancelled = False
        self.began = time.monotonic()
        self._endpoint = endpoint
        self._key = key
        self._room = asyncio.Semaphore(AT_ONCE)
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> AsyncGenerator[None]:
        """Draw everything; yields when there is something new to see, the last time when all has
        ended. Left early, what still runs is cancelled."""
        self._tasks = [asyncio.create_task(self._draw(tile)) for tile in self.tiles]
        try:
            while not all(task.done() for task in self._tasks):
                yield
                await asyncio.sleep(SECONDS_BETWEEN)
                await self._changed.wait()
                self._changed.clear()
            yield
        finally:
            await self._stop()

    async def cancel(self) -> None:
        """Take back what has not ended; returns when the endpoint has dropped it."""
        self.cancelled = True
        await self._stop()

    async def _stop(self) -> None:
        running = [task for task in self._tasks if not task.done()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        for tile in self.tiles:  # also those whose turn had not come
            if not tile.ended:
                tile.problem = "cancelled"
        self._changed.set()

    async def _draw(self, tile: Tile) -> None:
        try:
            async with self._room:
                await self._follow(tile)
        except EndpointError as error:
            tile.problem = error.message
        finally:
            self._changed.set()

    async def _follow(self, tile: Tile) -> None:
        fields = tile.parameters.fields() | tile.extra | {"previews": PREVIEWS}
        drawing = self._endpoint.draw(tile.parameters.model, fields, self._key)
        async with aclosing(drawing) as events:
            async for event in events:
                if isinstance(event, Drawn):
                    known = tile.parameters.model_copy(update={"seed": event.seed})
                    tile.parameters = known
                    tile.thumb = await asyncio.to_thread(reduced, event.png)
                    tile.png = await asyncio.to_thread(signed, event.png, known)
                elif isinstance(event, Sketch):
                    tile.sketch = event.png
                else:
                    tile.state = event
                self._changed.set()


class Boards:
    """What is being drawn, by browser session, so that a session's cancel finds its own."""

    def __init__(self) -> None:
        self._running: dict[str, set[Board]] = {}

    async def run(self, session: str, board: Board) -> AsyncGenerator[None]:
        """`board.run`, known to `cancel` while it lasts."""
        self._running.setdefault(session, set()).add(board)
        try:
            async with aclosing(board.run()) as looks:
                async for _ in looks:
                    yield
        finally:
            boards = self._running[session]
            boards.discard(board)
            if not boards:
                del self._running[session]

    async def cancel(self, session: str) -> None:
        """Cancel everything that this session draws."""
        for board in list(self._running.get(session, ())):
            await board.cancel()
