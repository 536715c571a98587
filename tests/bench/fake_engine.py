"""An engine whose figures are known beforehand: a token is a word, and its time is a sleep. The
model's name says how it behaves. A second port is the same engine with 5 ms more per token.

    python -m tests.bench.fake_engine PORT SLOW_PORT
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientSession, web

FIRST_S, TOKEN_S = 0.010, 0.003
ADDED_S = 0.005
TEMPLATE = 5
PICTURE_S, PREVIEW_S = 0.02, 0.01
CHUNK = {"object": "chat.completion.chunk"}


@dataclass(frozen=True)
class Manner:
    """How a model streams: tokens in a chunk, whether every chunk has usage, what usage says."""

    per_chunk: int = 1
    counts_every_chunk: bool = False
    usage: float | None = 1.0
    fails: str = ""


MODELS = {
    "steady": Manner(),
    "chunky": Manner(per_chunk=4),
    "counting": Manner(per_chunk=4, counts_every_chunk=True),
    "silent": Manner(usage=None),
    "lying": Manner(usage=0.5),
    "busy": Manner(fails="busy"),
    "breaking": Manner(fails="error event"),
    "cutting": Manner(fails="cut"),
    "stiff": Manner(fails="one at a time"),
}
LOCK = asyncio.Lock()


async def models(request: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": name} for name in [*MODELS, "drawing"]]})


async def metadata(request: web.Request) -> web.Response:
    if request.match_info["name"] != "drawing":
        raise web.HTTPNotFound
    return web.json_response({"platform": "fake", "outputs": [{"name": "image"}]})


async def ready(request: web.Request) -> web.Response:
    return web.json_response({"ready": True})


async def tokenize(request: web.Request) -> web.Response:
    body = await request.json()
    return web.json_response({"count": count(body)})


def count(body: dict[str, Any]) -> int:
    if "messages" not in body:
        return len(str(body["prompt"]).split())
    return sum(TEMPLATE + len(one["content"].split()) for one in body["messages"])


async def chat(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    manner = MODELS[body["model"]]
    if manner.fails == "busy":
        return web.json_response({"error": {"message": "full"}}, status=429)
    if not body.get("stream"):
        choice = {"message": {"content": body["messages"][-1]["content"]}}
        usage = {"prompt_tokens": count(body), "completion_tokens": 1}
        return web.json_response({"usage": usage, "choices": [choice]})
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    if manner.fails == "one at a time":
        async with LOCK:
            await stream(answer, body, manner)
    else:
        await stream(answer, body, manner)
    return answer


async def stream(answer: web.StreamResponse, body: dict[str, Any], manner: Manner) -> None:
    wanted, sent, due = body["max_tokens"], 0, time.perf_counter() + FIRST_S
    while sent < wanted:
        await asyncio.sleep(due - time.perf_counter())
        now = min(manner.per_chunk, wanted - sent)
        text = " ".join(f"w{place}" for place in range(sent, sent + now)) + " "
        if "response_format" in body:
            text, now = '{"shape": "star", "colour": "red", "count": 1}', wanted
        sent += now
        event: dict[str, Any] = CHUNK | {"choices": [{"delta": {"content": text}}]}
        if manner.counts_every_chunk:
            event["usage"] = {"prompt_tokens": count(body), "completion_tokens": sent}
        if manner.fails == "error event" and sent > wanted // 2:
            event = {"error": {"message": "the engine broke"}}
        if manner.fails == "cut" and sent > wanted // 2:
            return
        await send(answer, event)
        due += TOKEN_S * manner.per_chunk
    await send(answer, CHUNK | {"choices": [{"delta": {}, "finish_reason": "length"}]})
    if manner.usage is not None:
        told = round(wanted * manner.usage)
        usage = {"prompt_tokens": count(body), "completion_tokens": told}
        await send(answer, CHUNK | {"choices": [], "usage": usage})
    await answer.write(b"data: [DONE]\n\n")


async def pictures(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    for _ in range(body["partial_images"]):
        await asyncio.sleep(PREVIEW_S)
        await send(answer, {"type": "image_generation.partial_image"})
    await asyncio.sleep(PICTURE_S)
    await send(answer, {"type": "image_generation.completed", "size": body["size"]})
    return answer


async def send(answer: web.StreamResponse, event: dict[str, Any]) -> None:
    await answer.write(b"data: " + json.dumps(event).encode() + b"\n\n")


def engine() -> web.Application:
    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_get("/v2/models/{name}", metadata)
    app.router.add_get("/v2/models/{name}/ready", ready)
    app.router.add_post("/tokenize", tokenize)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_post("/v1/images/generations", pictures)
    return app


class SlowProxy:
    """Passes everything on; the i-th chunk of an answer comes i times ADDED_S later."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        async with (
            ClientSession() as session,
            session.request(
                request.method, self._base + request.path, data=await request.read()
            ) as upstream,
        ):
            kind = upstream.headers.get("Content-Type", "")
            if "event-stream" not in kind:
                data = await upstream.read()
                return web.Response(
                    body=data, status=upstream.status, headers={"Content-Type": kind}
                )
            answer = web.StreamResponse(headers={"Content-Type": kind})
            await answer.prepare(request)
            await self._delay(upstream.content, answer)
            return answer

    async def _delay(self, source: Any, answer: web.StreamResponse) -> None:
        events: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()

        async def read() -> None:
            place = 0
            while event := await source.readuntil(b"\n\n"):
                events.put_nowait((time.perf_counter() + place * ADDED_S, event))
                place += 1
            events.put_nowait(None)

        reading = asyncio.create_task(read())
        while entry := await events.get():
            due, event = entry
            await asyncio.sleep(due - time.perf_counter())
            await answer.write(event)
        await reading

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.handle)
        return app


async def serve(port: int, slow_port: int) -> None:
    for app, at in ((engine(), port), (SlowProxy(port).app(), slow_port)):
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", at).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
