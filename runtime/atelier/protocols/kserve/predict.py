"""KServe's v1 predict as a route of our own, so that it can become a job and takes every content
type that holds JSON.

CloudEvents are left to KServe's route, which unwraps them and answers in kind.
"""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import Scope

from atelier.images.service import PictureService
from atelier.protocols.http.deadlines import timed
from atelier.protocols.http.models import check_name
from atelier.protocols.http.openapi import PREDICT_BODY, answers, json_body
from atelier.protocols.http.pools import reading, writing
from atelier.protocols.jobs.job import Jobs
from atelier.protocols.jobs.routes import accepted, wants_job
from atelier.protocols.kserve.pictures import parse_v1, prediction
from atelier.protocols.picture_requests import DrawnRequest, draw_all
from atelier.protocols.picture_writer import PictureWriter
from atelier.settings import Settings

OPTIONS = answers("application/json", job=True)


class PlainRoute(APIRoute):
    """A route that does not match CloudEvents."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if "ce-specversion" in headers or "application/cloudevents" in headers.get(
            "content-type", ""
        ):
            return Match.NONE, {}
        return super().matches(scope)


def router(
    model: PictureService, writer: PictureWriter, jobs: Jobs, settings: Settings
) -> APIRouter:
    """`POST /v1/models/{name}:predict`."""
    routes = APIRouter(route_class=PlainRoute, tags=["V1"])

    async def answer(drawn: list[DrawnRequest]) -> bytes:
        return await writing(_predictions, model, drawn)

    @routes.post(
        "/v1/models/{model_name}:predict", openapi_extra=json_body(PREDICT_BODY), **OPTIONS
    )
    async def predict(model_name: str, request: Request) -> Response:
        """One prediction for each instance, in order. With `Prefer: respond-async`, a job."""
        check_name(model, model_name)
        with model.refusals("v1"):
            model.check_room()
            requests = await reading(parse_v1, await request.body(), settings)
            requests = [timed(one, request.headers) for one in requests]
        if wants_job(request):
            return accepted(await jobs.start(requests, "v1", answer))
        drawn = await draw_all(model, writer, requests, "v1")
        return Response(await answer(drawn), media_type="application/json")

    return routes


def _predictions(model: PictureService, drawn: list[DrawnRequest]) -> bytes:
    body: dict[str, Any] = {"predictions": [prediction(model, each) for each in drawn]}
    return orjson.dumps(body)
