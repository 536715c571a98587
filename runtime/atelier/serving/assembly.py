"""The classes that serve a picture model or a language model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from atelier.errors import SettingsError
from atelier.protocols.http.metrics import ChildMetrics
from atelier.settings import Settings, ignored
from atelier.settings.groups import Server
from atelier.sources.kind import kind_of
from atelier.telemetry import Metrics

log = logging.getLogger(__name__)

Load = Callable[[], Awaitable[None]]


PICTURE_HINT = """
Try it:

  curl -s {origin}/v1/models/{name}:predict -H 'Content-Type: application/json' \\
    -d '{{"instances": [{{"prompt": "a red circle on a blue background", "seed": 7}}]}}' \\
    | python3 -c 'import json, sys
print(json.load(sys.stdin)["predictions"][0]["image"]["b64"])' \\
    | base64 -d > picture.png
"""

TEXT_HINT = """
Try it:

  curl -s {origin}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{name}",
         "messages": [{{"role": "user", "content": "something round and red"}}]}}'
"""


@dataclass(frozen=True)
class Served:
    """A model, what loads and drains it, what makes its KServe adapter from a load function, its v2
    outputs, and a command to try it with.

    With a child engine also what stands before the web framework to forward requests, the engine's
    metrics, its paths, and in how many seconds it is expected while it is down.
    """

    model: Any
    load: Load
    drain: Callable[[float], Awaitable[None]]
    adapter: Callable[[Load], Any]
    outputs: dict[str, str]
    hint: str
    door: Callable[[ASGIApp], ASGIApp] | None = None
    child_metrics: ChildMetrics | None = None
    forwards: Callable[[], tuple[str, ...]] = tuple
    expected: Callable[[], float | None] = lambda: None


def serve_kind(settings: Settings, app: FastAPI, metrics: Metrics) -> Served:
    """The model to serve, with its own routes mounted on `app`. A child engine speaks for itself,
    whatever it serves.

    Raises:
        SettingsError: SEQUENCE_PARALLEL_SIZE for what draws no pictures here.
    """
    server = server_of(settings)
    if settings.sequence_parallel_size > 1 and server != "image":
        raise SettingsError(
            f"SEQUENCE_PARALLEL_SIZE={settings.sequence_parallel_size} is for pictures of the own"
            f" engine, not for {server}; child engines have TENSOR_PARALLEL_SIZE"
        )
    if unread := ignored(settings, server):
        log.warning("set, but not read by this server (%s): %s", server, ", ".join(unread))
    return (_image_model if server == "image" else _text_model)(settings, app, metrics)


def server_of(settings: Settings) -> Server:
    """What reads the settings: a child engine, or the embedded one for the kind of model."""
    return kind_of(settings) if settings.engine == "transformers" else settings.engine


async def in_thread(blocking: Callable[..., None], *arguments: Any) -> None:
    """Run what blocks without holding up the event loop."""
    await asyncio.to_thread(blocking, *arguments)


def _text_model(settings: Settings, app: FastAPI, metrics: Metrics) -> Served:
    from atelier.protocols.http.results import ResultStore
    from atelier.protocols.kserve.generate import router as generate_router
    from atelier.protocols.kserve.infer import router as infer_router
    from atelier.protocols.kserve.text import OUTPUTS, KServeTextModel, infer
    from atelier.protocols.openai.text_routes import router
    from atelier.serving.forwarding import Door
    from atelier.text.model import TextModel
    from atelier.workers.text_front import TextFront

    embedded = settings.engine == "transformers"
    model = TextFront(settings, metrics) if embedded else TextModel(settings, metrics)
    results = ResultStore(settings.result_seconds, settings.result_bytes)
    app.include_router(router(model, results))
    app.include_router(generate_router(model))
    app.include_router(infer_router(model, partial(infer, model)))
    outputs = dict.fromkeys(OUTPUTS, "BYTES")
    served = Served(
        model,
        model.load if isinstance(model, TextFront) else partial(in_thread, model.load),
        model.drain if isinstance(model, TextFront) else partial(in_thread, model.drain),
        lambda load: KServeTextModel(model, load),
        outputs,
        TEXT_HINT,
    )
    if isinstance(model, TextFront):
        return served
    return replace(
        served,
        door=lambda inner: Door(inner, model, settings.request_timeout),
        child_metrics=model.child_metrics,
        forwards=lambda: model.forwards,
        expected=lambda: model.expected_s,
    )


def _image_model(settings: Settings, app: FastAPI, metrics: Metrics) -> Served:
    from atelier.protocols.http.results import ResultStore
    from atelier.protocols.jobs.job import Jobs
    from atelier.protocols.jobs.routes import router as jobs_router
    from atelier.protocols.kserve.infer import router as infer_router
    from atelier.protocols.kserve.pictures import KServeImageModel, infer
    from atelier.protocols.kserve.predict import router as predict_router
    from atelier.protocols.openai.image_routes import ImagesApi
    from atelier.protocols.openai.image_routes import router as images_router
    from atelier.protocols.openai.picture_chats import PictureChats
    from atelier.protocols.openai.picture_chats import router as chats_router
    from atelier.protocols.picture_writer import PictureWriter
    from atelier.workers.image_front import ImageFront

    writer = PictureWriter(settings)
    model = ImageFront(settings, metrics)
    metrics.watch_workers(lambda: len([one for one in model.workers if one.state == "ready"]))
    store = ResultStore(settings.result_seconds, settings.result_bytes)
    jobs = Jobs(model, writer, store)
    app.include_router(predict_router(model, writer, jobs, settings))
    app.include_router(infer_router(model, partial(infer, model, writer, settings)))
    app.include_router(images_router(ImagesApi(model, writer, jobs, store, settings)))
    app.include_router(chats_router(PictureChats(model, writer, settings)))
    app.include_router(jobs_router(jobs))
    outputs = {"image": "BYTES", "seed": "INT64"}
    return Served(
        model,
        model.load,
        model.drain,
        lambda load: KServeImageModel(model, writer, settings, load),
        outputs,
        PICTURE_HINT,
    )
