"""Our requests told to a child engine, for protocols that the child does not speak: KServe's v1 and
v2."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any, Protocol

from atelier.errors import (
    AtelierError,
    Busy,
    Cancelled,
    DeadlineExceeded,
    GenerationFailed,
    InvalidRequest,
    NotFound,
    NotReady,
)
from atelier.events import Failed, Finished, Queued, Started, Token, Usage
from atelier.streams import EventStream
from atelier.text.child.bodies import salt
from atelier.text.child.specs import EngineSpec
from atelier.text.child.wire import Connection, Wire
from atelier.text.parsing import THINK, UNTHINK
from atelier.text.request import TextRequest

log = logging.getLogger(__name__)

SENT = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "presence_penalty",
    "frequency_penalty", "seed", "n", "stop", "stop_token_ids", "ignore_eos", "skip_special_tokens",
)  # fmt: skip


LATE = "the request took longer than REQUEST_TIMEOUT or its own timeout allows"


class Child(Protocol):
    """What is asked of a supervised engine here; `process.ProcessEngine` is one."""

    name: str
    spec: EngineSpec
    seconds: float
    wire: Wire

    @property
    def inflight(self) -> int:
        """Requests that are with the engine."""

    def admit(self) -> None:
        """Count a request in, or refuse it."""

    def release(self) -> None:
        """Count it out."""

    def gone(self, what: str) -> NotReady:
        """The error of a request that it cannot serve, or not any more."""

    async def post(self, path: str, body: bytes, content_type: str) -> Connection:
        """Send a request; the answer's head has arrived."""


def submit(engine: Child, request: TextRequest) -> EventStream:
    """Start the request in a task of the running loop.

    Raises:
        Draining, NotReady, Busy: the engine admits nothing now.
        InvalidRequest: tools, whose calls these protocols cannot carry from a child.
    """
    if request.tools:
        raise InvalidRequest("tools need /v1/chat/completions with this engine", "tools")
    engine.admit()

    def cancel() -> None:
        task.cancel()

    stream = EventStream(cancel)
    task = asyncio.get_running_loop().create_task(_run(engine, request, stream))
    task.add_done_callback(lambda _: engine.release())
    stream.put(Queued(engine.inflight - 1, 0.0))
    return stream


def body_of(engine: Child, request: TextRequest) -> tuple[str, dict[str, Any]]:
    """The OpenAI path and body that ask for the same.

    Raises:
        InvalidRequest: it asks for something that the engine would ignore.
    """
    given = request.model_dump(exclude_defaults=True)
    for name in engine.spec.lacks:
        if name in given:
            raise InvalidRequest(
                f"{name}: {engine.spec.name} has no such field: leave it out", name
            )
    names = engine.spec.fields
    body = {names.get(name, name): given[name] for name in SENT if name in given}
    body["model"] = engine.name
    path = "/v1/completions" if request.messages is None else "/v1/chat/completions"
    if request.cache_salt and path in engine.spec.salted:
        body["cache_salt"] = salt(request.cache_salt)
    if request.response_format.type != "text":
        body["response_format"] = request.response_format.model_dump(exclude_none=True)
    if request.messages is not None:
        return path, body | {"messages": list(request.messages)}
    return path, body | {
        "prompt": request.prompt if request.prompt is not None else request.prompt_ids
    }


async def _run(engine: Child, request: TextRequest, stream: EventStream) -> None:
    begun = time.monotonic()
    stream.put(Started(request.seed or 0))
    try:
        path, body = body_of(engine, request)
        async with asyncio.timeout(min(request.timeout or engine.seconds, engine.seconds)):
            reply = await engine.post(path, json.dumps(body).encode(), "application/json")
            try:
                answer = json.loads(await reply.rest())
            finally:
                engine.wire.give_back(reply)
        if reply.status >= 400:
            raise _error(reply, answer)
        for choice in answer["choices"]:
            stream.put(Token(choice["index"], _text(choice)))
        reasons = tuple(choice["finish_reason"] or "stop" for choice in answer["choices"])
        stream.put(Finished({"decode": time.monotonic() - begun}, _usage(answer["usage"]), reasons))
    except asyncio.CancelledError:
        stream.put(Failed(Cancelled("the client went away")))
        raise
    except AtelierError as error:
        stream.put(Failed(error))
    except TimeoutError:
        stream.put(Failed(DeadlineExceeded(LATE)))
    except (OSError, ValueError, KeyError) as error:
        log.warning("the engine failed a request: %r", error)
        broken = engine.gone(f"failed during the request and is being restarted: {error!r}")
        stream.put(Failed(broken))


def _text(choice: dict[str, Any]) -> str:
    message = choice.get("message") or {"content": choice.get("text")}
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    return (f"{THINK}{reasoning}{UNTHINK}" if reasoning else "") + (message["content"] or "")


def _usage(usage: dict[str, Any]) -> Usage:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(usage["prompt_tokens"], cached, usage["completion_tokens"])


def _error(reply: Connection, answer: Any) -> AtelierError:
    """What the engine refuses, as an error of the same status."""
    said = answer.get("error", answer) if isinstance(answer, dict) else answer
    message = str(said.get("message", said) if isinstance(said, dict) else said)
    wait = reply.headers.get("retry-after", "")
    match reply.status:
        case 404:
            return NotFound(message)
        case 429:
            return Busy(message, float(wait) if wait.isdigit() else 1.0)
        case 503:
            return NotReady(message, float(wait) if wait.isdigit() else None)
        case status:
            return InvalidRequest(message) if status < 500 else GenerationFailed(message)
