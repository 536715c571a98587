"""A job of the endpoint, followed to its end: its events as they come, its result once it is
there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from atelier.errors import EndpointFailed

SILENCE_SECONDS = 60.0
"""A stream says something every 15 s; one that is silent for longer is dead."""

RESUMED = 3
"""How often a stream that broke off is taken up again: the job runs on without it."""


@dataclass(frozen=True)
class JobState:
    """Where a job stands. `total` is None until it is known, `position` once it is drawn."""

    status: str
    step: int
    total: int | None
    position: int | None
    error: str

    @property
    def ended(self) -> bool:
        return self.status not in ("queued", "running")


class Follower:
    """Follows jobs over one HTTP client."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def result(
        self, job: str, watch: Callable[[JobState], Awaitable[None]]
    ) -> dict[str, Any]:
        """The result of the job: what the same request without a job would have answered.

        Raises:
            EndpointFailed: the job failed or was cancelled, or the endpoint went away meanwhile.
        """
        state = await self._last_state(job, watch)
        if state.status != "succeeded":
            raise EndpointFailed(state.error or f"the job was {state.status} at the endpoint")
        answer = await self._http.get(f"/v1/jobs/{job}")
        if not answer.is_success:
            raise EndpointFailed(f"the pictures are drawn, but cannot be had: {told(answer)}")
        return dict(answer.json()["result"])

    async def _last_state(self, job: str, watch: Callable[[JobState], Awaitable[None]]) -> JobState:
        fault = ""
        for attempt in range(RESUMED + 1):
            await asyncio.sleep(attempt)
            try:
                async for state in self._states(job):
                    await watch(state)
                    if state.ended:
                        return state
                fault = "its events ended before the job did"
            except httpx.HTTPError as error:
                fault = str(error) or type(error).__name__
        raise EndpointFailed(f"the endpoint went away while it drew: {fault}")

    async def _states(self, job: str) -> AsyncIterator[JobState]:
        """The states of one stream of events. Previews are passed over."""
        timeout = httpx.Timeout(SILENCE_SECONDS)
        async with self._http.stream("GET", f"/v1/jobs/{job}/events", timeout=timeout) as answer:
            if answer.status_code == 404:
                raise EndpointFailed("the endpoint does not know the job any more: it restarted")
            answer.raise_for_status()
            event = ""
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                elif line.startswith("data: ") and event != "preview":
                    yield _state(orjson.loads(line.removeprefix("data: ")))


def _state(data: dict[str, Any]) -> JobState:
    return JobState(
        status=str(data["status"]),
        step=int(data.get("step") or 0),
        total=data.get("total_steps"),
        position=data.get("queue_position"),
        error=str((data.get("error") or {}).get("message", "")),
    )


def told(answer: httpx.Response) -> str:
    """The error in the server's own words, whichever of the usual forms it has."""
    try:
        error = answer.json()
    except ValueError:
        error = None
    for name in ("error", "message", "detail"):
        if isinstance(error, dict) and name in error:
            error = error[name]
    if isinstance(error, str) and error:
        return error
    return f"{answer.request.url} answered with status {answer.status_code}"
