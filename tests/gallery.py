"""Many models behind one port: KServe's own REST routes in a thread of the test process, for tests that go through a lot of
checkpoints. A server process for each, as `conftest.py` starts them, would take most of the tests' time."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from kserve.model_repository import ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.v1_endpoints import register_v1_endpoints
from kserve.protocol.rest.v2_endpoints import register_v2_endpoints
from PIL import Image

from atelier.events import Event
from atelier.images.model import ImageModel
from atelier.protocols.http import add_error_handlers, add_middleware
from atelier.protocols.kserve import KServeImageModel
from atelier.settings import Settings

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass
class Tally:
    """An engine observer that remembers by stage how many requests at most shared one module call."""

    shared: Counter[str] = field(default_factory=Counter)

    def request(self, protocol: str) -> Callable[[Event], None]:
        return lambda event: None

    def call(self, stage: str, seconds: float, rows: int, requests: int) -> None:
        self.shared[stage] = max(self.shared[stage], requests)

    def embedding(self, hit: bool) -> None:
        """Not counted."""

    def out_of_memory(self) -> None:
        """Not counted."""


@dataclass(frozen=True)
class Exhibit:
    """One served model."""

    url: str
    model: ImageModel
    tally: Tally

    def post(self, *instances: dict[str, Any], **parameters: Any) -> httpx.Response:
        """One v1 predict request."""
        body = {"instances": list(instances), "parameters": parameters}
        return httpx.post(f"{self.url}/v1/models/{self.model.name}:predict", json=body, timeout=300)

    def draw(self, *instances: dict[str, Any], **parameters: Any) -> list[Pixels]:
        """The picture of each instance; all of them are at work in the engine at once."""
        answer = self.post(*instances, **parameters)
        assert answer.status_code == 200, answer.text
        return [pixels(base64.b64decode(each["image"]["b64"])) for each in answer.json()["predictions"]]


class Gallery:
    """The server; models come and go."""

    def __init__(self) -> None:
        self._models = ModelRepository()
        app = FastAPI()
        add_middleware(app, Settings())
        add_error_handlers(app)
        plane = DataPlane(self._models)
        extension = ModelRepositoryExtension(self._models)
        register_v1_endpoints(app, plane, extension)
        register_v2_endpoints(app, plane, extension)
        self._server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"

    @contextmanager
    def showing(self, checkpoint: Path, **settings: Any) -> Iterator[Exhibit]:
        """Load a checkpoint the way the server does and serve it under its folder's name."""
        chosen = Settings(**{"model_id": str(checkpoint), "device": "cpu", "dtype": "float32", **settings})
        tally = Tally()
        model = ImageModel(chosen, tally)
        model.load()
        self._models.update(KServeImageModel(model, chosen, model.load))
        try:
            yield Exhibit(self._url, model, tally)
        finally:
            self._models.unload(model.name)
            model.close()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()


def pixels(encoded: bytes) -> Pixels:
    """Height x width x channels of an encoded picture."""
    return np.asarray(Image.open(io.BytesIO(encoded)))


def difference(one: Pixels, other: Pixels) -> int:
    """The largest difference of two pictures of one size, in grey levels of 255."""
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def draw_bare(pipeline: Any, seed: int, **arguments: Any) -> Pixels:
    """The same picture by diffusers alone."""
    with torch.no_grad():
        drawn = pipeline(**arguments, generator=torch.Generator().manual_seed(seed), output_type="np")[0]
    return (drawn[0] * 255).round().clip(0, 255).astype(np.uint8)
