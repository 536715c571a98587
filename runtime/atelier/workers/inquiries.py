"""What the front asks a worker besides generation: each question waits for its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from atelier.errors import AtelierError, Busy, DeadlineExceeded
from atelier.workers import messages as m


class Inquiries:
    """Open inquiries, at most `limit`, none for longer than `seconds`; `send` puts one on its
    way."""

    def __init__(self, send: Callable[[m.Ask], None], limit: int, seconds: float) -> None:
        self._send = send
        self._limit = limit
        self._seconds = seconds
        self._open: dict[int, asyncio.Future[Any]] = {}

    async def ask(self, number: int, method: str, *arguments: Any) -> Any:
        """The worker's answer.

        Raises:
            Busy: too many wait. DeadlineExceeded: it took too long.
            AtelierError: what the worker refuses with, or what became of it.
        """
        if len(self._open) >= self._limit:
            raise Busy(f"{self._limit} questions wait (MAX_QUEUE_SIZE={self._limit})", 1.0)
        future = self._open[number] = asyncio.get_running_loop().create_future()
        self._send(m.Ask(number, method, arguments))
        try:
            async with asyncio.timeout(self._seconds):
                return await future
        except TimeoutError:
            late = f"the request took longer than the {self._seconds:g} s it may take"
            raise DeadlineExceeded(late) from None

    def hear(self, message: Any) -> bool:
        """Whether the message answered an open question."""
        if not isinstance(message, m.Answered | m.Refused) or message.number not in self._open:
            return False
        future = self._open.pop(message.number)
        if future.done():  # nobody waits any more
            return True
        if isinstance(message, m.Answered):
            future.set_result(message.value)
        else:
            future.set_exception(message.error)
        return True

    def fail(self, error: AtelierError) -> None:
        """No answer will come."""
        for future in self._open.values():
            if not future.done():
                future.set_exception(error)
        self._open.clear()
