"""Endpoints that are not ours, and what they do to a client: other forms of answers and errors,
connections that break off, answers that come late or point elsewhere."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from atelier.agents import job_events
from atelier.agents.endpoint import PictureEndpoint, base_of
from atelier.agents.job_events import JobState
from atelier.errors import EndpointFailed
from atelier.settings import Settings
from tests.agents.conftest import wait_until
from tests.conftest import free_port
from tests.protocols.pictures import encoded

RED = encoded((255, 0, 0), (8, 8))
ANSWER = {"created": 1, "data": [{"b64_json": base64.b64encode(RED).decode()}]}


class Foreign(ThreadingHTTPServer):
    """An API of somebody else. `answer(path)` gives status and body; `seen` is what came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Callable[[str], tuple[int, Any]] = lambda path: (200, ANSWER)
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.left = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Foreign

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, self.path, dict(self.headers), body))
        status, answer = self.server.answer(self.path)
        if status == 0:  # draws until the client closes the connection
            self.connection.settimeout(20)
            if self.connection.recv(1) == b"":
                self.server.left.set()
            return
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Retry-After", "7")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_DELETE = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def foreign() -> Iterator[Foreign]:
    server = Foreign()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


async def unheard(state: JobState) -> None:
    """Nobody listens."""


async def generate(url: str, **fields: Any) -> Any:
    endpoint = PictureEndpoint(Settings(mcp_endpoint=url, mcp_endpoint_key="secret"))
    try:
        return await endpoint.generate({"prompt": "a"} | fields, unheard)
    finally:
        await endpoint.close()


def test_the_base_is_the_same_with_and_without_v1() -> None:
    assert base_of("https://host/v1/") == base_of("https://host") == "https://host"
    assert base_of("https://host/openai/v1") == "https://host/openai"


async def test_an_api_without_jobs_is_asked_as_openai_is(foreign: Foreign) -> None:
    drawn = await generate(f"{foreign.url}/v1", seed=3)
    assert [one.data for one in drawn.pictures] == [RED]
    ((_, path, headers, body),) = foreign.seen
    assert (path, json.loads(body)) == ("/v1/images/generations", {"prompt": "a", "seed": 3})
    assert headers["Authorization"] == "Bearer secret"


async def test_an_edit_is_a_form(foreign: Foreign) -> None:
    endpoint = PictureEndpoint(Settings(mcp_endpoint=foreign.url))
    fields = {"prompt": "b", "lora": {"ring": 1.0}}
    drawn = await endpoint.edit(fields, {"image": RED, "mask": RED}, unheard)
    await endpoint.close()
    assert drawn.pictures[0].data == RED
    ((_, path, headers, body),) = foreign.seen
    assert path == "/v1/images/edits"
    assert headers["Content-Type"].startswith("multipart/form-data")
    assert body.count(RED) == 2 and b'{"ring":1.0}' in body and b'filename="mask.png"' in body


async def test_a_picture_behind_a_url_is_fetched_from_the_endpoint_or_a_public_host(
    foreign: Foreign,
) -> None:
    name = "/v1/images/files/abc.png"
    link = {"data": [{"url": foreign.url + name}]}
    foreign.answer = lambda path: (200, RED if path == name else link)
    assert (await generate(foreign.url)).pictures[0].data == RED
    for inside in ("http://localhost:1/a.png", "http://169.254.169.254/a", "file:///etc/passwd"):
        link["data"][0]["url"] = inside
        with pytest.raises(EndpointFailed, match="answered with a URL"):
            await generate(foreign.url)


REFUSALS = [
    (400, {"error": {"message": "no such size", "type": "x"}}, "no such size"),
    (400, {"error": "no such size"}, "no such size"),
    (422, {"detail": "no such field"}, "no such field"),
    (401, {"message": "no such key"}, "no such key"),
    (429, {"error": {"message": "too much"}}, "too much; try again in 7 s"),
    (502, b"<html>", "answered with status 502"),
    (200, b"<html>", "did not answer with a JSON object"),
    (200, {"data": []}, "without pictures"),
    (200, {"data": [{"b64_json": "?!"}]}, "not base64"),
    (202, {"id": "../../x"}, "a job without a name"),
]


@pytest.mark.parametrize(("status", "body", "words"), REFUSALS)
async def test_what_an_endpoint_refuses_is_told_in_its_words(
    foreign: Foreign, status: int, body: Any, words: str
) -> None:
    foreign.answer = lambda path: (status, body)
    with pytest.raises(EndpointFailed) as told:
        await generate(foreign.url)
    assert words in told.value.message and "secret" not in told.value.message


async def test_an_endpoint_that_is_not_there_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(EndpointFailed, match=f"MCP_ENDPOINT={url} cannot be reached"):
        await generate(url)


async def test_giving_up_closes_the_connection_to_an_api_without_jobs(
    foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atelier.agents.endpoint.FAREWELL_SECONDS", 0.5)
    foreign.answer = lambda path: (0, None)
    drawing = asyncio.create_task(generate(foreign.url))
    assert await asyncio.to_thread(wait_until, lambda: bool(foreign.seen), 5)
    drawing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drawing
    assert await asyncio.to_thread(foreign.left.wait, 5)


async def test_a_job_that_starts_while_it_is_given_up_is_cancelled(foreign: Foreign) -> None:
    def answer(path: str) -> tuple[int, Any]:
        if path == "/v1/images/generations":
            time.sleep(0.5)
            return 202, {"id": "the-job"}
        return 200, {}

    foreign.answer = answer
    drawing = asyncio.create_task(generate(foreign.url))
    assert await asyncio.to_thread(wait_until, lambda: bool(foreign.seen), 5)
    drawing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drawing
    assert [(method, path) for method, path, _, _ in foreign.seen][1:] == [
        ("DELETE", "/v1/jobs/the-job")
    ]


def events(*states: dict[str, Any]) -> bytes:
    return b"".join(
        f"event: {state['status']}\ndata: {json.dumps(state)}\n\n".encode() for state in states
    )


async def test_events_that_break_off_are_taken_up_again(foreign: Foreign) -> None:
    streams = [
        events({"status": "running", "step": 1, "total_steps": 2}),
        events({"status": "succeeded", "step": 2, "total_steps": 2}),
    ]

    def answer(path: str) -> tuple[int, Any]:
        if path.endswith("/events"):
            return 200, streams.pop(0)
        return (202, {"id": "j"}) if "images" in path else (200, {"result": ANSWER})

    foreign.answer = answer
    assert (await generate(foreign.url)).pictures[0].data == RED
    assert foreign.seen[-1][:2] == ("DELETE", "/v1/jobs/j"), "what is collected is forgotten there"


async def test_an_endpoint_that_goes_away_while_it_draws_is_told(
    foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_events, "RESUMED", 1)

    def answer(path: str) -> tuple[int, Any]:
        if "images" in path:
            return 202, {"id": "j"}
        return 200, events({"status": "running", "step": 1})

    foreign.answer = answer
    with pytest.raises(EndpointFailed, match="went away while it drew"):
        await generate(foreign.url)
    foreign.answer = lambda path: (202, {"id": "j"}) if "images" in path else (404, {})
    with pytest.raises(EndpointFailed, match="restarted"):
        await generate(foreign.url)


async def test_a_job_that_failed_is_told_in_the_endpoints_words(foreign: Foreign) -> None:
    failed = {"status": "failed", "error": {"message": "the deadline is over"}}

    def answer(path: str) -> tuple[int, Any]:
        return (202, {"id": "j"}) if "images" in path else (200, events(failed))

    foreign.answer = answer
    with pytest.raises(EndpointFailed, match="the deadline is over"):
        await generate(foreign.url)
