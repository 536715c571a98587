"""What bodies share is given back however a request ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from atelier.bounds import BODIES_AT_ONCE
from atelier.protocols.http import body_limit
from atelier.protocols.http.body_limit import BodyLimit

LIMIT = 200_000
PART = b" " * 100_000
MORE = {"type": "http.request", "body": PART, "more_body": True}
LAST = {"type": "http.request", "body": PART, "more_body": False}
GONE = {"type": "http.disconnect"}
POST = {"type": "http", "method": "POST", "path": "/v1/x", "query_string": b"", "headers": []}


async def reads_all(scope: Any, receive: Any, send: Any) -> None:
    while (message := await receive())["type"] == "http.request" and message["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def fails(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    raise RuntimeError("a fault of the application")


async def answers_early(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 400, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def sending(*messages: dict[str, Any]) -> Callable[[], Awaitable[dict[str, Any]]]:
    """A client that sends these, then nothing more."""
    left = list(messages)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return receive


async def ask(limit: BodyLimit, *messages: dict[str, Any]) -> list[int]:
    """The statuses that the client sees."""
    seen = []

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            seen.append(message["status"])

    await limit(dict(POST), sending(*messages), send)
    return seen


ENDS: dict[str, tuple[Any, tuple[dict[str, Any], ...], list[int]]] = {
    "answered": (reads_all, (MORE, LAST), [200]),
    "answered before the body is whole": (answers_early, (MORE, LAST), [400]),
    "client gone": (reads_all, (MORE, GONE), [200]),
    "too large": (reads_all, (MORE, MORE, LAST), [413]),
    "too slow": (reads_all, (MORE,), [408]),
}


@pytest.mark.parametrize("end", ENDS)
async def test_the_share_of_a_body_is_given_back(monkeypatch: Any, end: str) -> None:
    monkeypatch.setattr(body_limit, "SILENT_BODY_SECONDS", 0.05)
    app, messages, statuses = ENDS[end]
    limit = BodyLimit(app, LIMIT, 60)
    for _ in range(2 * BODIES_AT_ONCE):  # more than fit, one after the other
        assert await ask(limit, *messages) == statuses


async def test_a_fault_and_a_cancellation_give_it_back_too() -> None:
    limit = BodyLimit(fails, LIMIT, 60)
    for _ in range(2 * BODIES_AT_ONCE):
        with pytest.raises(RuntimeError):
            await ask(limit, LAST)
    limit = BodyLimit(reads_all, LIMIT, 60)
    for _ in range(2 * BODIES_AT_ONCE):
        task = asyncio.create_task(ask(limit, MORE, {**MORE}))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await ask(limit, MORE, LAST) == [200]


async def test_what_does_not_fit_beside_the_others_is_refused_while_they_last() -> None:
    limit = BodyLimit(reads_all, LIMIT, 60)
    held = [asyncio.create_task(ask(limit, MORE, MORE)) for _ in range(BODIES_AT_ONCE)]
    await asyncio.sleep(0.01)
    assert await ask(limit, LAST) == [429]
    assert await ask(limit, {**LAST, "body": b"small"}) == [200]
    held.pop().cancel()
    await asyncio.sleep(0.01)
    assert await ask(limit, LAST) == [200]
    for task in held:
        task.cancel()
