"""The picture endpoint that the tools draw with, through its public HTTP API alone: a server of
ours, or any that speaks OpenAI's images API.

Every drawing asks for a job (`Prefer: respond-async`). A server of ours starts one, which is
followed and can be cancelled; a server that knows no jobs answers with the pictures.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
import orjson

from atelier.agents.job_events import Follower, JobState, told
from atelier.errors import EndpointFailed, InvalidRequest, NotFound
from atelier.protocols.http.remote import RemotePictures
from atelier.settings import Settings

CONNECT_SECONDS = 10
FAREWELL_SECONDS = 3
"""How long an abandoned request is waited for: its answer names the job that must be cancelled."""

CONNECTIONS = 200
JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
FILE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\.[a-z]{3,4}")

Watch = Callable[[JobState], Awaitable[None]]


@dataclass(frozen=True)
class FinishedPicture:
    """One encoded picture; `seed` draws it again, None where the endpoint tells none."""

    data: bytes
    seed: int | None = None


@dataclass(frozen=True)
class DrawnPictures:
    """What one call drew, and what the endpoint remarked on it."""

    pictures: list[FinishedPicture]
    warnings: list[str]


class PictureEndpoint:
    """MCP_ENDPOINT. For one event loop; `close` ends the jobs that nobody waits for any more."""

    def __init__(self, settings: Settings) -> None:
        self.base = base_of(settings.mcp_endpoint)
        key = settings.mcp_endpoint_key
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        self._settings = settings
        self._http = httpx.AsyncClient(
            base_url=self.base,
            headers=headers,
            timeout=httpx.Timeout(settings.request_timeout, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=CONNECTIONS),
        )
        self._follower = Follower(self._http)
        self._sent: set[asyncio.Task[httpx.Response]] = set()
        self._jobs: set[str] = set()
        self._farewells: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Cancel what still runs, wait for cancellations that are on their way, and disconnect."""
        for request in self._sent:
            self._later(self._give_up(request))
        for job in self._jobs:
            self._later(self._cancel(job))
        with anyio.move_on_after(2 * FAREWELL_SECONDS, shield=True):
            await asyncio.gather(*self._farewells)
        with anyio.CancelScope(shield=True):
            await self._http.aclose()

    async def models(self) -> list[dict[str, Any]]:
        """The entries of `GET /v1/models`.

        Raises:
            EndpointFailed: it cannot be reached, or refuses.
        """
        listed = (await self._get("/v1/models")).get("data")
        if not isinstance(listed, list):
            raise EndpointFailed(f"{self.base}/v1/models lists no models")
        return [entry for entry in listed if isinstance(entry, dict) and "id" in entry]

    async def ready(self, name: str) -> bool:
        """Whether a server of ours would draw with this model now."""
        return (await self._send("GET", f"/v2/models/{name}/ready")).status_code == 200

    async def metadata(self, name: str) -> dict[str, Any]:
        """What a server of ours tells of its model; empty while it loads."""
        return dict((await self._get(f"/v2/models/{name}")).get("properties") or {})

    async def file(self, url: str) -> bytes | None:
        """The picture behind a URL that this endpoint gave out; None if it did not give this one.

        Raises:
            NotFound: it is gone there.
        """
        name = url.removeprefix(f"{self.base}/v1/images/files/")
        if name == url or not FILE_NAME.fullmatch(name):
            return None
        answer = await self._send("GET", f"/v1/images/files/{name}")
        if answer.status_code == 404:
            raise NotFound(f"{url}: {told(answer)}")
        return _checked(answer).content

    async def generate(self, fields: dict[str, Any], watch: Watch) -> DrawnPictures:
        """Draw from a prompt. `fields` are those of `POST /v1/images/generations`.

        Raises:
            EndpointFailed: it cannot be reached, refuses or fails; the message has its own words.
        """
        return await self._draw("/v1/images/generations", watch, json=fields)

    async def edit(
        self, fields: dict[str, Any], pictures: dict[str, bytes], watch: Watch
    ) -> DrawnPictures:
        """Redraw a picture. `pictures` are the files of the form, `image` and `mask`.

        Raises:
            EndpointFailed: as `generate`.
        """
        form = {name: _text(value) for name, value in fields.items()}
        files = {name: (f"{name}.png", data) for name, data in pictures.items()}
        return await self._draw("/v1/images/edits", watch, data=form, files=files)

    async def _draw(self, path: str, watch: Watch, **body: Any) -> DrawnPictures:
        answer = _checked(await self._start(path, body))
        if answer.status_code != 202:
            return await self._drawing(_object(answer))
        job = str(_object(answer).get("id"))
        if not JOB_ID.fullmatch(job):
            raise EndpointFailed(f"{self.base}{path} started a job without a name")
        self._jobs.add(job)
        try:
            result = await self._follower.result(job, watch)
        finally:
            self._jobs.discard(job)
            self._later(self._cancel(job))  # one that has ended is forgotten by it
        return await self._drawing(result)

    async def _start(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """Send the request. Whoever gives it up while it is on its way still has its job
        cancelled."""
        headers = {"Prefer": "respond-async"}
        sent = asyncio.create_task(self._send("POST", path, headers=headers, **body))
        self._sent.add(sent)
        sent.add_done_callback(self._sent.discard)
        try:
            return await asyncio.shield(sent)
        except asyncio.CancelledError:
            self._sent.discard(sent)
            self._later(self._give_up(sent))
            raise

    async def _give_up(self, sent: asyncio.Task[httpx.Response]) -> None:
        await asyncio.wait({sent}, timeout=FAREWELL_SECONDS)
        if not sent.done():
            sent.cancel()  # a server without jobs sees the connection close
        elif not sent.cancelled() and not sent.exception() and sent.result().status_code == 202:
            await self._cancel(str(_object(sent.result()).get("id")))

    async def _cancel(self, job: str) -> None:
        try:
            await self._http.delete(f"/v1/jobs/{job}", timeout=FAREWELL_SECONDS)
        except httpx.HTTPError:
            return  # it is gone, and its jobs with it

    def _later(self, farewell: Coroutine[Any, Any, None]) -> None:
        """Do it though the caller is being cancelled; `close` waits for it."""
        task = asyncio.create_task(farewell)
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)

    async def _get(self, path: str) -> dict[str, Any]:
        return _object(_checked(await self._send("GET", path)))

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return await self._http.request(method, path, **options)
        except httpx.TimeoutException:
            raise EndpointFailed(f"{self.base} did not answer in time") from None
        except httpx.HTTPError as error:
            raise EndpointFailed(
                f"MCP_ENDPOINT={self.base} cannot be reached: {error or type(error).__name__}"
            ) from None

    async def _drawing(self, answer: dict[str, Any]) -> DrawnPictures:
        entries = answer.get("data")
        if not isinstance(entries, list) or not entries:
            raise EndpointFailed(f"{self.base} answered without pictures")
        pictures = [
            FinishedPicture(await self._data(entry), entry.get("seed")) for entry in entries
        ]
        return DrawnPictures(pictures, [str(one) for one in answer.get("warnings") or []])

    async def _data(self, entry: dict[str, Any]) -> bytes:
        if entry.get("b64_json"):
            try:
                return base64.b64decode(entry["b64_json"], validate=True)
            except (binascii.Error, ValueError) as error:
                raise EndpointFailed(f"{self.base} sent what is not base64: {error}") from None
        url = str(entry.get("url", ""))
        own = await self.file(url)
        return own if own is not None else await asyncio.to_thread(self._download, url)

    def _download(self, url: str) -> bytes:
        """A picture that the endpoint left on another host, which must be a public one."""
        try:
            host = httpx.URL(url).host
            allowed = self._settings.model_copy(update={"allowed_image_hosts": [host]})
            return RemotePictures(allowed).fetch(url, "url")
        except (httpx.InvalidURL, InvalidRequest) as error:
            raise EndpointFailed(f"{self.base} answered with a URL: {error}") from None


def base_of(endpoint: str) -> str:
    """The URL that paths such as /v1/models are appended to, whether or not /v1 was given."""
    return endpoint.rstrip("/").removesuffix("/v1").rstrip("/")


def _text(value: Any) -> str:
    """A field of a form: objects are JSON there."""
    return orjson.dumps(value).decode() if isinstance(value, dict) else str(value)


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    again = answer.headers.get("retry-after")
    hint = f"; try again in {again} s" if answer.status_code == 429 and again else ""
    raise EndpointFailed(f"{told(answer)}{hint}")


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        value = answer.json()
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise EndpointFailed(f"{answer.url} did not answer with a JSON object")
    return value
