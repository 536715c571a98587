"""The studio's way to an endpoint: what is served, a picture drawn as a job, a chat streamed, the
metrics. Errors are the API's own words."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from atelier.errors import AtelierError
from atelier.studio.card import ModelCard

SHORT = httpx.Timeout(5.0)
"""For what answers at once."""

LONG = httpx.Timeout(600.0, connect=5.0)
"""For what waits for a device."""

STREAM = httpx.Timeout(60.0, connect=5.0)
"""Between two signs of life of a stream, which come every 15 s."""


class EndpointError(AtelierError):
    """An endpoint refused, failed, or cannot be reached."""


@dataclass(frozen=True)
class DrawState:
    """Where a picture stands. `position` counts the requests ahead; `left_s` are seconds."""

    status: str
    position: int | None = None
    left_s: float | None = None
    step: int = 0
    total: int | None = None


@dataclass(frozen=True)
class Sketch:
    """An unfinished picture, encoded as PNG."""

    step: int
    png: bytes


@dataclass(frozen=True)
class Drawn:
    """A finished picture, encoded as PNG, and the seed that draws it again."""

    png: bytes
    seed: int


class EndpointClient:
    """One server of ours. For the event loop that first uses it."""

    def __init__(self, url: str, trust_env: bool = True) -> None:
        """`trust_env`: heed the environment's proxies, which a server asking itself must not.

        Raises:
            EndpointError: `url` is no HTTP address.
        """
        self.url = url.strip().rstrip("/")
        if not self.url.startswith(("http://", "https://")) or not httpx.URL(self.url).host:
            raise EndpointError(f"--endpoint: {url!r} is not an address such as http://host:8080")
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        self._http = httpx.AsyncClient(base_url=self.url, limits=limits, trust_env=trust_env)

    async def card(self) -> ModelCard:
        """What is served here; with its `problem` if it is away or not ready. Raises nothing."""
        try:
            names = (await self._json("GET", "/v1/models", timeout=SHORT))["models"]
            told = await self._json("GET", f"/v2/models/{names[0]}", timeout=SHORT)
            outputs = {output["name"] for output in told["outputs"]}
            ready = await self._json("GET", f"/v1/models/{names[0]}", timeout=SHORT, ok=(200, 503))
        except EndpointError as error:
            return ModelCard(self.url, problem=error.message, away=True)
        except (KeyError, IndexError, TypeError):
            told = f"{self.url} answers, but is no Atelier server"
            return ModelCard(self.url, problem=told, away=True)
        return ModelCard(
            self.url,
            name=str(told["name"]),
            kind="pictures" if "image" in outputs else "language",
            problem=str(ready.get("error", "")),
            properties=told.get("properties", {}),
        )

    async def metrics(self) -> str:
        """The page that Prometheus reads.

        Raises:
            EndpointError: it cannot be had.
        """
        async with self._errors():
            answer = await self._http.get("/metrics", timeout=SHORT)
            await _check(answer)
            return answer.text

    async def draw(
        self, model: str, fields: dict[str, Any], key: str
    ) -> AsyncGenerator[DrawState | Sketch | Drawn]:
        """Draw one picture as a job; ends with `Drawn`. Left early, the job is cancelled.

        Args:
            fields: of a picture request, see docs/protocols.md.

        Raises:
            EndpointError: the request is refused, or failed.
        """
        body = {"instances": [fields]}
        headers = _bearer(key) | {"Prefer": "respond-async"}
        path = f"/v1/models/{model}:predict"
        job = await self._json("POST", path, json=body, headers=headers, timeout=LONG)
        ended = False
        try:
            async for event, data in self._events(job["events_url"], key):
                if event == "preview":
                    yield Sketch(data["step"], base64.b64decode(data["b64_json"]))
                    continue
                state = _state(data)
                ended = state.status not in ("queued", "running")
                if state.status in ("failed", "cancelled"):
                    raise EndpointError(_worded(data) or "the picture was cancelled")
                yield state
            if not ended:
                raise EndpointError(f"{self.url} ended the job's events before the picture")
            done = await self._json("GET", job["url"], headers=_bearer(key), timeout=LONG)
            prediction = done["result"]["predictions"][0]
            yield Drawn(base64.b64decode(prediction["image"]["b64"]), prediction["seed"])
        finally:
            # Work is dropped before its next step; a finished job's result is not kept for long.
            with suppress(EndpointError):
                await self._json("DELETE", job["url"], headers=_bearer(key), timeout=SHORT)

    async def chat(self, body: dict[str, Any], key: str) -> AsyncGenerator[dict[str, Any]]:
        """The deltas of a streamed chat completion.

        Raises:
            EndpointError: it is refused, or fails on the way.
        """
        path, headers = "/v1/chat/completions", _bearer(key)
        async with (
            self._errors(),
            self._http.stream("POST", path, json=body, headers=headers, timeout=LONG) as answer,
        ):
            await _check(answer)
            async for _, data in _frames(answer):
                if "error" in data:
                    raise EndpointError(_worded(data))
                for choice in data.get("choices", ()):
                    yield choice["delta"]

    async def _events(self, path: str, key: str) -> AsyncGenerator[tuple[str, Any]]:
        async with (
            self._errors(),
            self._http.stream("GET", path, headers=_bearer(key), timeout=STREAM) as answer,
        ):
            await _check(answer)
            async for frame in _frames(answer):
                yield frame

    async def _json(self, method: str, path: str, ok: tuple[int, ...] = (), **options: Any) -> Any:
        async with self._errors():
            answer = await self._http.request(method, path, **options)
            if answer.status_code not in ok:
                await _check(answer)
            try:
                return orjson.loads(answer.content)
            except orjson.JSONDecodeError:
                raise EndpointError(f"{self.url}{path} answered no JSON") from None

    @asynccontextmanager
    async def _errors(self) -> AsyncGenerator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise EndpointError(f"{self.url} cannot be reached: {reason}") from error


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _state(data: dict[str, Any]) -> DrawState:
    position, left = data.get("queue_position"), data.get("estimate_seconds")
    return DrawState(data["status"], position, left, data["step"], data["total_steps"])


async def _frames(answer: httpx.Response) -> AsyncGenerator[tuple[str, Any]]:
    """Server-sent events with JSON bodies."""
    name = ""
    async for line in answer.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: ") and line != "data: [DONE]":
            yield name, orjson.loads(line.removeprefix("data: "))
            name = ""


async def _check(answer: httpx.Response) -> None:
    """See that the answer is good.

    Raises:
        EndpointError: it is not; the message is the server's, and says when to come back.
    """
    if answer.is_success:
        return
    content = await answer.aread()
    try:
        words = _worded(orjson.loads(content))
    except orjson.JSONDecodeError:
        words = ""
    words = words or f"{answer.url} answered {answer.status_code} {answer.reason_phrase}"
    if later := answer.headers.get("retry-after"):
        words += f" (again in {later} s)"
    raise EndpointError(words)


def _worded(body: Any) -> str:
    """The message of an error body, in any of the protocols' shapes."""
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message", "")) if isinstance(error, dict) else str(error or "")
