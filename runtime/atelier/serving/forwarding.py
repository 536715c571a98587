"""Requests handed to a child engine, nearly all as they are (`text.child.bodies` says which are
not), and its answers handed back unread and unbuffered.

This stands before the web framework, whose routing and dependencies cost more than all that happens
here.
"""

from __future__ import annotations

import asyncio
import logging

from fastapi import Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atelier.caller import CALLER
from atelier.errors import AtelierError, Cancelled, DeadlineExceeded, InvalidRequest
from atelier.events import Event, Failed, Finished
from atelier.protocols.http.deadlines import seconds_allowed
from atelier.protocols.http.error_bodies import ANTHROPIC, error_body, error_response
from atelier.protocols.http.pools import reading
from atelier.protocols.http.sse import frame
from atelier.text.child import tokens
from atelier.text.child.bodies import prepared
from atelier.text.child.process import ProcessEngine
from atelier.text.child.wire import Broken, Connection
from atelier.text.model import TextModel

log = logging.getLogger(__name__)

SHORT = 2**18
"""Bytes of a body that is read through in the event loop: in less time than a thread takes to
start."""

KEPT = ("content-type", "content-length", "cache-control", "retry-after")
"""Headers of the engine's answer that mean something to the client; connections are our own."""


NO_PARSER = b"--tool-call-parser"
"""In what vLLM says of a request with tools when it has no parser for their calls."""

HOW_TO_CALL = (
    "tools: this server reads no tool calls of its model: set TOOL_CALL_PARSER to the form in which"
    " the model writes them, such as hermes or qwen3_coder, and start it again"
)


class Door:
    """Answers POSTs to the child engine's paths with what the engine says; everything else goes on
    to `app`."""

    def __init__(self, app: ASGIApp, model: TextModel, seconds: float) -> None:
        self._app = app
        self._model = model
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        post = scope["type"] == "http" and scope["method"] == "POST"
        path = scope["path"].removeprefix("/openai") if post else ""
        if path not in self._model.forwards:
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        try:
            await self._forward(path, receive, answer)
        except AtelierError as error:
            await answer.fail(error, receive)

    async def _forward(self, path: str, receive: Receive, answer: _Answer) -> None:
        """Closing the connection to the engine before the answer's end, as a client that goes makes
        us do, aborts its work.

        Raises:
            NotReady: the engine cannot be reached; it is being restarted.
            Draining, Busy, DeadlineExceeded, InvalidRequest: nothing is admitted now, time is up, a
                header is wrong.
        """
        model = self._model
        allowed = min(self._seconds, seconds_allowed(answer.request.headers) or self._seconds)
        body = await _body(receive)
        try:
            model.check_ready()
            assert model.child is not None
            model.child.admit()
        except AtelierError as error:
            model.observer.refused("forwarded", error)
            raise
        follow = model.observer.request("forwarded")
        last: Event = Failed(Cancelled("the client went away"))
        try:
            async with asyncio.timeout(allowed):
                await _pass(model.child, path, await _prepared(model.child, path, body), answer)
            last = Finished()
        except TimeoutError:
            late = DeadlineExceeded(f"the request took longer than the {allowed:g} s it may take")
            last = Failed(late)
            raise late from None
        except Broken as lost:
            assert model.child is not None
            broken = model.child.gone(f"failed during the answer and is being restarted: {lost}")
            last = Failed(broken)
            raise broken from lost
        except AtelierError as refused:
            last = Failed(refused)
            raise
        finally:
            model.child.release()
            follow(last)


class _Answer:
    """What goes to the client: the engine's answer as it comes, or an error in the form that fits
    what was already sent."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.request = Request(scope)
        self._path: str = scope["path"]
        self._send = send
        self._begun = self._stream = False

    async def begin(self, reply: Connection) -> None:
        """Status and headers."""
        headers = [
            (name.encode("latin-1"), reply.headers[name].encode("latin-1"))
            for name in KEPT
            if name in reply.headers
        ]
        self._begun = True
        self._stream = reply.headers.get("content-type", "").startswith("text/event-stream")
        await self._send(
            {"type": "http.response.start", "status": reply.status, "headers": headers}
        )

    async def whole(self, body: bytes) -> None:
        """An answer of our own, in JSON."""
        response = Response(body, media_type="application/json")
        self._begun = True
        await self._send(
            {"type": "http.response.start", "status": 200, "headers": response.raw_headers}
        )
        await self._send({"type": "http.response.body", "body": body})

    async def add(self, data: bytes) -> None:
        """More of the body; nothing ends it."""
        await self._send({"type": "http.response.body", "body": data, "more_body": bool(data)})

    async def fail(self, error: AtelierError, receive: Receive) -> None:
        """A whole error answer if nothing was sent, an event in a stream, or else an answer that
        breaks off."""
        if not self._begun:
            await error_response(self.request, error)(self.request.scope, receive, self._send)
        elif self._stream:
            kind = "error" if ANTHROPIC.fullmatch(self._path) else ""
            await self.add(frame(error_body(self._path, error), kind))
            await self.add(b"")
        else:
            raise error


async def _pass(engine: ProcessEngine, path: str, body: bytes, answer: _Answer) -> None:
    translated = False
    if engine.spec.own_tokens and path in tokens.PATHS:
        body, translated = await reading(tokens.asked, path, body)
    kind = answer.request.headers.get("content-type", "application/json")
    reply = await engine.post(path, body, kind)
    try:
        if translated and reply.status == 200:
            raw = await reply.rest()
            await answer.whole(await reading(tokens.answered, path, raw, engine.context))
            return
        lacking = reply.status == 400 and engine.spec.tool_switch
        said = await reply.rest() if lacking else b""
        if NO_PARSER in said:
            raise InvalidRequest(HOW_TO_CALL, "tools")
        await answer.begin(reply)
        if said:
            await answer.add(said)
        while data := await reply.chunk():
            await answer.add(data)
    finally:
        engine.wire.give_back(reply)
    await answer.add(b"")


async def _prepared(engine: ProcessEngine, path: str, body: bytes) -> bytes:
    salted = path in engine.spec.salted
    if len(body) <= SHORT:
        return prepared(body, CALLER.get(), salted)
    return await reading(prepared, body, CALLER.get(), salted)


async def _body(receive: Receive) -> bytes:
    chunks = []
    message: Message = {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client went away")
        chunks.append(message.get("body", b""))
    return b"".join(chunks)
