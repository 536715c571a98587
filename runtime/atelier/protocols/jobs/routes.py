"""The routes of jobs: `Prefer: respond-async` starts one; `/v1/jobs/{id}` follows, cancels,
collects."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from atelier.events import Preview
from atelier.protocols.http.openapi import answers
from atelier.protocols.http.sse import EventStreamResponse, frame
from atelier.protocols.jobs.job import Job, Jobs
from atelier.protocols.picture_writer import PictureWriter


def wants_job(request: Request) -> bool:
    """True if the client prefers a job to waiting (RFC 7240)."""
    values = ",".join(request.headers.getlist("prefer"))
    return any(part.split(";")[0].strip().lower() == "respond-async" for part in values.split(","))


def accepted(job: Job) -> JSONResponse:
    """202, and where to look."""
    location = f"/v1/jobs/{job.id}"
    headers = {"Location": location, "Preference-Applied": "respond-async", "Retry-After": "1"}
    return JSONResponse(
        job.describe() | {"url": location, "events_url": f"{location}/events"}, 202, headers
    )


def router(jobs: Jobs) -> APIRouter:
    """Status and result, events, cancellation."""
    routes = APIRouter(tags=["Jobs"])

    @routes.get("/v1/jobs/{job_id}", operation_id="get_job", **answers("application/json"))
    async def status(job_id: str) -> Response:
        """State, progress and, once it has succeeded, the result of a job."""
        job = jobs.get(job_id)
        return Response(await jobs.body(job), media_type="application/json")

    @routes.delete("/v1/jobs/{job_id}", operation_id="cancel_job")
    async def cancel(job_id: str) -> JSONResponse:
        """Cancel a job that runs: its work is dropped before the next step. Forget one that has
        ended."""
        job = jobs.get(job_id)
        await jobs.cancel(job)
        return JSONResponse(job.describe())

    @routes.get(
        "/v1/jobs/{job_id}/events", operation_id="follow_job", **answers("text/event-stream")
    )
    async def events(job_id: str) -> EventStreamResponse:
        """The state after every change, each event named by its status; `preview` events carry
        pictures."""
        return EventStreamResponse(_frames(jobs.writer, jobs.get(job_id)))

    return routes


async def _frames(writer: PictureWriter, job: Job) -> AsyncGenerator[bytes]:
    shown: Preview | None = None
    async for state in job.states():
        if job.preview and job.preview[1] is not shown:
            index, shown = job.preview
            data = await writer.preview(shown, job.requests[index])
            picture = base64.b64encode(data).decode()
            yield frame(
                {"id": job.id, "index": index, "step": shown.step, "b64_json": picture}, "preview"
            )
        yield frame(state, str(state["status"]))
