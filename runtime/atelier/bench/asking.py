"""One request on the wire: sent, its stream read with a time for every chunk, and a Record made.

A failure is a record too. Nothing is computed while the stream runs but what tells text from other
events.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson

from atelier.bench.bodies import Talk
from atelier.bench.record import Record
from atelier.bench.target import Target

MESSAGE = 300
"""Characters kept of an error's text."""

JSON = {"Content-Type": "application/json"}


class StreamFault(Exception):
    """The stream ended otherwise than it should. `kind` is a short word for counting."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


async def converse(
    target: Target, conversation: Talk, start: float, arm: str = "a"
) -> list[Record]:
    """Ask every turn; a turn that fails ends the conversation.

    Args:
        start: `time.perf_counter()` at the start of the run.
    """
    records: list[Record] = []
    history: list[dict[str, Any]] = []
    for turn, body in enumerate(conversation.turns):
        record = Record(index=conversation.index, turn=turn, arm=arm)
        wanted = body
        if "messages" in body:
            history += body["messages"]
            wanted = body | {"messages": history}
        await ask(target, conversation.path, wanted, record, start)
        if turn == 0 and conversation.at is not None:
            record.lag = max(0.0, record.begun - conversation.at)
        records.append(record)
        if not record.ok:
            break
        history.append({"role": "assistant", "content": record.text})
    return records


async def ask(
    target: Target, path: str, body: dict[str, Any], record: Record, start: float
) -> None:
    """Send one body and fill the record in."""
    sent = time.perf_counter()
    record.begun = sent - start
    try:
        async with target.session.post(
            target.url + path, data=orjson.dumps(body), headers=JSON
        ) as answer:
            if answer.status != 200:
                raise StreamFault(f"http {answer.status}", (await answer.text())[:MESSAGE])
            if path.startswith("/v1/images"):
                await _pictures(answer, record, sent)
            else:
                await _text(answer, record, sent)
    except StreamFault as fault:
        record.error, record.message = fault.kind, str(fault)
    except TimeoutError:
        record.error, record.message = "timeout", "no answer within --timeout"
    except aiohttp.ClientConnectorError as error:
        record.error, record.message = "refused", str(error)[:MESSAGE]
    except (aiohttp.ClientError, asyncio.IncompleteReadError, OSError) as error:
        record.error, record.message = "connection lost", str(error)[:MESSAGE]
    record.seconds = time.perf_counter() - sent
    if record.ok:
        _check_form(body, record)


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[float, bytes]]:
    """The data of server-sent events, with the time at which the network gave each."""
    rest = b""
    async for piece in answer.content.iter_any():
        now = time.perf_counter()
        rest += piece
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield now, line[5:].strip()


async def _text(answer: aiohttp.ClientResponse, record: Record, sent: float) -> None:
    finished, pieces, calls, told = False, [], [], 0
    async for now, data in _events(answer):
        if data == b"[DONE]":
            finished = True
            continue
        event = _parsed(data)
        _usage(event.get("usage"), record)
        for choice in event.get("choices") or []:
            delta = choice.get("delta") or choice
            said = delta.get("content") or delta.get("text") or ""
            thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
            called = "".join(_arguments(delta))
            finished = finished or bool(choice.get("finish_reason"))
            if said or thought or called:
                record.arrivals.append(now - sent)
                pieces.append(thought + said)
                calls.append(called)
                if event.get("usage"):  # the server counts in every chunk
                    total = int(event["usage"].get("completion_tokens") or 0)
                    record.arrival_tokens.append(total - told)
                    told = total
    record.text = "".join(pieces) + "".join(calls)
    if not finished:
        raise StreamFault("cut", "the stream ended without a finish_reason")
    if not record.arrivals:
        raise StreamFault("empty", "the answer has no text")


def _arguments(delta: dict[str, Any]) -> list[str]:
    return [
        (call.get("function") or {}).get("arguments") or ""
        for call in delta.get("tool_calls") or []
    ]


def _usage(usage: dict[str, Any] | None, record: Record) -> None:
    if not usage:
        return
    record.prompt_tokens = usage.get("prompt_tokens")
    record.output_tokens = usage.get("completion_tokens")
    details = usage.get("prompt_tokens_details") or {}
    record.cached_tokens = details.get("cached_tokens")


async def _pictures(answer: aiohttp.ClientResponse, record: Record, sent: float) -> None:
    async for now, data in _events(answer):
        if data == b"[DONE]":
            continue
        event = _parsed(data)
        kind = str(event.get("type", ""))
        if kind.endswith("partial_image"):
            record.previews.append(now - sent)
        elif kind.endswith("completed"):
            width, _, height = str(event.get("size", "0x0")).partition("x")
            record.pictures += 1
            record.pixels += int(width) * int(height)
    if not record.pictures:
        raise StreamFault("cut", "the stream ended without a picture")


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise StreamFault("bad event", data[:MESSAGE].decode(errors="replace")) from None
    if not isinstance(event, dict):
        raise StreamFault("bad event", data[:MESSAGE].decode(errors="replace"))
    if fault := event.get("error"):
        raise StreamFault("error event", str(fault)[:MESSAGE])
    return event


def _check_form(body: dict[str, Any], record: Record) -> None:
    """Whether an answer that was asked for as JSON is JSON."""
    if "response_format" not in body and "tools" not in body:
        return
    try:
        parsed = orjson.loads(record.text)
    except orjson.JSONDecodeError as error:
        record.malformed = f"{error}: {record.text[:80]!r}"
        return
    if not isinstance(parsed, dict):
        record.malformed = f"no object: {record.text[:80]!r}"
