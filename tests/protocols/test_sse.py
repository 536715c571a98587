"""Event streams stay alive while nothing happens, and end what feeds them when they are closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from atelier.protocols.http.sse import SIGN_OF_LIFE, alive, frame


def test_a_frame_has_its_name_and_its_data() -> None:
    assert frame({"index": 1}, "step") == b'event: step\ndata: {"index":1}\n\n'


async def test_silence_is_filled_with_comments() -> None:
    async def slow() -> AsyncGenerator[bytes]:
        await asyncio.sleep(0.25)
        yield b"late"

    sent = [each async for each in alive(slow(), seconds=0.1)]
    assert sent[-1] == b"late"
    assert set(sent[:-1]) == {SIGN_OF_LIFE}


async def test_closing_a_stream_closes_what_feeds_it() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[bytes]:
        try:
            yield b"first"
            await asyncio.sleep(60)
        finally:
            closed.set()

    stream = alive(endless(), seconds=0.05)
    assert [await anext(stream), await anext(stream)] == [b"first", SIGN_OF_LIFE]
    await stream.aclose()
    assert closed.is_set()
