"""A model behind the server's own predict route, in a thread of the test process, for tests that go
through a lot of checkpoints: a server process for each, as `conftest.py` starts them, would take
most of the tests' time."""

from __future__ import annotations

import base64
import io
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image

from atelier.images.group import RankGroup
from atelier.images.model import ImageModel
from atelier.images.observer import SilentImageObserver
from atelier.protocols.http.error_bodies import add_error_handlers
from atelier.protocols.http.results import ResultStore
from atelier.protocols.jobs.job import Jobs
from atelier.protocols.kserve.predict import router
from atelier.protocols.picture_writer import PictureWriter
from atelier.serving.middleware import front
from atelier.settings import Settings

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Tally(SilentImageObserver):
    """Remembers by stage how many requests at most shared one module call."""

    def __init__(self) -> None:
        self.shared: Counter[str] = Counter()

    def call(self, stage: str, seconds: float, shape: str, rows: int, requests: int) -> None:
        self.shared[stage] = max(self.shared[stage], requests)


class Verdicts(logging.Handler):
    """The modules whose calls the engine says it stacks, and those it says it runs one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.stacked: set[str] = set()
        self.alone: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        words = record.getMessage()
        if "calls of" not in words:
            return
        module = words.split("calls of ")[1].split()[0]
        (self.stacked if "are stacked" in words else self.alone).add(module)


@dataclass(frozen=True)
class Exhibit:
    """One served model."""

    url: str
    model: ImageModel
    tally: Tally
    verdicts: Verdicts

    def post(self, *instances: dict[str, Any], **parameters: Any) -> httpx.Response:
        """One v1 predict request."""
        body = {"instances": list(instances), "parameters": parameters}
        return httpx.post(f"{self.url}/v1/models/{self.model.name}:predict", json=body, timeout=300)

    def draw(self, *instances: dict[str, Any], **parameters: Any) -> list[Pixels]:
        """The picture of each instance; all of them are at work in the engine at once."""
        answer = self.post(*instances, **parameters)
        assert answer.status_code == 200, answer.text
        return [
            pixels(base64.b64decode(each["image"]["b64"])) for each in answer.json()["predictions"]
        ]


@contextmanager
def showing(checkpoint: Path, group: RankGroup | None = None, **settings: Any) -> Iterator[Exhibit]:
    """Load a checkpoint the way the server does, and serve it; `group` shares its calls."""
    chosen = Settings(
        **{"model_id": str(checkpoint), "device": "cpu", "dtype": "float32", **settings}
    )
    tally, verdicts = Tally(), Verdicts()
    verifier = logging.getLogger("atelier.images.verifier")
    verifier.setLevel(logging.INFO)
    verifier.addHandler(verdicts)
    model = ImageModel(chosen, tally, group)
    model.load()
    batch_always(model)
    writer = PictureWriter(chosen)
    store = ResultStore(chosen.result_seconds, chosen.result_bytes)
    app = FastAPI()
    add_error_handlers(app)
    app.include_router(router(model, writer, Jobs(model, writer, store), chosen))
    server = uvicorn.Server(
        uvicorn.Config(front(app, chosen), host="127.0.0.1", port=0, log_level="warning")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Exhibit(f"http://127.0.0.1:{port}", model, tally, verdicts)
    finally:
        verifier.removeHandler(verdicts)
        server.should_exit = True
        thread.join()
        model.close()


def batch_always(model: ImageModel) -> None:
    """Let calls be shared however little that gains: on a CPU it gains nothing, and the scheduler
    finds out."""
    engine = model._engine
    assert engine is not None
    rows = engine._limits.rows
    pace = engine.scheduler.pace
    pace.knee = lambda lane, own, pixels: max(own, rows)  # type: ignore[method-assign]


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
        drawn = pipeline(
            **arguments, generator=torch.Generator().manual_seed(seed), output_type="np"
        )[0]
    return (drawn[0] * 255).round().clip(0, 255).astype(np.uint8)
